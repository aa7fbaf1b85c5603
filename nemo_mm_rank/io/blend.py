"""The blend as a file: Parquet or JSONL, there whole or not at all, equal bytes for equal pairs."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.parquet import write_atomically, write_table

_ROWS = 1024


def write_blend(table: pa.Table, path: Path) -> None:
    """Write ``table`` atomically as what the suffix of ``path`` says: ``.parquet`` or ``.jsonl``.

    JSONL keeps the order of the columns. What JSON has no word for becomes the nearest thing that every reader
    takes: bytes are base64, times are ISO 8601, decimals are strings, and NaN and infinities are null.

    Raises:
        UserError: another suffix.
    """
    if path.suffix == ".parquet":
        write_table(path, table.combine_chunks())  # chunks would show in the file's pages
    elif path.suffix == ".jsonl":
        write_atomically(path, lambda target: _write_jsonl(table, target))
    else:
        raise UserError(f"{path.name}: a blend is written as .parquet or .jsonl")


def _write_jsonl(table: pa.Table, path: Path) -> None:
    simple = {
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in table.to_batches(max_chunksize=_ROWS):
            for row in batch.to_pylist():
                values = {name: value if name in simple else jsonable(value) for name, value in row.items()}
                file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Return the nearest value that JSON has a word for, as `write_blend` says."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, (str, int)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

"""The blend as a file or as WebDataset tars: equal bytes for equal pairs."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import sys
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import PairError, UserError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.files import write_atomically, write_table
from nemo_mm_rank.io.webdataset import JSON, TEXTS, kind_of
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.window import without_window
from nemo_mm_rank.modality import is_media, modalities_of
from nemo_mm_rank.schema import (
    ANNOTATION,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
)

_LINES_AT_ONCE = 1024


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
        raise UserError(f"{path.name}: a blend can be written as .parquet or .jsonl")


def _write_jsonl(table: pa.Table, path: Path) -> None:
    simple = {
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)
    }
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in table.to_batches(max_chunksize=_LINES_AT_ONCE):
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


_ROWS = 256
_EXTENSION = re.compile(r"[a-z0-9]{1,16}")


def fill_webdataset(blend: pa.Table, folder: Path, media: MediaSettings, max_samples: int, max_bytes: int) -> None:
    """Write pairs as ``blend-000000.tar`` ..., in their order, into an empty folder.

    A sample's key is its place in the blend (``00000001`` is the best). Its members: ``.json`` with the pair's columns,
    text and code among them; ``.txt`` with the annotation; and the media under the extension that they had (``.bin``
    where that does not fit the modality), for a part of several with its number before (``.2.jpg``), for a further one
    of its modality after ``more`` (``.more.3.jpg``). Equal pairs and media give equal bytes.

    Args:
        blend: canonical columns, any others, and where they are there ``data_bytes`` and ``media_root``.
        folder: for the tars.
        media: which references may be opened, and how large.
        max_samples: most samples of a tar.
        max_bytes: most bytes of a tar, but for one sample that is larger.

    Raises:
        UserError: media that cannot be read.
    """
    with Shards(lambda number: folder / f"blend-{number:06d}.tar", max_samples, max_bytes) as shards:
        _fill(shards, blend, media)


def write_tar(table: pa.Table, file: Path, media: MediaSettings) -> None:
    """Write pairs, any number of them, as one tar; as `fill_webdataset` writes its own."""
    if not table.num_rows:
        tarfile.open(file, "w").close()
        return
    with Shards(lambda _: file, table.num_rows, sys.maxsize) as shards:
        _fill(shards, table, media)


class Shards:
    """Tars that are filled one after the other, each where ``file`` says for its number."""

    def __init__(self, file: Callable[[int], Path], max_samples: int, max_bytes: int) -> None:
        self._file = file
        self._most = (max_samples, max_bytes)
        self._count = 0
        self._held = (0, 0)
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, key: str, members: Mapping[str, IO[bytes]]) -> None:
        """Add a sample: extension -> content."""
        sizes = {extension: content.seek(0, os.SEEK_END) for extension, content in members.items()}
        size = sum(tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for size in sizes.values())
        samples, held = self._held
        if samples and (samples == self._most[0] or held + size > self._most[1]):
            self._close()
        if self._tar is None:
            # Whatever it needs besides name and size, such as times and owners, is nought in a new TarInfo.
            self._tar = tarfile.open(self._file(self._count), "w")  # noqa: SIM115
            self._count += 1
        for extension in sorted(members):
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = sizes[extension]
            members[extension].seek(0)
            self._tar.addfile(header, members[extension])
        self._held = (self._held[0] + 1, self._held[1] + size)

    def _close(self) -> None:
        if self._tar is None:
            return
        name = self._tar.name
        self._tar.close()
        with open(str(name), "rb+") as file:
            os.fsync(file.fileno())
        self._tar, self._held = None, (0, 0)


def _fill(shards: Shards, blend: pa.Table, media: MediaSettings) -> None:
    place = 0
    for batch in blend.to_batches(max_chunksize=_ROWS):
        for position in range(batch.num_rows):
            # Row by row: contents that the rows carry are large.
            [row] = batch.slice(position, 1).to_pylist()
            place += 1
            _add(shards, f"{place:08d}", row, media)


def _add(shards: Shards, key: str, row: dict[str, Any], media: MediaSettings) -> None:
    own, content = row.pop(MEDIA_ROOT, None), row.pop(DATA_BYTES, None)
    every, contents = row.get(SOURCE_MEDIA) or [], row.pop(SOURCE_CONTENTS, None)
    held = {one[DATA]: each for one, each in zip(every, contents, strict=True)} if contents else {}
    names: dict[str, str] = {}
    members: dict[str, IO[bytes]] = {"txt": BytesIO(row.pop(ANNOTATION).encode())}

    def opened(reference: str) -> IO[bytes]:
        try:
            return open_source(reference, own or ".", media, held.get(reference) if contents else content)
        except PairError as error:
            raise UserError(f"pair {row[PAIR_ID]!r}: {shown(reference)} {error}; no tar was written") from error

    kinds = modalities_of(row[MODALITY])
    if len(kinds) > 1:
        for number, (kind, part) in enumerate(zip(kinds, row[DATA_PARTS], strict=True), 1):
            if is_media(kind):
                extension = f"{number}.{_extension(part[DATA], kind)}"
                members[extension] = opened(part[DATA])
                names[part[DATA]] = part[DATA] = extension
    elif is_media(kinds[0]):
        reference = row.pop(DATA)
        names[reference] = _extension(reference, row[MODALITY])
        members[names[reference]] = opened(reference)
    for number, one in enumerate(every, 1):
        if (reference := one[DATA]) not in names:
            names[reference] = f"more.{number}.{_extension(reference, one[MODALITY])}"
            members[names[reference]] = opened(reference)
        one[DATA] = names[reference]
    members["json"] = BytesIO(json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False).encode())
    try:
        shards.add(key, members)
    finally:
        for member in members.values():
            member.close()


def _extension(reference: str, modality: str) -> str:
    """Return the extension that a reader takes for the modality, whatever the media are called."""
    stem, _, extension = without_window(reference).rpartition("/")[2].lower().rpartition(".")
    fits = stem and _EXTENSION.fullmatch(extension) and extension not in (*JSON, *TEXTS)
    return extension if fits and kind_of(extension) in (modality, None) else "bin"

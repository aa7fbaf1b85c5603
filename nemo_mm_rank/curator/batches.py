"""Between Curator's batches of documents and the tables that our steps work on."""

from __future__ import annotations

import pyarrow as pa
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.frames import check_free
from nemo_mm_rank.schema import (
    ANNOTATION_SPANS,
    DATA_BYTES,
    DATA_PARTS,
    DATA_SPANS,
    ERROR,
    FUSED,
    MEDIA_ROOT,
    PARTS,
    SNS_REASON,
    SPANS,
    VECTOR,
    annotation_column,
    data_column,
    description_column,
)

_OURS = {
    DATA_BYTES: pa.binary(),
    DATA_PARTS: PARTS,
    MEDIA_ROOT: pa.string(),
    ERROR: pa.string(),
    DATA_SPANS: SPANS,
    ANNOTATION_SPANS: SPANS,
    SNS_REASON: pa.string(),
    FUSED: VECTOR,
}
_VECTORS = (data_column(""), annotation_column(""))


def to_table(batch: DocumentBatch) -> pa.Table:
    """Return the rows of a batch, pandas or Arrow, as an Arrow table without an index and pandas' metadata.

    Curator's filters and modifiers go through pandas, where our lists become objects that have lost their type, and
    a column of nulls any type at all. Our columns get their types back; the values are the same.
    """
    data = batch.data
    table = data if isinstance(data, pa.Table) else _strings(pa.Table.from_pandas(data, preserve_index=False))
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        kind = _kind(name)
        if kind is not None and column.type != kind and (pa.types.is_null(column.type) or pa.types.is_nested(kind)):
            table = table.set_column(place, name, column.cast(kind))
    return table.replace_schema_metadata(None)


def _strings(table: pa.Table) -> pa.Table:
    """Return ``table`` with strings of the common kind: pandas has but one, and Arrow takes it for the large one."""
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _kind(name: str) -> pa.DataType | None:
    if name.startswith(_VECTORS):
        return VECTOR
    return pa.string() if name.startswith(description_column("")) else _OURS.get(name)


def with_rows(batch: DocumentBatch, table: pa.Table) -> DocumentBatch:
    """Return a new batch with the rows of ``table`` that goes on for ``batch``: its name, metadata and measurements."""
    return DocumentBatch(
        dataset_name=batch.dataset_name, data=table, _metadata=batch._metadata, _stage_perf=batch._stage_perf
    )


def put(table: pa.Table, columns: pa.Table) -> pa.Table:
    """Return ``table`` with ``columns`` of the same rows added at its end; ``error`` takes the place of what it was.

    Raises:
        TakenColumnError: any other is there already.
    """
    check_free(set(table.column_names) - {ERROR}, columns.column_names, "batch")
    kept = table.select([name for name in table.column_names if name not in columns.column_names])
    return pa.table([*kept.columns, *columns.columns], names=[*kept.column_names, *columns.column_names])

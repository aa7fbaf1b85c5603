"""The only file that knows pandas from cuDF: columns out as Arrow arrays or torch tensors, and back, uncopied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank.errors import EmbeddingError, MissingColumnError, TakenColumnError
from nemo_mm_rank.schema import VECTOR

Frame: TypeAlias = Any
"""A ``pandas.DataFrame`` or a ``cudf.DataFrame``."""


@dataclass(frozen=True)
class Vectors:
    """A column of embeddings as one tensor.

    Attributes:
        values: ``(n, d)`` float32; rows that have no embedding are zero and must be read through ``valid``. A column
            read back without any embedding has ``d = 0``: nobody wrote its width down.
        valid: ``(n,)`` bool on the same device.
    """

    values: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def full(cls, values: torch.Tensor) -> Vectors:
        """Wrap ``(n, d)`` values that are all there."""
        return cls(values, torch.ones(len(values), dtype=torch.bool, device=values.device))


def is_cudf(frame: Frame) -> bool:
    """Whether ``frame`` is a cuDF object (without importing cuDF)."""
    return type(frame).__module__.split(".")[0] == "cudf"


def check_columns(frame: Frame, names: Mapping[str, Any], step: str) -> None:
    """Raise `MissingColumnError` naming the step and the columns that ``frame`` lacks."""
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise MissingColumnError(
            f"{step}: the frame has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, frame.columns))}"
        )


def check_free(there: Iterable[str], names: Iterable[str], step: str) -> None:
    """Raise `TakenColumnError` naming the step and its new columns that are there already: no column is replaced.

    Args:
        there: the columns of a frame, table or pool.
        names: those to add.
        step: what adds them.
    """
    known = set(there)
    taken = [name for name in names if name in known]
    if taken:
        they = "are" if len(taken) > 1 else "is"
        raise TakenColumnError(
            f"{step}: {', '.join(map(repr, taken))} {they} present already and would be overwritten; rename your own "
            "columns, and leave out those that an earlier step added"
        )


def array(frame: Frame, name: str) -> pa.Array:
    """Return a column as one Arrow array on the host (``null`` for missing values)."""
    column = frame[name]
    arrow = column.to_arrow() if is_cudf(frame) else pa.array(column, from_pandas=True)
    return arrow.combine_chunks() if isinstance(arrow, pa.ChunkedArray) else arrow


def strings(frame: Frame, name: str) -> list[str | None]:
    """Return a text column as Python strings (``None`` for missing values); what is no text stays what it is."""
    try:
        values: list[str | None] = array(frame, name).to_pylist()
    except (UnicodeEncodeError, pa.ArrowException):  # pandas can hold unpaired surrogates, and numbers among texts
        values = [None if pd.isna(value) else value for value in frame[name]]
    return values


def numbers(frame: Frame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of numbers (or of true and false) as ``(n,)`` float64 on the host, NaN for missing values.

    The caller's own memory where the column is float64 already: not to be written to.
    """
    column = frame[name].to_arrow().to_pandas() if is_cudf(frame) else frame[name]
    values: np.ndarray[Any, np.dtype[np.float64]] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def vectors(frame: Frame, name: str, device: str | torch.device = "cpu") -> Vectors:
    """Return a column of equally long float32 lists as one tensor on ``device``.

    No list is walked in Python: the tensor shares the column's leaves where no row is null and the device is the
    column's own.

    Raises:
        EmbeddingError: where the lists differ in length.
    """
    if is_cudf(frame):
        column = frame[name]
        valid = torch.utils.dlpack.from_dlpack(column.notnull().astype("int8").values).bool()
        leaves = torch.utils.dlpack.from_dlpack(column.list.leaves.values)
    else:
        arrow = array(frame, name)
        if pa.types.is_null(arrow.type):  # a column of objects, all of them missing
            arrow = arrow.cast(VECTOR)
        elif pa.types.is_fixed_size_list(arrow.type):
            arrow = arrow.cast(pa.list_(arrow.type.value_type))
        valid = torch.from_numpy(np.array(pc.is_valid(arrow).to_numpy(zero_copy_only=False)))
        leaves = torch.from_numpy(_writable(arrow.flatten().to_numpy(zero_copy_only=False)))
        lengths = pc.unique(pc.drop_null(pc.list_value_length(arrow)))
        if len(lengths) > 1:
            raise EmbeddingError(f"column {name!r} holds vectors of different lengths: {lengths.to_pylist()[:4]}")
    present = int(valid.sum())
    dim = len(leaves) // present if present else 0
    packed = leaves.to(device=device, dtype=torch.float32).view(present, dim)
    valid = valid.to(device)
    if present == len(valid):
        return Vectors(packed, valid)
    values = packed.new_zeros((len(valid), dim))
    values[valid] = packed
    return Vectors(values, valid)


def _writable(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # torch warns of memory that it cannot write to, though nothing here writes: the flag is lifted on a view.
    view = values.view()
    try:
        view.flags.writeable = True
    except ValueError:
        interface = dict(values.__array_interface__, data=(values.__array_interface__["data"][0], False))
        holder = type("_Buffer", (), {"__array_interface__": interface, "owner": values})()
        view = np.asarray(holder)
    return view


def to_arrow(column: Vectors) -> pa.Array:
    """Return vectors as an Arrow ``list<float32>`` array on the host, null where not valid."""
    valid = column.valid.cpu().numpy()
    values = column.values.detach().to("cpu", torch.float32)
    dim = values.shape[1] if values.ndim == 2 else 0
    if not valid.all():
        values = values[column.valid.cpu()]
    offsets = np.zeros(len(valid) + 1, dtype=np.int32)
    np.cumsum(valid * dim, out=offsets[1:])
    leaves = pa.array(values.contiguous().numpy().reshape(-1))
    mask = None if valid.all() else pa.array(~valid)
    return pa.ListArray.from_arrays(pa.array(offsets), leaves, type=VECTOR, mask=mask)


def attach(frame: Frame, columns: Mapping[str, pa.Array | Vectors]) -> Frame:
    """Return a shallow copy of ``frame`` with ``columns`` added at the end; the caller's frame is unchanged."""
    out = frame.copy(deep=False)
    for name, column in columns.items():
        out[name] = _series(column, frame)
    return out


def _series(column: pa.Array | Vectors, frame: Frame) -> Any:
    if is_cudf(frame):
        import cudf

        if isinstance(column, Vectors) and column.values.is_cuda and bool(column.valid.all()):
            return _cudf_lists(column.values, frame.index)
        arrow = to_arrow(column) if isinstance(column, Vectors) else column
        series = cudf.Series.from_arrow(arrow)
        series.index = frame.index
        return series
    arrow = to_arrow(column) if isinstance(column, Vectors) else column
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([arrow])), index=frame.index)


def _cudf_lists(values: torch.Tensor, index: Any) -> Any:
    """Make a cuDF list column round a CUDA tensor ``(n, d)`` without a trip to the host."""
    import cudf
    import cupy
    import pylibcudf as plc

    n, dim = values.shape
    leaves = plc.Column.from_cuda_array_interface(cupy.from_dlpack(values.detach().contiguous().view(-1)))
    offsets = plc.Column.from_cuda_array_interface(cupy.arange(0, (n + 1) * dim, dim, dtype="int32"))
    column = plc.Column(plc.DataType(plc.TypeId.LIST), n, None, None, 0, 0, [offsets, leaves])
    series = cudf.Series.from_pylibcudf(column)
    series.index = index
    return series


def to_table(frame: Frame) -> pa.Table:
    """Return a frame as an Arrow table without its index and without pandas' own metadata.

    pandas 3 writes Arrow dtype names into that metadata that it cannot parse again, so files with it do not open.
    """
    if is_cudf(frame):
        return frame.to_arrow(preserve_index=False).replace_schema_metadata(None)
    return pa.table({name: array(frame, name) for name in frame.columns})


def from_table(table: pa.Table, backend: str = "pandas") -> Frame:
    """Return an Arrow table as a frame: pandas with Arrow dtypes, or cuDF."""
    if backend == "cudf":
        import cudf

        return cudf.DataFrame.from_arrow(table)
    return table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)

"""A step: a small object over one partition that adds columns. It knows nothing of Dask, Ray or Curator."""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from nemo_mm_rank import frames, schema
from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import (
    AnswerError,
    EmbeddingError,
    MemoryShortError,
    PairError,
    TakenColumnError,
    TransientError,
    UserError,
    in_one_line,
)
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.schema import ERROR, MODALITY

# Models are not safe for several threads, and a Dask worker may run several tasks at a time.
_ONE_AT_A_TIME = threading.RLock()


def reason(step: str, error: BaseException) -> str:
    """Return the text that stands in the ``error`` column for a pair that failed in ``step``."""
    message = printable(" ".join(str(error).split()))
    return f"{step}: {type(error).__name__}: {message or 'no message'}"


_REASON = re.compile(r"[^:]+: \w+: ")


def check_reasons(errors: Iterable[Any]) -> None:
    """Refuse a column ``error`` that no step of ours has written, rather than take its rows for failed ones.

    Raises:
        TakenColumnError: a value (None aside) that is not of the form of `reason`.
    """
    for text in errors:
        if text is not None and not (isinstance(text, str) and _REASON.match(text)):
            raise TakenColumnError(
                f"column {ERROR!r} holds {text!r}, not 'step: Class: message'; if the column is yours, rename it"
            )


@dataclass
class Added:
    """What a step makes of ``n`` live rows.

    Attributes:
        columns: name -> Arrow array or vectors of length ``n``; null (or not valid) where a row failed.
        errors: row position -> why this pair must be quarantined.
    """

    columns: dict[str, pa.Array | Vectors]
    errors: dict[int, PairError] = field(default_factory=dict)


class Portable:
    """Pickled with what it was told, not with what it has loaded: attributes whose names begin with an underscore."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}


class Step(ABC):
    """Adds columns to a frame; never drops, reorders or overwrites the user's rows and columns.

    A pair that cannot be processed keeps its row, with nulls in the new columns and the reason in the ``error``
    column; later steps pass it by. Steps are cheap to make and to pickle: models load in `setup`, once per worker.
    """

    name: str
    device: str | None = None
    """Where models are to run; None: CUDA where there is one."""
    loaded: ClassVar[tuple[str, ...]] = ()
    """Attributes that `setup` fills: a step is pickled without what they hold."""

    @property
    @abstractmethod
    def requires(self) -> Mapping[str, pa.DataType]:
        """Columns that the step reads, with their types."""

    @property
    def uses(self) -> tuple[str, ...]:
        """Columns that the step also reads where they are there."""
        return ()

    @property
    @abstractmethod
    def provides(self) -> Mapping[str, pa.DataType]:
        """Columns that the step adds, with their types (``error`` goes without saying)."""

    def setup(self, device: str | None = None) -> None:  # noqa: B027 (many steps need no model)
        """Load what `process` needs, on ``device`` (None: CUDA where there is one).

        Runs before every frame and must cost nothing once loaded: models are kept by `models.loader`, per process.
        """

    @abstractmethod
    def process(self, rows: Frame) -> Added:
        """Make the new columns for ``rows``, all of them live."""

    def __call__(self, frame: Frame) -> Frame:
        """Return ``frame`` with the provided columns added.

        What `process` raises for a single pair becomes that pair's reason (see `processed`).

        Raises:
            MissingColumnError: naming the step and the columns that are missing, before any model loads.
            TakenColumnError: naming the step and those of its columns that are there already.
        """
        frames.check_columns(frame, self.requires, self.name)
        frames.check_free(frame.columns, self.provides, self.name)
        errors: list[str | None] = frames.strings(frame, ERROR) if ERROR in frame.columns else [None] * len(frame)
        check_reasons(errors)
        live = np.array([error is None for error in errors], dtype=bool)
        if not live.any():
            columns: dict[str, pa.Array | Vectors] = {
                name: pa.nulls(len(frame), dtype) for name, dtype in self.provides.items()
            }
            return frames.attach(frame, {**columns, ERROR: pa.array(errors, pa.string())})
        with _ONE_AT_A_TIME:
            self.setup(self.device)
            added = processed(self.process, frame if live.all() else frame[live], self.provides)
        positions = np.flatnonzero(live)
        for row, error in added.errors.items():
            errors[positions[row]] = reason(self.name, error)
        columns = {name: _spread(column, live) for name, column in added.columns.items()}
        return frames.attach(frame, {**columns, ERROR: pa.array(errors, pa.string())})

    def meta(self, frame: Frame) -> Frame:
        """Return an empty frame with this step's columns added to ``frame``'s: Dask's ``meta``.

        Raises:
            TakenColumnError: naming the step and those of its columns that are there already.
        """
        frames.check_free(frame.columns, self.provides, self.name)
        empty = frame.iloc[:0]
        columns = {name: pa.nulls(0, dtype) for name, dtype in self.provides.items()}
        return frames.attach(empty, {**columns, ERROR: pa.nulls(0, pa.string())})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(self.loaded)}

    def identity(self) -> dict[str, Any]:
        """Return what this step's result depends on besides its input, as JSON-able values (for fingerprints)."""
        return {"step": self.name}


class PairStep(Portable, Step):
    """A step that opens both sides of every pair: whole, or what SNS has kept of them."""

    chunk: ClassVar[tuple[int, int]] = (128, 128 * 2**20)
    """Decoded media in a call: at most this many, and no more once they weigh this many bytes."""

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The canonical columns."""
        return schema.CANONICAL

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept, and where media are to be found."""
        spans = (schema.DATA_SPANS, schema.ANNOTATION_SPANS)
        return (*spans, *schema.WHERE)


def columns_added(step: Step, table: pa.Table, backend: str = "pandas") -> pa.Table:
    """Return the columns that ``step`` adds to ``table``, in the types it provides, and ``error`` last.

    Only what the step reads becomes a frame; the other columns may be of any type.

    Raises:
        TakenColumnError: naming the step and those of its columns that ``table`` has already.
    """
    frames.check_free(table.column_names, step.provides, step.name)
    read = [name for name in (*step.requires, *step.uses, ERROR) if name in table.column_names]
    frame = step(frames.from_table(table.select(dict.fromkeys(read)), backend))
    added = frames.to_table(frame[[*step.provides, ERROR]])
    return added.cast(pa.schema([*step.provides.items(), (ERROR, pa.string())]))


ALIKE = 32
"""Rows that fail one by one, all alike, before any has gone through: the others are not tried."""


def processed(process: Callable[[Frame], Added], rows: Frame, provides: Mapping[str, pa.DataType]) -> Added:
    """Return what ``process`` adds to ``rows``; where it raises, the rows that it raises for are found by halves.

    Raises:
        UserError: what is not about what the rows hold, or a model that fails alike for all rows of a modality.
        Exception: likewise, of what is no model.
    """
    raised: dict[int, Exception] = {}
    through: list[int] = []

    def halves(first: int, end: int) -> list[tuple[int, Added]]:
        try:
            added = process(rows if end - first == len(rows) else rows.iloc[first:end])
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, AnswerError):
                raise
            if end - first > 1:
                middle = (first + end) // 2
                return [*halves(first, middle), *halves(middle, end)]
            raised[first] = error
            if not through and len(raised) == ALIKE:
                _refuse_alike([*raised.values()])
            return [(first, Added({name: pa.nulls(1, kind) for name, kind in provides.items()}, {0: _own(error)}))]
        through.extend(range(first, end))
        return [(first, added)]

    pieces = halves(0, len(rows))
    if raised:
        modalities = frames.strings(rows, MODALITY) if MODALITY in rows.columns else [None] * len(rows)
        failed = {first + row for first, piece in pieces for row in piece.errors} - raised.keys()
        for group in by_value([str(modality) for modality in modalities]).values():
            tried = [row for row in group if row not in failed]
            if len(tried) > 1 and all(row in raised for row in tried):
                _refuse_alike([raised[row] for row in tried])
    return pieces[0][1] if len(pieces) == 1 else _end_to_end(pieces, provides)


def _refuse_alike(raised: Sequence[Exception]) -> None:
    """Raise the first of several errors where all say the same: it is not the rows that are at fault."""
    if len({(type(error), str(error)) for error in raised}) == 1:
        raise raised[0]


def _own(error: Exception) -> PairError:
    """Return what was raised for a single row as the reason of its failure."""
    if isinstance(error, PairError):
        return error
    if isinstance(error, (MemoryShortError, MemoryError)):
        return TransientError(str(error) or "memory is short")
    return EmbeddingError(str(error) if isinstance(error, AnswerError) else in_one_line(error))


def _end_to_end(pieces: Sequence[tuple[int, Added]], provides: Mapping[str, pa.DataType]) -> Added:
    """Return what was added to neighbouring rows, each piece with the number of its first row, as one."""
    errors = {first + row: error for first, piece in pieces for row, error in piece.errors.items()}
    columns: dict[str, pa.Array | Vectors] = {}
    for name, kind in provides.items():
        parts = [piece.columns[name] for _, piece in pieces]
        arrays = [frames.to_arrow(part) if isinstance(part, Vectors) else part for part in parts]
        columns[name] = pa.concat_arrays([array.cast(kind) for array in arrays])
    return Added(columns, errors)


def _spread(column: pa.Array | Vectors, live: np.ndarray[Any, Any]) -> pa.Array | Vectors:
    """Put a column made of the live rows back among all rows, null elsewhere."""
    if live.all():
        return column
    if isinstance(column, Vectors):
        there = torch.from_numpy(live).to(column.values.device)
        values = column.values.new_zeros((len(live), column.values.shape[1]))
        valid = torch.zeros(len(live), dtype=torch.bool, device=column.values.device)
        values[there], valid[there] = column.values, column.valid
        return Vectors(values, valid)
    indices = np.where(live, np.cumsum(live) - 1, 0)
    return column.take(pa.array(indices, pa.int64(), mask=~live))


def by_value(values: Sequence[str]) -> dict[str, list[int]]:
    """Group row positions by value, in order of first appearance (one pass; used to batch by modality)."""
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        groups.setdefault(value, []).append(row)
    return groups

"""Data of several parts, taken apart into frames that hold one part of each row, and decoded side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import iter_data
from nemo_mm_rank.models.base import Item, Items
from nemo_mm_rank.schema import (
    DATA,
    DATA_PARTS,
    DATA_SPANS,
    MEDIA_ROOT,
    MODALITY,
    SPANS,
    Modality,
    known_class,
    modalities_of,
)


@dataclass(frozen=True)
class Apart:
    """Rows whose data is of one class, taken apart.

    Attributes:
        kinds: what the parts are.
        rows: positions of the rows.
        frames: for each part a frame of these rows, with ``modality``, ``data`` and what else decoding needs.
        errors: position -> why this row cannot be taken apart.
    """

    kinds: tuple[Modality, ...]
    rows: list[int]
    frames: list[Frame]
    errors: dict[int, PairError]

    def decoded(self, opener: Opener, threads: int) -> Iterator[Items | PairError]:
        """Yield the parts of each row; in place of a row of which one cannot be decoded, its error."""
        for row in zip(*(iter_data(part, opener, threads=threads) for part in self.frames), strict=True):
            items = [item for item in row if not isinstance(item, PairError)]
            errors = [self.named(number, item) for number, item in enumerate(row) if isinstance(item, PairError)]
            yield errors[0] if errors else tuple(items)

    def named(self, number: int, error: PairError) -> PairError:
        """Return the error of a part as the row's own, with the part in its message."""
        return type(error)(f"{self.kinds[number]} part: {error}")


def iter_class(
    rows: Frame, modality: str, positions: Sequence[int], opener: Opener, threads: int = 2
) -> Iterator[Item | Items | PairError]:
    """Yield the data at ``positions``, all of one class: items, or where it has several parts tuples of them.

    Args:
        rows: as for `iter_data` and `take_apart`.
        modality: the class.
        positions: which rows.
        opener: how media are opened.
        threads: how many decode, for each part.
    """
    if not known_class(modality) or len(modalities_of(modality)) == 1:
        yield from iter_data(rows, opener, positions, threads=threads)
        return
    apart = take_apart(rows, modality, positions)
    good = apart.decoded(opener, threads)
    for row in positions:
        yield apart.errors[row] if row in apart.errors else next(good)


def take_apart(rows: Frame, modality: str, positions: Sequence[int]) -> Apart:
    """Take the data at ``positions`` apart, all of which is of one class.

    Args:
        rows: with ``data_parts``, and where they are there ``media_root`` and ``sns_data_spans``.
        modality: the class, of several parts.
        positions: which rows.
    """
    kinds = modalities_of(modality)
    if DATA_PARTS not in rows.columns:
        error = EmbeddingError(f"data of class {modality} has its parts in a column {DATA_PARTS!r}, and there is none")
        return Apart(kinds, [], [], dict.fromkeys(positions, error))
    wanted = pa.array(positions, pa.int64())
    lists = frames.array(rows, DATA_PARTS).take(wanted)
    found = [None if parts is None else [part["modality"] for part in parts] for parts in lists.to_pylist()]
    good = [at for at, names in enumerate(found) if names == [str(kind) for kind in kinds]]
    errors: dict[int, PairError] = {
        positions[at]: EmbeddingError(f"parts of {names} are no data of class {modality}")
        for at, names in enumerate(found)
        if names != [str(kind) for kind in kinds]
    }
    kept = pa.array([positions[at] for at in good], pa.int64())
    flat = pc.struct_field(lists.take(pa.array(good, pa.int64())).flatten(), DATA)
    shared = {MEDIA_ROOT: frames.array(rows, MEDIA_ROOT).take(kept)} if MEDIA_ROOT in rows.columns else {}
    spans = frames.array(rows, DATA_SPANS).take(kept).to_pylist() if DATA_SPANS in rows.columns else None
    parts = []
    for number, kind in enumerate(kinds):
        columns = {
            MODALITY: pa.array([str(kind)] * len(good), pa.string()),
            DATA: flat.take(pa.array(range(number, len(flat), len(kinds)), pa.int64())),
            **shared,
        }
        if spans is not None:
            columns[DATA_SPANS] = pa.array([spans_of(own, number) for own in spans], SPANS)
        parts.append(frames.from_table(pa.table(columns)))
    return Apart(kinds, kept.to_pylist(), parts, errors)


def spans_of(spans: Sequence[Sequence[float]] | None, number: int) -> list[list[float]] | None:
    """Return the spans of one part among those of a row (`SPANS`), None where it is whole."""
    own = [list(span[1:]) for span in spans or () if span[0] == number]
    return own or None

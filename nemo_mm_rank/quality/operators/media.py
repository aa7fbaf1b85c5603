"""The operators that look at the data, as one step: whatever they are, every image and recording is decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import EmbeddingError, PairError, TextError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import annotation_texts, in_chunks, iter_data, take_apart
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.models import loader
from nemo_mm_rank.schema import MODALITY, Modality, known_class, modalities_of
from nemo_mm_rank.steps import Added, PairStep, by_value
from nemo_mm_rank.text.ngrams import mix


@dataclass
class Judged:
    """What an operator says of ``n`` items.

    Attributes:
        columns: name -> ``(n,)`` Arrow array; null where an item has no score.
        errors: item -> why its pair must be quarantined.
    """

    columns: dict[str, pa.Array]
    errors: dict[int, PairError] = field(default_factory=dict)


class Operator(Protocol):
    """Judges decoded data beside its annotation, a chunk at a time. Cheap to pickle: models load in `setup`."""

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Columns that it fills."""
        ...

    def setup(self, device: str) -> None:
        """Load what it needs; costs nothing once loaded."""
        ...

    def takes(self, modality: Modality) -> bool:
        """Whether it judges data of ``modality``; asked after `setup`. Its columns are null for others."""
        ...

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: Modality) -> Judged:
        """Judge ``items``, all of one modality, each beside its annotation."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what its scores depend on, as JSON-able values."""
        ...


@dataclass
class MediaStep(PairStep):
    """Adds what operators say of the data; data that nothing looks at is not decoded.

    A pair whose data cannot be decoded, or that a model fails on, is quarantined. Of data of several parts each part is
    judged; an operator that takes several of them says their mean.

    Args:
        operators: what looks at the data.
        media: how media are opened.
    """

    operators: Sequence[Operator]
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "quality-media"

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The operators' columns."""
        return {name: dtype for operator in self.operators for name, dtype in operator.provides.items()}

    def setup(self, device: str | None = None) -> None:
        """Load every model (nothing happens where this process has them)."""
        picked = loader.pick_device(device)
        for operator in self.operators:
            operator.setup(picked)

    def identity(self) -> dict[str, Any]:
        """The operators' own, and how media are decoded."""
        return {
            "step": self.name,
            "operators": [operator.identity() for operator in self.operators],
            "media": self.media.model_dump(exclude={"threads"}),
        }

    def process(self, rows: Frame) -> Added:
        """Judge ``rows``, modality by modality; media are decoded ahead in threads."""
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        columns = {name: _Column(len(rows), dtype) for name, dtype in self.provides.items()}
        for name, positions in by_value([str(m) for m in frames.strings(rows, MODALITY)]).items():
            if known_class(name):
                live = [row for row in positions if row not in errors]
                self._judge(rows, name, live, texts, columns, errors)
            else:
                error = EmbeddingError(f"modality {name!r} is not one of {', '.join(Modality)}")
                errors.update(dict.fromkeys(positions, error))
        return Added({name: column.array(errors) for name, column in columns.items()}, errors)

    def _judge(
        self,
        rows: Frame,
        name: str,
        positions: list[int],
        texts: Sequence[str | TextError],
        columns: Mapping[str, _Column],
        errors: dict[int, PairError],
    ) -> None:
        """Judge the live rows at ``positions``, whose data is of one class."""
        kinds = modalities_of(name)
        ways = [
            (operator, parts)
            for operator in self.operators
            if (parts := [number for number, kind in enumerate(kinds) if operator.takes(kind)])
        ]
        if not ways:
            return
        decoded, named = self._decoded(rows, name, positions, errors)
        for here, chunk in in_chunks(decoded, errors, *self.chunk):
            annotations = [str(texts[row]) for row in here]
            for operator, parts in ways:
                judged = [operator.judge([own[part] for own in chunk], annotations, kinds[part]) for part in parts]
                for part, one in zip(parts, judged, strict=True):
                    for item, error in one.errors.items():
                        errors.setdefault(here[item], named(part, error))
                for column in operator.provides:
                    said = [one.columns[column] for one in judged if column in one.columns]
                    if said:
                        columns[column].put(here, _of_parts(said))

    def _decoded(
        self, rows: Frame, name: str, positions: list[int], errors: dict[int, PairError]
    ) -> tuple[Iterable[tuple[int, Items | PairError]], Callable[[int, PairError], PairError]]:
        """Return the rows with their parts (one of most), and how a part's error becomes a row's."""
        opener, threads = Opener(self.media), self.media.threads
        if len(modalities_of(name)) > 1:
            apart = take_apart(rows, name, positions)
            errors.update(apart.errors)
            return zip(apart.rows, apart.decoded(opener, threads), strict=True), apart.named
        alone = iter_data(rows, opener, positions, threads=threads)
        items = (item if isinstance(item, PairError) else (item,) for item in alone)
        return zip(positions, items, strict=True), lambda _, error: error


def _of_parts(said: list[pa.Array]) -> pa.Array:
    """Return what is said of data by what is said of its parts: the mean of scores, and of keys a key of them all."""
    if len(said) == 1:
        return said[0]
    if pa.types.is_uint64(said[0].type):
        keys = said[0].to_numpy()
        for other in said[1:]:
            keys = mix(keys) ^ other.to_numpy()
        return pa.array(keys)
    values = np.stack([one.to_numpy(zero_copy_only=False) for one in said])
    there = ~np.isnan(values)
    means = np.where(there, values, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return pa.array(means, said[0].type, mask=~there.any(axis=0))


class _Column:
    """A column under construction, filled a chunk at a time."""

    def __init__(self, rows: int, dtype: pa.DataType) -> None:
        self._dtype = dtype
        self._pieces: list[pa.Array] = []
        self._held = 0
        self._place: npt.NDArray[np.int64] = np.full(rows, -1)

    def put(self, rows: Sequence[int], values: pa.Array) -> None:
        """Take in the values of ``rows``."""
        self._place[rows] = np.arange(self._held, self._held + len(values))
        self._pieces.append(values.cast(self._dtype))
        self._held += len(values)

    def array(self, errors: Mapping[int, PairError]) -> pa.Array:
        """Return the column; null for rows that failed anywhere."""
        self._place[list(errors)] = -1
        held = pa.concat_arrays([pa.nulls(0, self._dtype), *self._pieces])
        return held.take(pa.array(self._place, mask=self._place < 0))

"""The operators that look at the data, as one step: whatever they are, every image and recording is decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import ModelError, PairError, TextError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import annotation_texts, by_class, in_chunks, iter_data, take_apart, views, with_several
from nemo_mm_rank.media.segment import Item, Items
from nemo_mm_rank.modality import modalities_of
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import answering, fulfil
from nemo_mm_rank.quality.operators.settings import column
from nemo_mm_rank.steps import Added, PairStep
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

    def takes(self, modality: str) -> bool:
        """Whether it judges data of ``modality``; asked after `setup`. Its columns are null for others."""
        ...

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Judge ``items``, all of one modality, each beside its annotation."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what its scores depend on, as JSON-able values."""
        ...


class PairScorer(Protocol):
    """An operator of your own: it reads decoded data beside the annotation and gives one number for each pair.

    A configuration names a class by its import path, with arguments beside it:
    ``operators.own: {bright: {class: "my_module:Bright", side: 32}}`` adds a column ``quality__bright``. Where the
    class takes ``name`` or ``device`` it is given what the configuration calls it and where models run.

    >>> import numpy as np
    >>> class Bright:
    ...     revision = "1"
    ...     modalities = frozenset({"image"})
    ...
    ...     def __init__(self, name: str, side: int = 32) -> None:
    ...         self.name, self.side = name, side
    ...
    ...     def score(self, items, texts, modality):
    ...         small = [item.pixels.convert("L").resize((self.side, self.side)) for item in items]
    ...         return np.array([np.asarray(grey).mean() / 255 for grey in small])
    >>> from PIL import Image as PILImage
    >>> from nemo_mm_rank.media.segment import Image
    >>> images = [Image("a", PILImage.new("RGB", (60, 40), "white")), Image("b", PILImage.new("RGB", (9, 9)))]
    >>> Bright("bright").score(images, ["A white card.", "Night."], "image").tolist()
    [1.0, 0.0]

    Attributes:
        name: what the configuration calls it.
        revision: what its scores depend on besides its arguments: pairs that another one has scored are scored anew.
        modalities: of the data that it takes; the column is null for others.
    """

    name: str
    revision: str
    modalities: frozenset[str]

    def score(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> npt.NDArray[np.floating[Any]]:
        """Return ``(n,)`` scores, higher is better, NaN for an item without one; none depends on its neighbours.

        Args:
            items: ``n`` decoded data, all of one modality (`media.segment`; text and code are plain strings).
            texts: ``n`` annotations.
            modality: the items'.
        """
        ...


@dataclass
class OwnOperator:
    """Adds the scores of a `PairScorer`, as ``quality__<name>``.

    Args:
        name: of the operator.
        spec: class and arguments.
    """

    name: str
    spec: ModelSpec
    device: str = "cpu"

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column."""
        return {column(self.name): pa.float32()}

    def setup(self, device: str) -> None:
        """Load it (nothing happens where this process has it).

        Raises:
            UserError: it cannot be loaded, or lacks what an operator needs.
        """
        self.device = device
        fulfil(self.name, self._scorer, PairScorer)

    @property
    def _scorer(self) -> PairScorer:
        scorer: PairScorer = loader.load(self.name, self.spec.class_, self.spec.arguments, self.device)
        return scorer

    def takes(self, modality: str) -> bool:
        """The modalities that it lists."""
        return modality in self._scorer.modalities

    def identity(self) -> dict[str, Any]:
        """Class, arguments and revision."""
        return {"own": loader.identities({self.name: self.spec})}

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Ask it.

        Raises:
            ModelError: it fails, or does not return one number for each item.
        """
        with answering(f"operator {self.name!r}"):
            scores = np.asarray(self._scorer.score(items, texts, modality), dtype=np.float32)
        if scores.shape != (len(items),):
            raise ModelError(f"operator {self.name!r} returned scores of shape {scores.shape} for {len(items)} items")
        return Judged({column(self.name): pa.array(scores, from_pandas=True)})


@dataclass
class MediaStep(PairStep):
    """Adds what operators say of the data; data that nothing looks at is not decoded.

    A pair whose data cannot be decoded, or that a model fails on, is quarantined. Of data of several parts each part is
    judged; an operator that takes several of them says their mean, also of data with several media of a modality.

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
            "media": self.media.identity(),
        }

    def process(self, rows: Frame) -> Added:
        """Judge ``rows``, modality by modality; media are decoded ahead in threads."""
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        columns = {name: _Column(len(rows), dtype) for name, dtype in self.provides.items()}
        several = set(with_several(rows))
        for name, positions in by_class(rows, errors):
            live = [row for row in positions if row not in errors and row not in several]
            self._judge(rows, name, live, texts, columns, errors)
        if live := sorted(several - errors.keys()):
            self._judge_several(rows, live, texts, columns, errors)
        return Added({name: filled.array(errors) for name, filled in columns.items()}, errors)

    def _judge_several(
        self,
        rows: Frame,
        positions: list[int],
        texts: Sequence[str | TextError],
        columns: Mapping[str, _Column],
        errors: dict[int, PairError],
    ) -> None:
        """Judge the live rows at ``positions``, which have several media of a modality: each view of them."""
        frame, counts = views(rows, positions, self.media.several)
        owner = np.repeat(positions, counts)
        own = {name: _Column(len(frame), dtype) for name, dtype in self.provides.items()}
        failed: dict[int, PairError] = {}
        for name, here in by_class(frame, failed):
            self._judge(frame, name, here, [texts[row] for row in owner], own, failed)
        for view, error in failed.items():
            errors.setdefault(int(owner[view]), error)
        starts = np.cumsum(counts) - counts
        for count in set(counts):
            alike = [at for at, row in enumerate(positions) if counts[at] == count and row not in errors]
            for name, filled in own.items():
                said = filled.array({})
                told = [said.take(pa.array(starts[alike] + view)) for view in range(count)]
                if alike and told[0].null_count < len(alike):
                    columns[name].put([positions[at] for at in alike], _of_parts(told))

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
                for part, judgement in zip(parts, judged, strict=True):
                    for item, error in judgement.errors.items():
                        errors.setdefault(here[item], named(part, error))
                for added in operator.provides:
                    values = [judgement.columns[added] for judgement in judged if added in judgement.columns]
                    if values:
                        columns[added].put(here, _of_parts(values))

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
    values = np.stack([scores.to_numpy(zero_copy_only=False) for scores in said])
    known = ~np.isnan(values)
    means = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return pa.array(means, said[0].type, mask=~known.any(axis=0))


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

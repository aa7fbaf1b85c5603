"""Noise decided on: which pairs something is planted in, what, whom it is from, and the annotations that come out.

Nothing is opened or written here, so that a pool of embeddings can be spoilt as well as one of files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.arrays import Bools, Ints
from nemo_mm_rank.benchmark.planting import donors as edits
from nemo_mm_rank.benchmark.planting.donors import NONE, Pieces, alike, counted, derange, draw_others, joint, numbered
from nemo_mm_rank.config import Settings, Share
from nemo_mm_rank.measures.statistics import apportion
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.steps import by_value
from nemo_mm_rank.text.split import split_sentences


class Kind(StrEnum):
    """What can be wrong with a pair."""

    SWAP_WITHIN = "swap-within"
    """The annotation of another pair of the same modality: the hardest to find."""
    SWAP_ACROSS = "swap-across"
    """The annotation of a pair of another modality."""
    FOREIGN_SENTENCE = "foreign-sentence"
    """A sentence of another pair's annotation among the own ones."""
    REPLACED_SENTENCE = "replaced-sentence"
    """A sentence of another pair's annotation in the place of one of several own ones."""
    REMOVED_SENTENCE = "removed-sentence"
    """One of several sentences of the annotation is gone: what is left is true, and says less."""
    EXCHANGED_WORD = "exchanged-word"
    """One of the annotation's rarer words gives way to one of another pair's, of the same modality where it can be."""
    KEY_SENTENCE = "key-sentence"
    """The part of the data that the annotation speaks of is gone (text and code)."""
    CROPPED = "cropped"
    """Only a small window of the medium is left."""
    PADDED = "padded"
    """The medium is followed by another pair's (images: beside it)."""
    NEAR_DUPLICATE = "near-duplicate"
    """The pair is replaced by a slightly changed copy of another, whole one."""
    CORRUPT = "corrupt"
    """The medium's file breaks off after its first bytes."""
    OFF_TOPIC = "off-topic"
    """The pair is replaced by one that agrees in itself and is about nothing that the pool is about."""


ALL: dict[Kind, float] = {
    Kind.SWAP_WITHIN: 10,
    Kind.SWAP_ACROSS: 5,
    Kind.FOREIGN_SENTENCE: 5,
    Kind.KEY_SENTENCE: 5,
    Kind.CROPPED: 4,
    Kind.PADDED: 4,
    Kind.NEAR_DUPLICATE: 3,
    Kind.CORRUPT: 2,
    Kind.OFF_TOPIC: 2,
}
"""The mix that results are reported on. Kinds that are not in it are planted where they are named."""

PRESETS: dict[str, dict[Kind, float]] = {
    **{str(kind): {kind: 1.0} for kind in Kind},
    "swaps": {Kind.SWAP_WITHIN: 1.0},
    "media": {Kind.CROPPED: 1.0, Kind.PADDED: 1.0, Kind.CORRUPT: 1.0},
    "all": ALL,
}
"""What a name alone stands for: a kind by itself, or several."""


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"kinds: a mapping of kinds to weights, or one of {', '.join(PRESETS)}, not {value!r}")
        return dict(PRESETS[value])
    return value


class PlantSettings(Settings):
    """How a pool is spoilt: how much of each modality, and with what."""

    total: Share = Field(0.4, description="Share of each modality's pairs that are spoilt on purpose.")
    kinds: Annotated[dict[Kind, Annotated[float, Field(ge=0)]], BeforeValidator(_named)] = Field(
        default_factory=lambda: dict(ALL),
        description="Weight of each kind of noise, or a name: one kind alone, swaps (within a modality), media "
        "(cropped, padded, corrupt) or all (the usual mix).",
    )
    keep: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="Share of each side (images) or of the duration (audio, video) that is left after cropping.",
    )

    @property
    def weights(self) -> dict[Kind, float]:
        """The kinds that have a weight, in the order of `Kind`."""
        return {kind: self.kinds[kind] for kind in Kind if self.kinds.get(kind)}

    @model_validator(mode="after")
    def _something(self) -> PlantSettings:
        if self.total and not any(self.kinds.values()):
            raise ValueError("kinds: at least one needs a positive weight")
        return self


_NEEDS: dict[Kind, str] = {
    Kind.SWAP_WITHIN: "another pair of the same modality with another annotation",
    Kind.SWAP_ACROSS: "a pair of another modality with another annotation",
    Kind.FOREIGN_SENTENCE: "another pair with a sentence that is not its own",
    Kind.REPLACED_SENTENCE: "an annotation of several sentences, and another pair with a sentence that is not its own",
    Kind.REMOVED_SENTENCE: "an annotation of several sentences",
    Kind.EXCHANGED_WORD: "another pair with a word that is not its own",
    Kind.KEY_SENTENCE: "text or code of several parts",
    Kind.CROPPED: "an image, audio or video",
    Kind.PADDED: "an image, audio or video, and another one of its kind",
    Kind.NEAR_DUPLICATE: "a whole pair of the same modality with other content, and data of one part",
    Kind.CORRUPT: "an image, audio or video",
    Kind.OFF_TOPIC: "data of one part",
}

_MEDIA = frozenset({Kind.CROPPED, Kind.PADDED, Kind.CORRUPT})
_BY_MODALITY = _MEDIA | {Kind.KEY_SENTENCE}
"""Kinds that only some modalities can have: in a mix the others take their part, as anyone expects."""


@dataclass(frozen=True)
class Short:
    """Fewer pairs than asked for in which a kind could be planted.

    Attributes:
        modality: of the pairs.
        kind: what was to be planted.
        wanted: in how many pairs.
        planted: in how many it was.
        able: how many of the modality's pairs could have it.
        pairs: of the modality.
    """

    modality: str
    kind: Kind
    wanted: int
    planted: int
    able: int
    pairs: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Short:
        """Return what ``dataclasses.asdict`` was made of."""
        return cls(**{**values, "kind": Kind(values["kind"])})

    def __str__(self) -> str:
        why = f"which {self.able:,} of {self.pairs:,} pairs have"
        if self.able > self.planted:
            why += "; the others are spoilt in another way, or found none"
        return (
            f"{self.modality}: {self.kind} was planted in {self.planted:,} pairs of {self.wanted:,} asked for, because "
            f"it needs {_NEEDS[self.kind]}, {why}."
        )


@dataclass(frozen=True)
class Plan:
    """What is planted in ``n`` pairs.

    Attributes:
        kind: ``(n,)`` None where a pair stays whole.
        donor: ``(n,)`` the row that something is taken from, `donors.NONE` where it is from none.
        annotation: ``(n,)`` as they will be; those of pairs off topic are made with their data, and stand here as they
            were.
        short: where fewer were planted than asked for.
    """

    kind: Sequence[Kind | None]
    donor: Ints
    annotation: Sequence[str]
    short: tuple[Short, ...]

    @property
    def clean(self) -> Bools:
        """``(n,)`` whether a pair stays whole."""
        return np.array([kind is None for kind in self.kind], dtype=bool)

    def rows(self, kind: Kind) -> Ints:
        """Return the rows of a kind, ascending."""
        return np.array([row for row, found in enumerate(self.kind) if found == kind], dtype=np.int64)


def make_plan(
    modality: Sequence[str],
    annotation: Sequence[str],
    settings: PlantSettings | None = None,
    seed: int | np.random.Generator = 0,
    data: Sequence[Hashable] | None = None,
    divisible: npt.NDArray[np.bool_] | None = None,
) -> Plan:
    """Decide what is planted where, and change the annotations.

    `PlantSettings.total` of the pairs are spoilt, each in one way, and the same share of every modality (by largest
    remainder where it is no whole number; at least one pair). Annotations that are swapped go round among the pairs
    that get one, where they can: none is lost and none is there twice. Where too many of those are alike, others of
    the pool give theirs. What a pair cannot have goes to the other kinds of the mix; where there are none, fewer are
    planted, and `Plan.short` says how many and why.

    Args:
        modality: ``(n,)`` names.
        annotation: ``(n,)`` texts. Those that differ in case or white space alone count as equal.
        settings: how much of what; default: 40 %, the usual mix.
        seed: another one spoils other pairs.
        data: ``(n,)`` equal where the data are; default: no two are.
        divisible: ``(n,)`` whether a part of the data can be taken away; default: of none.

    Raises:
        ValueError: sequences of different lengths.
    """
    settings, rng = settings or PlantSettings(), np.random.default_rng(seed)
    n = len(modality)
    data = range(n) if data is None else data
    divisible = np.zeros(n, dtype=bool) if divisible is None else divisible
    if not len(annotation) == len(data) == len(divisible) == n:
        raise ValueError("modality, annotation, data and divisible must be of one length")
    return _Planner(list(modality), list(annotation), data, divisible, settings, rng).plan()


class _Planner:
    """The rows while they are decided on."""

    def __init__(
        self,
        modality: list[str],
        annotation: list[str],
        data: Sequence[Hashable],
        divisible: Bools,
        settings: PlantSettings,
        rng: np.random.Generator,
    ) -> None:
        self.modality, self.was, self.settings, self.rng = modality, annotation, settings, rng
        self.n = len(modality)
        self.class_, self.text, self.data = numbered(modality), alike(annotation), numbered(data)
        self.content = joint(self.data, self.text)
        self.divisible = divisible
        weights = settings.weights
        self.sentences = (
            [split_sentences(text) for text in annotation]
            if weights.keys() & {Kind.FOREIGN_SENTENCE, Kind.REPLACED_SENTENCE, Kind.REMOVED_SENTENCE}
            else [[]] * self.n
        )
        self.sentence_pieces = Pieces.of(self.sentences)
        self.word_pieces = _words(annotation) if Kind.EXCHANGED_WORD in weights else Pieces.of([[]] * self.n)
        self.kind: list[Kind | None] = [None] * self.n
        self.donor = np.full(self.n, NONE, dtype=np.int64)
        self.annotation = list(annotation)

    def plan(self) -> Plan:
        groups = {name: np.array(rows) for name, rows in by_value(self.modality).items()}
        sizes = np.array([len(rows) for rows in groups.values()], dtype=np.int64)
        total = max(int(np.floor(self.settings.total * self.n + 0.5)), int(self.settings.total > 0))
        totals = dict(zip(groups, apportion(total, sizes.astype(np.float64), sizes).tolist(), strict=True))
        weights = self.settings.weights
        able = {kind: self._able(kind) for kind in weights}
        if Kind.NEAR_DUPLICATE in able:  # where all are spoilt, there is no whole one to copy
            for name, rows in groups.items():
                able[Kind.NEAR_DUPLICATE][rows] &= totals[name] < len(rows)
        rows_of_kind: dict[Kind, list[Ints]] = {kind: [] for kind in weights}
        for name in sorted(groups):
            for kind, rows in self._draw(groups[name], totals[name], weights, able).items():
                rows_of_kind[kind].append(rows)
        drawn = {kind: np.sort(np.concatenate([np.zeros(0, np.int64), *rows])) for kind, rows in rows_of_kind.items()}
        for kind, rows in drawn.items():
            for row in rows.tolist():
                self.kind[row] = kind
        for kind, rows in drawn.items():
            if len(rows):
                self._plant(kind, rows)
        short = [one for name, rows in groups.items() for one in self._short(name, rows, totals[name], weights, able)]
        return Plan(self.kind, self.donor, self.annotation, tuple(short))

    def _able(self, kind: Kind) -> Bools:
        """Return ``(n,)`` whether each pair can have a kind."""
        built_in = np.array([name in list(Modality) for name in self.modality], dtype=bool)
        media = np.array([is_media(name) for name in self.modality], dtype=bool)
        several = np.array([len(own) > 1 for own in self.sentences], dtype=bool)
        peers, twins = counted(self.class_), counted(joint(self.class_, self.text))
        able: Bools
        match kind:
            case Kind.SWAP_WITHIN:
                able = twins < peers
            case Kind.SWAP_ACROSS:
                able = counted(self.text) - twins < self.n - peers
            case Kind.FOREIGN_SENTENCE:
                able = self.sentence_pieces.foreign(self.n)
            case Kind.REPLACED_SENTENCE:
                able = several & self.sentence_pieces.foreign(self.n)
            case Kind.REMOVED_SENTENCE:
                able = several
            case Kind.EXCHANGED_WORD:
                able = self.word_pieces.foreign(self.n) & np.isin(np.arange(self.n), self.word_pieces.owner)
            case Kind.KEY_SENTENCE:
                able = built_in & self.divisible
            case Kind.PADDED:
                able = built_in & media & (counted(joint(self.class_, self.data)) < peers)
            case Kind.NEAR_DUPLICATE:
                able = built_in & (counted(joint(self.class_, self.content)) < peers)
            case Kind.CROPPED:
                able = built_in & media
            case Kind.CORRUPT:
                able = media
            case Kind.OFF_TOPIC:
                able = built_in
        return able

    def _draw(
        self, rows: Ints, total: int, weights: Mapping[Kind, float], able: Mapping[Kind, Bools]
    ) -> dict[Kind, Ints]:
        """Draw the rows of every kind in one modality, none of them twice, first of kinds that few pairs can have."""
        order = self.rng.permutation(rows)
        drawn = {kind: np.zeros(0, dtype=np.int64) for kind in weights}
        while total:
            caps = {kind: int(able[kind][order].sum()) for kind in weights}
            counts = dict(
                zip(weights, apportion(total, list(weights.values()), list(caps.values())).tolist(), strict=True)
            )
            for kind in sorted(weights, key=lambda kind: caps[kind]):
                taken = order[able[kind][order]][: counts[kind]]
                drawn[kind] = np.concatenate([drawn[kind], taken])
                order = order[~np.isin(order, taken)]
                total -= len(taken)
            if not any(able[kind][order].any() for kind in weights):
                break
        return drawn

    def _plant(self, kind: Kind, rows: Ints) -> None:
        if kind in (Kind.SWAP_WITHIN, Kind.SWAP_ACROSS, Kind.PADDED, Kind.NEAR_DUPLICATE):
            donors = self._donors(kind, rows)
            for row in rows[donors == NONE].tolist():  # of whole pairs to copy all are the same
                self.kind[row] = None
            self.donor[rows] = donors
            if kind != Kind.PADDED:
                for row, donor in zip(rows[donors != NONE].tolist(), donors[donors != NONE].tolist(), strict=True):
                    self.annotation[row] = self.was[donor]
        elif kind in (Kind.FOREIGN_SENTENCE, Kind.REPLACED_SENTENCE):
            change = edits.with_sentence if kind == Kind.FOREIGN_SENTENCE else edits.with_replaced
            places = self.sentence_pieces.draw(rows, np.zeros(self.n, dtype=np.int64), self.rng)
            self.donor[rows] = self.sentence_pieces.owner[places]
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                self.annotation[row] = change(self.sentences[row], self.sentence_pieces.text[place], self.rng)
        elif kind == Kind.REMOVED_SENTENCE:
            for row in rows.tolist():
                self.annotation[row] = edits.without_one(self.sentences[row], self.rng)
        elif kind == Kind.EXCHANGED_WORD:
            pieces = self.word_pieces
            places = pieces.draw(rows, self.class_, self.rng)
            self.donor[rows] = pieces.owner[places]
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                first, end = np.searchsorted(pieces.owner, [row, row + 1])
                lent = first + np.flatnonzero(pieces.lent[first:end])
                old = pieces.text[int(self.rng.choice(lent))]
                self.annotation[row] = edits.with_word(self.was[row], old, pieces.text[place])

    def _donors(self, kind: Kind, rows: Ints) -> Ints:
        """Return for each row of a kind the row that it gets something from."""
        class_, text, data, content = self.class_, self.text, self.data, self.content
        donors = np.full(len(rows), NONE, dtype=np.int64)
        if kind == Kind.SWAP_WITHIN:
            for name in np.unique(class_[rows]):
                own = np.flatnonzero(class_[rows] == name)
                given = derange(text[rows[own]], text[rows[own]], self.rng)
                donors[own] = np.where(given == NONE, NONE, rows[own][given])
        elif kind == Kind.SWAP_ACROSS:
            given = derange(class_[rows], text[rows], self.rng)
            donors = np.where(given == NONE, NONE, rows[given])
        differs = {Kind.PADDED: data, Kind.NEAR_DUPLICATE: content}.get(kind, text)
        whole = np.arange(self.n)
        if kind == Kind.NEAR_DUPLICATE:
            whole = whole[[planted is None for planted in self.kind]]

        def may(own: Ints, others: Ints) -> Bools:
            allowed: Bools = differs[own] != differs[others]
            same: Bools = class_[own] == class_[others]
            return allowed & (~same if kind == Kind.SWAP_ACROSS else same)

        left = np.flatnonzero(donors == NONE)
        keys = joint(class_, differs)[rows]
        for name in np.unique(class_[rows[left]]):
            these = left[class_[rows[left]] == name]
            among = whole if kind == Kind.SWAP_ACROSS else whole[class_[whole] == name]
            donors[these] = draw_others(rows[these], keys[these], may, among, self.rng)
        return donors

    def _short(
        self, name: str, rows: Ints, total: int, weights: Mapping[Kind, float], able: Mapping[Kind, Bools]
    ) -> list[Short]:
        """Return the kinds that fewer pairs of a modality got than their weights ask for."""
        targets = apportion(total, list(weights.values()), [total] * len(weights)).tolist()
        planted = [sum(self.kind[row] == kind for row in rows.tolist()) for kind in weights]
        full = sum(planted) == total
        return [
            Short(name, kind, asked, got, int(able[kind][rows].sum()), len(rows))
            for kind, asked, got in zip(weights, targets, planted, strict=True)
            if got < asked and not (full and kind in _BY_MODALITY and not able[kind][rows].any())
        ]


def _words(annotation: Sequence[str]) -> Pieces:
    """Return the different words of every annotation; others may get its rarer half, by how many have a word."""
    pieces = Pieces.of([sorted(edits.words(text)) for text in annotation])
    common = np.bincount(pieces.code)[pieces.code] if len(pieces.code) else pieces.code
    order = np.lexsort((pieces.code, common, pieces.owner))
    count = np.bincount(pieces.owner, minlength=len(annotation))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    lent = np.zeros(len(order), dtype=bool)
    lent[order] = 2 * rank < count[pieces.owner[order]]
    return Pieces(pieces.text, pieces.owner, pieces.code, lent)

"""What tells own annotations from others in a pool: learnt from annotations spoilt on purpose, kept, and applied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.io.files import reading, write_json, write_tensors
from nemo_mm_rank.matching.features import BANK, Bank, Pairs, SentenceFeatures, Space, WholeFeatures, bank_of, least
from nemo_mm_rank.matching.judge import FEWEST, Judge
from nemo_mm_rank.measures.line import cross_fit
from nemo_mm_rank.models.base import Encoder
from nemo_mm_rank.models.sentences import Spoken
from nemo_mm_rank.sampling import folds_of, hashes
from nemo_mm_rank.vectors import take

JUDGES, BANKS = "judges.json", "banks.safetensors"

SWAPPED, SWAPPED_ACROSS = "swapped", "swapped-across"
"""The annotation of another pair of the same modality; of one of another modality."""
ADDED, ADDED_ACROSS = "sentence-added", "sentence-added-across"
"""A sentence of another annotation of the same modality among the own ones; of one of another modality."""
WHOLE, SENTENCE = (SWAPPED, SWAPPED_ACROSS), (ADDED, ADDED_ACROSS)

SPOILT = {
    SWAPPED: "of another pair of the modality",
    SWAPPED_ACROSS: "of a pair of another modality",
    ADDED: "with a sentence of the modality",
    ADDED_ACROSS: "with a sentence of another modality",
}
"""Way of spoiling -> what a person reads for it."""

FOLDS = 4
_SHIFTS = 4
_NONE = torch.zeros((0, 0))


@dataclass(frozen=True)
class Sample:
    """What a matcher is fitted on, in an order that does not depend on how the pool is stored.

    Attributes:
        modality: ``(n,)`` objects.
        annotations: ``n`` texts.
        pairs: both sides as embedded, on the host.
    """

    modality: npt.NDArray[np.object_]
    annotations: Sequence[str]
    pairs: Pairs


@dataclass(frozen=True)
class Chances:
    """What a matcher says of ``n`` pairs.

    Attributes:
        whole: ``(n,)`` that the annotation is not another pair's; 1 where that cannot be told.
        sentence: ``(n,)`` that none of its sentences is another's; 1 where that cannot be told.
        likely: ``(u,)`` logarithm of the odds of each sentence; NaN where that cannot be told.
    """

    whole: Floats
    sentence: Floats
    likely: Floats

    @property
    def both(self) -> Floats:
        """The lesser of the two."""
        least_of: Floats = np.minimum(self.whole, self.sentence)
        return least_of


@dataclass(frozen=True)
class Matcher:
    """Judges for every modality that one can be had for.

    Attributes:
        spaces: those that hold both sides of a pair.
        anchor: the model that embeds sentences.
        seed: of the hash that gives an annotation its fold.
        judges: modality -> way of spoiling -> its judge.
        banks: modality -> what pairs are compared with.
    """

    spaces: tuple[Space, ...]
    anchor: str
    seed: int
    judges: Mapping[str, Mapping[str, Judge]]
    banks: Mapping[str, Bank]

    @classmethod
    def fit(cls, sample: Sample, spaces: Sequence[Space], anchor: str, encoder: Encoder, seed: int) -> Matcher:
        """Spoil annotations of a sample in every way, and learn to tell them from those as they are.

        Pairs of the sample may be wrong themselves; that only weakens what is learnt.

        Args:
            sample: pairs as they are.
            spaces: those that hold both sides.
            anchor: the model of the fused space.
            encoder: the same model, to embed sentences.
            seed: decides what is spoilt with what.
        """
        judges: dict[str, dict[str, Judge]] = {}
        banks: dict[str, Bank] = {}
        names = sorted(set(sample.modality.tolist()))
        for modality in names:
            rows = np.flatnonzero(sample.modality == modality)
            if len(rows) < FEWEST:
                continue
            fit = _Fit(sample, rows, tuple(spaces), anchor, encoder, seed, modality)
            judges[modality] = {name: judge for name, judge in fit.judges().items() if judge is not None}
            banks[modality] = fit.bank
        return cls(tuple(spaces), anchor, seed, judges, banks)

    def judge(self, modality: str, annotations: Sequence[str], pairs: Pairs, spoken: Spoken) -> Chances:
        """Return what can be said of ``n`` pairs of one modality; each by itself, to the bit.

        Args:
            modality: theirs.
            annotations: ``n`` texts.
            pairs: both sides as embedded; pair by pair.
            spoken: the sentences of the annotations.
        """
        count = len(annotations)
        whole, sentence = np.ones(count), np.ones(count)
        likely = np.full(len(spoken.owner), np.nan)
        judges = self.judges.get(modality)
        if not judges or not count:
            return Chances(whole, sentence, likely)
        folds = folds_of(annotations, FOLDS, self.seed)
        bank, every = self.banks[modality], np.arange(count)
        features = WholeFeatures(self.spaces, self.anchor, pairs, bank)
        for name, scores in _scores(judges, WHOLE, features(every, every), folds):
            whole = np.fmin(whole, judges[name].chance(scores))
        if len(spoken.owner) and any(name in judges for name in SENTENCE):
            own = SentenceFeatures(features, self.anchor, spoken.owner, spoken.vectors, _NONE, bank).own()
            for name, scores in _scores(judges, SENTENCE, own, folds[spoken.owner]):
                sentence = np.fmin(sentence, judges[name].chance(least(scores, spoken.owner, count)))
                likely = np.fmin(likely, scores)
        return Chances(whole, sentence, likely)

    def about(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return modality -> way of spoiling -> how well it can be told, and the share of pairs taken for wrong."""
        return {
            modality: {name: dict(judge.about) for name, judge in sorted(judges.items())}
            for modality, judges in sorted(self.judges.items())
        }

    def save(self, folder: Path) -> None:
        """Write ``banks.safetensors`` and, last, ``judges.json``, each atomically."""
        tensors = {}
        for modality, bank in self.banks.items():
            for name, values in bank.data.items():
                tensors[f"{modality}/data/{name}"] = values
            for name, values in bank.annotations.items():
                tensors[f"{modality}/annotations/{name}"] = values
            tensors[f"{modality}/sentences"] = bank.sentences
        write_tensors(folder / BANKS, tensors)
        judges = {
            modality: {name: judge.as_json() for name, judge in sorted(own.items())}
            for modality, own in sorted(self.judges.items())
        }
        spaces = [asdict(space) for space in self.spaces]
        write_json(folder / JUDGES, {"spaces": spaces, "anchor": self.anchor, "seed": self.seed, "judges": judges})

    @classmethod
    def load(cls, folder: str | Path) -> Matcher:
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing, is not of its format, or does not fit the other.
        """
        folder = Path(folder)
        with reading(folder, "matcher"):
            config = json.loads((folder / JUDGES).read_text(encoding="utf-8"))
            tensors = load((folder / BANKS).read_bytes())
            judges = {
                modality: {name: Judge.of_json(judge) for name, judge in own.items()}
                for modality, own in config["judges"].items()
            }
            banks = {modality: _bank(tensors, modality) for modality in judges}
            spaces = tuple(Space(**space) for space in config["spaces"])
            return cls(spaces, config["anchor"], config["seed"], judges, banks)


def _scores(
    judges: Mapping[str, Judge], names: Sequence[str], features: Floats, folds: Ints
) -> Iterator[tuple[str, Floats]]:
    """Yield what each judge that is there says of some rows of features."""
    for name in names:
        if judge := judges.get(name):
            yield name, judge.score(_seen(features, name), folds)


def _seen(features: Floats, name: str) -> Floats:
    """Leave out the resemblance to others of the modality where what is spoilt comes from the modality itself."""
    return features if name in (SWAPPED_ACROSS, ADDED_ACROSS) else features[:, :-2]


def _bank(tensors: Mapping[str, torch.Tensor], modality: str) -> Bank:
    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}

    return Bank(below(f"{modality}/data/"), below(f"{modality}/annotations/"), tensors[f"{modality}/sentences"])


class _Fit:
    """The fit of one modality.

    Args:
        sample: of all modalities.
        rows: ``(n,)`` those of this one.
        spaces, anchor, encoder, seed: see `Matcher.fit`.
        modality: its name.
    """

    def __init__(
        self,
        sample: Sample,
        rows: Ints,
        spaces: tuple[Space, ...],
        anchor: str,
        encoder: Encoder,
        seed: int,
        modality: str,
    ) -> None:
        self.rng = np.random.default_rng(int(hashes([modality], seed)[0]))
        self.annotations = [sample.annotations[row] for row in rows.tolist()]
        self.folds = folds_of(self.annotations, FOLDS, seed)
        self.count = len(rows)
        # What comes from elsewhere stands behind the modality's own.
        others = self.rng.permutation(np.setdiff1d(np.arange(len(sample.annotations)), rows))[: max(200, len(rows))]
        pairs = Pairs(
            {name: take(column, rows) for name, column in sample.pairs.data.items()},
            {name: take(column, np.concatenate([rows, others])) for name, column in sample.pairs.annotations.items()},
        )
        self.elsewhere = len(others)
        spoken = Spoken.of(self.annotations, encoder)
        self.owner, self.place, vectors = spoken.owner, spoken.place, spoken.vectors
        extra = Spoken.of([sample.annotations[row] for row in others.tolist()], encoder).vectors
        chosen = self.rng.permutation(self.count)[:BANK]
        said = torch.from_numpy(self.rng.permutation(len(vectors))[:BANK])
        own = Pairs(
            pairs.data, {name: take(column, np.arange(self.count)) for name, column in pairs.annotations.items()}
        )
        self.bank = bank_of(own, chosen, vectors[said])
        self.whole = WholeFeatures(spaces, anchor, pairs, self.bank)
        self.sentences = SentenceFeatures(self.whole, anchor, self.owner, vectors, extra, self.bank)
        self.foreign = len(extra)

    def judges(self) -> dict[str, Judge | None]:
        """Return a judge for each way of spoiling, None where it cannot be told."""
        every = np.arange(self.count)
        return {
            SWAPPED: self._of_whole(SWAPPED, *self._swapped()),
            SWAPPED_ACROSS: self._of_whole(SWAPPED_ACROSS, *self._drawn(every, 2, self.count, self.elsewhere)),
            ADDED: self._of_sentences(ADDED, *self._added()),
            ADDED_ACROSS: self._of_sentences(ADDED_ACROSS, *self._drawn(every, _SHIFTS, len(self.owner), self.foreign)),
        }

    def _swapped(self) -> tuple[Ints, Ints]:
        """Return data, and annotations of the modality that are not theirs."""
        order = self.rng.permutation(self.count)
        place = np.argsort(order)
        data = np.tile(np.arange(self.count), _SHIFTS)
        others = np.concatenate([np.roll(order, -shift)[place] for shift in range(1, _SHIFTS + 1)])
        texts = np.array(self.annotations, dtype=object)
        different = texts[data] != texts[others]
        return data[different], others[different]

    def _added(self) -> tuple[Ints, Ints]:
        """Return data, and sentences of others of the modality."""
        data = np.tile(np.arange(self.count), _SHIFTS)
        if not len(self.owner):
            return data[:0], data[:0]
        drawn = self.rng.integers(len(self.owner), size=len(data))
        distinct = int(self.place.max()) + 1
        foreign = ~np.isin(data * distinct + self.place[drawn], self.owner * distinct + self.place)
        return data[foreign], drawn[foreign]

    def _drawn(self, every: Ints, times: int, start: int, there: int) -> tuple[Ints, Ints]:
        """Return data, and something from other modalities, if there is any."""
        data = np.tile(every, times if there else 0)
        return data, start + (self.rng.integers(there, size=len(data)) if there else data)

    def _of_whole(self, name: str, data: Ints, annotations: Ints) -> Judge | None:
        if len(data) < FEWEST:
            return None
        every = np.arange(self.count)
        own, spoilt = (_seen(self.whole(*rows), name) for rows in ((every, every), (data, annotations)))
        lines, observed, made = cross_fit(own, self.folds, spoilt, self.folds[data], FOLDS)
        return Judge.of(lines, observed, made)

    def _of_sentences(self, name: str, data: Ints, sentences: Ints) -> Judge | None:
        """Learn from sentences; judge an annotation by the least likely one."""
        several = self.sentences.count > 1
        if len(data) < FEWEST or several.sum() < FEWEST / 2:
            return None
        own, spoilt = (_seen(found, name) for found in (self.sentences.own(), self.sentences.added(data, sentences)))
        lines, scores, made = cross_fit(own, self.folds[self.owner], spoilt, self.folds[data], FOLDS)
        observed = least(scores, self.owner, self.count)
        with_it = np.fmin(observed[data], made)
        return Judge.of(lines, observed[~np.isnan(observed)], with_it)

"""What parts of a pool's own score, and foreign ones that were planted on purpose: the score below which a part is cut.

A score tells own parts from foreign ones the better, the more it leaves out of what a part is like beside anything: a
sentence that says nothing is close to all data, and so is no foreign one. Which score does is tried on a sample of the
pool, side by side and modality by modality (`SCORES`), and so is where to cut: where the own parts of the sample as it
is lose no more than they may. Where the scores cannot tell the two, nothing is cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from nemo_mm_rank.arrays import Bools, Floats
from nemo_mm_rank.io.files import reading, write_tensors
from nemo_mm_rank.measures.separation import chance, separation, wrong_at_most
from nemo_mm_rank.sns.parts import Parts, Scored, leaders

BANK = 64
"""Pairs whose other sides every part is compared with, besides that of its own pair."""

FEWEST = 30
"""Pairs of a modality below which nothing is said."""

TOLD = 0.7
"""Chance that an own part scores above a planted one, below which (surely) nothing is cut."""

HARMLESS = (0.02, 0.07)
"""Shares of foreign parts in the sample as it is: up to the first all count as own, from the second on none is."""

_SURE, _BETTER, _ROUNDS = 2.0, 0.005, 4
_SAME = 1e-5


def _relative(scored: Scored) -> Floats:
    contrast = scored.contrast
    found: Floats = contrast - contrast[leaders(contrast, scored.owner)]
    return found


PLAIN = "relevance"
SCORES: dict[str, Callable[[Scored], Floats]] = {
    PLAIN: lambda scored: scored.relevance.astype(np.float64),
    "contrast": lambda scored: scored.contrast,
    "contrast to the best part": _relative,
    "kinship": lambda scored: scored.kinship,
    "contrast and kinship": lambda scored: scored.contrast + scored.kinship,
}
"""What tells own parts from foreign ones, plain ones first: a later one has to be better."""

KIN = ("kinship", "contrast and kinship")
"""Scores that need the vectors of the parts."""


@dataclass(frozen=True)
class Standard:
    """Where one side of a modality's pairs is cut.

    Attributes:
        score: by which of `SCORES`.
        cut: parts that score below it are cut; minus infinity: none is.
        pairs, parts: what it was learnt from.
        told: how often an own part scores above one that was planted.
        lost: share of the own parts of the sample that score below the cut, as far as they are taken for own.
        caught: share of the planted parts that do.
        foreign: share of the sample's parts that is taken for foreign.
    """

    score: str = PLAIN
    cut: float = -np.inf
    pairs: int = 0
    parts: int = 0
    told: float = float("nan")
    lost: float = 0.0
    caught: float = 0.0
    foreign: float = 0.0

    @property
    def compares(self) -> bool:
        """Whether parts have to be held against other pairs."""
        return self.cut > -np.inf and self.score != PLAIN

    def keep(self, scored: Scored) -> Bools:
        """Return ``(m,)`` which parts stay; one that has no score does."""
        if self.cut == -np.inf:
            return np.ones(len(scored.relevance), dtype=bool)
        return ~(SCORES[self.score](scored) < self.cut)


def spoil(scored: Scored, whole: bool, seed: int) -> tuple[Scored, Bools]:
    """Return pairs of the bank with parts of others planted among their own, and which ones are planted.

    Args:
        scored: a sample, whose first pairs are the bank's: their own parts and those that are planted are its.
        whole: plant all parts of another pair, or a single one.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(scored.owner)
    starts, own, rows, planted, owner, relevance = np.cumsum(counts) - counts, [], [], [], [], []
    there = np.flatnonzero(counts)
    for place in [*range(scored.across.shape[1])] * _ROUNDS:
        donor = int(rng.choice(there))
        mine, theirs = (np.arange(counts[one]) + starts[one] for one in (place, donor))
        # What is as close to this pair as to its own is its own, or says the same.
        near = np.abs(scored.across[theirs, place] - scored.relevance[theirs]) < _SAME
        if scored.vectors is not None and len(mine):
            near |= (scored.vectors[theirs] @ scored.vectors[mine].T).max(axis=1) > 1 - _SAME
        theirs = theirs[~near] if whole else rng.permutation(theirs[~near])[:1]
        if not len(mine) or not len(theirs):
            continue
        rows += [mine, theirs]
        relevance += [scored.relevance[mine], scored.across[theirs, place]]
        planted += [np.zeros(len(mine), bool), np.ones(len(theirs), bool)]
        owner.append(np.full(len(mine) + len(theirs), len(own)))
        own.append(place)
    if not own:
        return replace(scored, **{name: getattr(scored, name)[:0] for name in ("relevance", "owner", "across")}), (
            np.zeros(0, dtype=bool)
        )
    taken = np.concatenate(rows)
    vectors = None if scored.vectors is None else scored.vectors[taken]
    made = Scored(np.concatenate(relevance), np.concatenate(owner), scored.across[taken], vectors)
    return made, np.concatenate(planted)


def fit(scored: Scored, whole: bool, lost: float, seed: int) -> Standard:
    """Choose the score that tells best, and where to cut.

    Args:
        scored: a sample of pairs as they are, whose first ones are the bank's.
        whole: see `spoil`.
        lost: the share of own parts that may be cut, at the most.
        seed: of what is planted.
    """
    counts = np.bincount(scored.owner) if len(scored.owner) else np.zeros(0, dtype=np.int64)
    pairs = int((counts > 0).sum())
    nothing = Standard(pairs=pairs, parts=len(scored.relevance))
    spoilt, planted = spoil(scored, whole, seed)
    if pairs < FEWEST or planted.sum() < FEWEST:
        return nothing
    several = counts[scored.owner] > 1
    best = nothing
    for name, score in SCORES.items():
        if name in KIN and scored.vectors is None:
            continue
        made = score(spoilt)
        mine, theirs = made[~planted], made[planted]
        # What stands alone cannot be cut; where hardly any stands beside others, it does so where one is planted.
        untouched = score(scored)[several] if several.sum() >= 2 * FEWEST else mine
        untouched, mine, theirs = (values[~np.isnan(values)] for values in (untouched, mine, theirs))
        if min(len(untouched), len(mine), len(theirs)) < FEWEST:
            continue
        one = _cut(name, untouched, mine, theirs, lost, nothing)
        if not best.told >= one.told - _BETTER:
            best = one
    return best


def _cut(name: str, untouched: Floats, mine: Floats, theirs: Floats, lost: float, nothing: Standard) -> Standard:
    """Return the highest cut at which no more of ``untouched`` goes than may, beside what foreign parts explain."""
    told = separation(mine, theirs)
    if told - _SURE * chance(len(mine), len(theirs)) < TOLD:
        return replace(nothing, score=name, told=told)
    bound = wrong_at_most(untouched, theirs)
    foreign = bound * float(np.clip((bound - HARMLESS[0]) / (HARMLESS[1] - HARMLESS[0]), 0, 1))
    ordered = np.sort(untouched)
    below = np.searchsorted(np.sort(theirs), ordered) / len(theirs)
    may = lost * (1 - foreign) + foreign * below
    # One more than there are: the next own part may lie anywhere between those of the sample.
    place = int(np.flatnonzero(np.arange(1, len(ordered) + 1) <= may * (len(ordered) + 1)).max(initial=-1)) + 1
    cut = float(ordered[min(place, len(ordered) - 1)])
    gone = float(np.searchsorted(ordered, cut) / len(ordered))
    caught = float((theirs < cut).mean())
    own = max(0.0, (gone - foreign * caught) / (1 - foreign)) if foreign < 1 else 0.0
    return replace(nothing, score=name, cut=cut, told=told, lost=own, caught=caught, foreign=foreign)


DATA_SIDE, ANNOTATION_SIDE = "data", "annotation"


def key(modality: str, side: str) -> str:
    """Return what the standard of one side of a modality's pairs is called."""
    return f"{modality}/{side}"


@dataclass(frozen=True)
class Standards:
    """What a pool's parts are held to, by ``modality/side`` (`key`).

    Attributes:
        standards: where to cut.
        banks: the other sides of some pairs, as vectors.
        phrases: what some pairs' annotations speak of, in words: what media are looked through for.
    """

    standards: Mapping[str, Standard]
    banks: Mapping[str, Parts]
    phrases: Mapping[str, Sequence[Sequence[str]]]

    def save(self, path: Path) -> None:
        """Write a safetensors file, whose bytes depend on nothing else."""
        tensors = {"empty": torch.zeros(0)}
        for name, bank in self.banks.items():
            tensors |= {
                f"{name}.vectors": torch.from_numpy(bank.vectors),
                f"{name}.counts": torch.from_numpy(bank.counts),
            }
        standards = {name: asdict(one) for name, one in sorted(self.standards.items())}
        about = json.dumps({"standards": standards, "phrases": dict(sorted(self.phrases.items()))})
        write_tensors(path, tensors, {"about": about})

    @classmethod
    def load(cls, path: Path) -> Standards:
        """Read it back.

        Raises:
            ModelError: the file holds something else.
        """
        with reading(path, "cut scores"), safe_open(str(path), framework="np") as file:
            about = json.loads(file.metadata()["about"])
            names = sorted({name.rpartition(".")[0] for name in file.keys()} - {""})  # noqa: SIM118 (no mapping)
            banks = {
                name: Parts(*(file.get_tensor(f"{name}.{one}") for one in ("vectors", "counts"))) for name in names
            }
            return cls(
                {name: Standard(**values) for name, values in about["standards"].items()}, banks, about["phrases"]
            )


@lru_cache(maxsize=4)
def standards_of(path: str, digest: str) -> Standards:
    """Return the standards in a file; ``digest`` of its bytes, so that one that was written anew is read anew."""
    return Standards.load(Path(path))

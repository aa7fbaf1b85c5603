"""What parts of a pool's own look like, and foreign ones that were planted on purpose: what is cut of either.

Which features of a part tell own from foreign ones differs from modality to modality and from expert to expert
(`parts.Scored.features`), so a logistic regression learns it from a sample of the pool: its parts as they stand, and
among them parts of other pairs. The sample also says where to cut: where its own parts, untouched, lose no more than
they may. What is learnt is judged by parts that it was not learnt from. Where the two cannot be told, nothing is cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from nemo_mm_rank.arrays import Bools, Floats, Ints, Vectors
from nemo_mm_rank.io.files import reading, write_tensors
from nemo_mm_rank.measures.line import Line, by_fold, cross_fit
from nemo_mm_rank.measures.separation import chance, separation, wrong_at_most
from nemo_mm_rank.sns.parts import Parts, Scored

BANK = 128
"""Pairs whose other sides every part is compared with, besides that of its own pair."""

FEWEST = 30
"""Pairs of a modality, and parts to plant, below which nothing is said."""

TOLD = 0.7
"""Chance that an own part scores above a planted one, below which (surely) nothing is cut."""

HARMLESS = (0.02, 0.07)
"""Shares of foreign parts in the sample as it is: up to the first all count as own, from the second on none is."""

_SURE, _BETTER, _LOOSE, _ROUNDS, _FOLDS = 2.0, 0.03, 1.25, 2, 4
_SAME = 1e-5


@dataclass(frozen=True)
class Standard:
    """Where one side of a modality's pairs is cut.

    Attributes:
        pairs, parts: what it was learnt from.
        told: how often an own part scores above one that was planted; NaN where there was too little to learn from.
        cut: parts that score below it are cut; minus infinity: none is.
        lost: share of the own parts of the sample that score below the cut, as far as they are taken for own.
        caught: share of the planted parts that do.
        foreign: share of the sample's parts that is taken for foreign.
        line: from features to scores; None where nothing is cut.
        blocks: whether foreign parts are taken to stand side by side.
    """

    pairs: int = 0
    parts: int = 0
    told: float = float("nan")
    cut: float = -np.inf
    lost: float = 0.0
    caught: float = 0.0
    foreign: float = 0.0
    line: Line | None = None
    blocks: bool = False

    def keep(self, scored: Scored) -> Bools:
        """Return ``(m,)`` which parts stay; one that cannot be compared with its other side does."""
        if self.line is None:
            return np.ones(len(scored.relevance), dtype=bool)
        return ~(self.line(scored.features(self.blocks)) < self.cut) | np.isnan(scored.relevance)


def spoil(scored: Scored, blocks: bool, seed: int, strangers: Scored | None = None) -> tuple[Scored, Bools, Ints]:
    """Return pairs of the bank with parts of others planted among their own; which parts are planted, and in whose.

    Args:
        scored: a sample, whose first pairs are the bank's.
        blocks: plant all parts of another pair side by side, or a single one.
        seed: of the draw.
        strangers: parts of other modalities' pairs, beside the same bank: each pair gets one of them, too.
    """
    together = scored if strangers is None else scored.joined(strangers)
    rounds = [False] * _ROUNDS + [True] * (strangers is not None and len(strangers.owner) > 0)
    rng = np.random.default_rng(seed)
    counts = np.bincount(scored.owner)
    starts, there = np.cumsum(counts) - counts, np.flatnonzero(counts)
    rows: list[Ints] = []
    relevance: list[npt.NDArray[Any]] = []
    planted: list[Bools] = []
    places: list[int] = []
    for strange, place in product(rounds, range(min(scored.across.shape[1], len(counts)))):
        donor = int(rng.choice(there[there != place]))
        mine, theirs = (np.arange(counts[one]) + starts[one] for one in (place, donor))
        if strange:
            theirs = rng.integers(len(scored.owner), len(together.owner), 1)
        # What is as close to this pair as to its own is its own, or says the same.
        near = np.abs(together.across[theirs, place] - together.relevance[theirs]) < _SAME
        if together.vectors is not None and len(mine):
            alike = _alike(together.vectors[theirs], together.vectors[mine])
            near |= np.nanmax(alike, axis=1, initial=-1) > 1 - _SAME
        theirs = theirs[~near] if blocks else rng.permutation(theirs[~near])[:1]
        if len(mine) and len(theirs):
            # Another pair's data come before or behind, a single part anywhere.
            at = int(rng.integers(2)) * len(mine) if blocks else int(rng.integers(len(mine) + 1))
            foreign = np.insert(np.zeros(len(mine), dtype=bool), at, np.ones(len(theirs), dtype=bool))
            rows.append(np.insert(mine, at, theirs))
            relevance.append(np.where(foreign, together.across[rows[-1], place], together.relevance[rows[-1]]))
            planted.append(foreign)
            places.append(place)
    if not places:
        nobody = np.zeros(0, dtype=np.int64)
        nothing: Floats = np.zeros((0, scored.across.shape[1]))
        return Scored(np.zeros(0), nobody, nothing), np.zeros(0, dtype=bool), nobody
    sizes = list(map(len, rows))
    taken = np.concatenate(rows)
    vectors = None if together.vectors is None else together.vectors[taken]
    made = Scored(np.concatenate(relevance), np.repeat(np.arange(len(sizes)), sizes), together.across[taken], vectors)
    return made, np.concatenate(planted), np.repeat(places, sizes)


def _alike(left: Vectors, right: Vectors) -> Floats:
    found: Floats = np.einsum("id,jd->ij", left, right, dtype=np.float64)
    return found


def fit(scored: Scored, blocks: bool, lost: float, seed: int, strangers: Scored | None = None) -> Standard:
    """Learn to tell own parts from planted ones, and where to cut.

    Args:
        scored: a sample of pairs as they are, whose first ones are the bank's.
        blocks: see `spoil`.
        lost: the share of own parts that may be cut, at the most.
        seed: of what is planted.
        strangers: see `spoil`.
    """
    counts = np.bincount(scored.owner)
    nothing = Standard(int((counts > 0).sum()), len(scored.relevance))
    if nothing.pairs < FEWEST:
        return nothing
    spoilt, planted, places = spoil(scored, blocks, seed, strangers)
    there = ~np.isnan(spoilt.relevance)
    mine, theirs = there & ~planted, there & planted
    if min(mine.sum(), theirs.sum()) < FEWEST:
        return nothing
    # What stands alone cannot be cut. Where hardly any part stands beside others, own ones do beside planted ones.
    several = (counts[scored.owner] > 1) & ~np.isnan(scored.relevance)
    alone, own_folds = several.sum() < 2 * FEWEST, scored.owner[several] % _FOLDS
    untouched = None if alone else scored.features(blocks)[several]
    made = _Made(spoilt.features(blocks), places % _FOLDS, mine, theirs, untouched, own_folds)
    tried = [made.by(columns) for columns in BY]
    told = [one for one in tried if one.told - _SURE * chance(len(one.own), len(one.planted)) >= TOLD]
    if not told:
        return replace(nothing, told=max(one.told for one in tried))
    # Each is a bound from above, and the looser the less its scores tell; the least one may be too low by chance.
    bounds = [wrong_at_most(one.untouched, one.planted) for one in told]
    counts_by = float(np.clip((min(bounds) - HARMLESS[0]) / (HARMLESS[1] - HARMLESS[0]), 0, 1))
    shares = [counts_by * min(bound, _LOOSE * min(bounds)) for bound in bounds]
    best, *more = (
        one.standard(replace(nothing, foreign=share, blocks=blocks), lost)
        for one, share in zip(told, shares, strict=True)
    )
    for one in more:  # by more features only where they catch more
        if one.caught > best.caught + _BETTER:
            best = one
    return best


BY = ([0], [0, 1, 2, 3], list(range(9)))
"""Columns of the features that are tried: relevance, with what is usual for a part, with what stands beside it."""


@dataclass(frozen=True)
class _Scores:
    """What a line makes of a sample, each part by one that never saw it.

    Attributes:
        line: learnt from all.
        own, planted: scores in spoilt pairs.
        untouched: of own parts where they stand.
    """

    line: Line
    own: Floats
    planted: Floats
    untouched: Floats

    @property
    def told(self) -> float:
        """How often an own part scores above one that was planted."""
        return separation(self.own, self.planted)

    def standard(self, nothing: Standard, lost: float) -> Standard:
        """Return where to cut: as high as no more of the own parts goes than may, beside what foreign ones explain."""
        foreign, ordered = nothing.foreign, np.sort(self.untouched)
        may = lost * (1 - foreign) + foreign * np.searchsorted(np.sort(self.planted), ordered) / len(self.planted)
        # Of one more than there are: the next own part may lie anywhere between those of the sample.
        fits = np.flatnonzero(np.arange(1, len(ordered) + 1) <= may * (len(ordered) + 1))
        cut = float(ordered[min(int(fits.max(initial=-1)) + 1, len(ordered) - 1)])
        gone, caught = (float((values < cut).mean()) for values in (ordered, self.planted))
        own = max(0.0, (gone - foreign * caught) / (1 - foreign)) if foreign < 1 else 0.0
        return replace(nothing, told=self.told, cut=cut, lost=own, caught=caught, line=self.line)


@dataclass(frozen=True)
class _Made:
    """Features to learn from.

    Attributes:
        features, folds: ``(k, f)`` and ``(k,)`` of parts in spoilt pairs.
        mine, theirs: ``(k,)`` which of them are own and which planted.
        untouched, own_folds: of own parts where they stand; None: those in spoilt pairs stand for them.
    """

    features: Floats
    folds: Ints
    mine: Bools
    theirs: Bools
    untouched: Floats | None
    own_folds: Ints

    def by(self, columns: Sequence[int]) -> _Scores:
        """Learn from some of the features, as if the others were unknown."""
        unknown = np.full(self.features.shape[1], np.nan)
        unknown[list(columns)] = 0.0
        own, planted = ((self.features + unknown)[rows] for rows in (self.mine, self.theirs))
        lines, kept, made = cross_fit(own, self.folds[self.mine], planted, self.folds[self.theirs], _FOLDS)
        untouched = kept if self.untouched is None else by_fold(lines, self.untouched + unknown, self.own_folds)
        return _Scores(Line.fit(own, planted), kept, made, untouched)


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
        standards = {
            name: {**asdict(one), "line": one.line and one.line.as_json()}
            for name, one in sorted(self.standards.items())
        }
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
            standards = {
                name: Standard(**{**values, "line": values["line"] and Line.of_json(values["line"])})
                for name, values in about["standards"].items()
            }
            return cls(standards, banks, about["phrases"])


@lru_cache(maxsize=4)
def standards_of(path: str, digest: str) -> Standards:
    """Return the standards in a file; ``digest`` of its bytes, so that one that was written anew is read anew."""
    return Standards.load(Path(path))

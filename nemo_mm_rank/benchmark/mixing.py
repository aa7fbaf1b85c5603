"""A mix by search: small models trained on blends of many mixes, a regression over what came of them, a few rounds.

The scheme is CLIMB's (Diao et al. 2025, arXiv 2504.13161), over pools, modalities, types of pairs, or clusters.
Mixes are drawn, each is filled with the best-ranked pairs of every group and learnt from, and a regression says which
are worth trying next; what it takes for the best is compared with the pool's own mix and with a uniform one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import yaml
from pydantic import Field
from rich.console import Console

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.benchmark.blends import Blend, Cost
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.source import leaks
from nemo_mm_rank.benchmark.training import VALIDATION, train_all
from nemo_mm_rank.config import Budget, Config, EngineSettings, Pools, Settings
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine, using
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import write_sealed, write_table, write_text
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.measures.statistics import Difference, apportion, paired_difference
from nemo_mm_rank.mix import type_of
from nemo_mm_rank.quality.operators import DATA_KEY
from nemo_mm_rank.ranking.candidates import GROUP, Candidates, Groups
from nemo_mm_rank.ranking.variety import kmeans
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import gather
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, digest
from nemo_mm_rank.schema import ANNOTATION, DATA, FUSED, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import live
from nemo_mm_rank.vectors import products

TRACE, QUOTAS, RESULT, CLUSTERS = "trace.parquet", "quotas.yaml", "mix.json", "clusters.parquet"
FOUND, OWN, UNIFORM = "found", "the pool's own", "uniform"
_SAMPLED = 100_000
"""Most pairs that clusters are made from."""


class SearchSettings(Settings):
    """How mixes are drawn."""

    rounds: int = Field(3, ge=1)
    draws: int = Field(16, ge=2, description="Number of mixes that are tried in a round.")
    seed: int = Field(0, ge=0)


class MixConfig(Settings):
    """A whole search for a mix."""

    run: str = Field(description="Folder of a finished run.")
    target: Pools = Field(
        min_length=1, description="Pairs that the mix should serve: the trained models are evaluated on them."
    )
    by: Literal["modality", "pool", "type", "cluster"] = Field(
        "modality", description="What is mixed; cluster: groups of pairs whose fused embeddings lie near each other."
    )
    clusters: int = Field(8, ge=2, description="Number of clusters, where clusters are mixed.")
    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.2))
    search: SearchSettings = Field(default_factory=SearchSettings)
    seeds: int = Field(3, ge=2, description="Number of trainings of each mix that is compared at the end.")
    downstream: SmallSettings = Field(default_factory=SmallSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    output: str = "nemo-mm-rank-mix"


Loss = Callable[[Sequence[Floats], int], Floats]
"""Mixes ``(g,)`` and a seed in, ``(m,)`` losses out, the lower the better."""


@dataclass(frozen=True)
class Trace:
    """What was tried.

    Attributes:
        mixes: ``(t, g)`` shares as they were filled.
        losses: ``(t,)``.
        rounds: ``(t,)`` from 1.
        best: ``(g,)`` the mix that the regression takes for the best.
    """

    mixes: Floats
    losses: Floats
    rounds: Ints
    best: Floats


def search(loss: Loss, own: Floats, most: Floats, settings: SearchSettings) -> Trace:
    """Find the mix of the least loss.

    Args:
        loss: measures mixes.
        own: ``(g,)`` the pool's shares.
        most: ``(g,)`` largest share that each group has pairs for.
        settings: rounds and draws.

    Raises:
        UserError: there is nothing to mix.
    """
    if len(own) < 2:
        raise UserError(
            "mix: the pool has one group only, and a mix needs at least two; choose another grouping with --by"
        )
    rng = np.random.default_rng([settings.seed, 21])
    tried, losses, rounds = np.zeros((0, len(own))), np.zeros(0), np.zeros(0, dtype=np.int64)
    for number in range(1, settings.rounds + 1):
        if number == 1:
            fresh = _spread(_draw(rng, own, most, 2048), settings.draws)
        else:
            # Half of what is promising, half of it near to the best so far: where the regression is wrong shows there.
            fit = Regression.of(tried, losses)
            centre = tried[np.argmin(fit(tried))]
            wide, near = _draw(rng, own, most, 4096), _within(rng.dirichlet(1 + 60 * centre, 4096), most)
            half = settings.draws // 2
            fresh = np.concatenate([_best(fit, wide, settings.draws - half), _best(fit, near, half)])
        found = loss(list(fresh), settings.seed)
        tried, losses = np.concatenate([tried, fresh]), np.concatenate([losses, found])
        rounds = np.concatenate([rounds, np.full(len(fresh), number)])
    fit = Regression.of(tried, losses)
    centre = tried[np.argmin(fit(tried))]
    for concentration in (30, 300, 3000):
        near = np.concatenate([centre[None], _within(rng.dirichlet(1e-3 + concentration * centre, 4096), most)])
        centre = near[np.argmin(fit(near))]
    return Trace(tried, losses, rounds, centre)


@dataclass(frozen=True)
class Regression:
    """A ridge regression of second degree over shares, its ridge chosen by leaving one out.

    Mixes of much loss count less: what is looked for is where the least is, and far from it losses go their own way.
    """

    weights: Floats
    mean: float

    @classmethod
    def of(cls, mixes: Floats, losses: Floats) -> Regression:
        """Fit it to ``(t, g)`` mixes and ``(t,)`` losses."""
        excess = losses - losses.min()
        counts = 1 / (1 + excess / max(float(np.median(excess)), 1e-12))
        mean = float((counts**2 * losses).sum() / (counts**2).sum())
        x, y = counts[:, None] * _features(mixes), counts * (losses - mean)
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        best, least = np.zeros(x.shape[1]), np.inf
        for ridge in 10.0 ** np.arange(-8, 2):
            shrink = s**2 / (s**2 + ridge)
            fitted = u @ (shrink * (u.T @ y))
            leverage = np.minimum((u**2 * shrink).sum(1), 1 - 1e-6)
            error = float((((y - fitted) / (1 - leverage)) ** 2).mean())
            if error < least:
                best, least = vt.T @ (s / (s**2 + ridge) * (u.T @ y)), error
        return cls(best, mean)

    def __call__(self, mixes: Floats) -> Floats:
        """Return ``(t,)`` predicted losses."""
        predicted: Floats = _features(mixes) @ self.weights + self.mean
        return predicted


def _features(mixes: Floats) -> Floats:
    left, right = np.triu_indices(mixes.shape[1])
    # Shares sum to 1, so products of two span what is constant and linear as well. A learner that lacks something
    # altogether loses much by it: roots are steep there.
    return np.concatenate([np.sqrt(mixes), mixes[:, left] * mixes[:, right]], axis=1)


def _draw(rng: np.random.Generator, own: Floats, most: Floats, count: int) -> Floats:
    """Draw mixes: half of them anywhere, half about the pool's own."""
    anywhere = rng.dirichlet(np.ones(len(own)), count // 2)
    about = rng.dirichlet(len(own) * own + 1e-3, count - count // 2)
    return _within(np.concatenate([anywhere, about]), most)


def _within(mixes: Floats, most: Floats) -> Floats:
    """Lower shares that there are no pairs for; what is left over goes to the others, by their shares and room."""
    mixes = np.maximum(mixes, 1e-9)
    mixes = np.minimum(mixes / mixes.sum(1, keepdims=True), most)
    for _ in range(len(most)):
        left = 1 - mixes.sum(1, keepdims=True)
        room = np.where(mixes < most - 1e-12, mixes, 0.0)
        mixes = np.minimum(mixes + left * room / np.maximum(room.sum(1, keepdims=True), 1e-12), most)
    return mixes


def _spread(mixes: Floats, count: int) -> Floats:
    """Return so many of the mixes, each far from those before it."""
    chosen = [0]
    distance = np.full(len(mixes), np.inf)
    for _ in range(min(count, len(mixes)) - 1):
        distance = np.minimum(distance, ((mixes - mixes[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(np.argmax(distance)))
    return mixes[chosen]


def _best(fit: Regression, mixes: Floats, count: int) -> Floats:
    """Return so many of the most promising mixes, spread over the best tenth."""
    order = np.argsort(fit(mixes), kind="stable")
    return _spread(mixes[order[: max(count, len(mixes) // 10)]], count)


@dataclass(frozen=True)
class Mixed:
    """What a search has found.

    Attributes:
        folder: with `TRACE`, `QUOTAS`, `RESULT` and, where clusters were mixed, `CLUSTERS`.
        groups: names.
        mixes: name -> ``(g,)`` shares: the one that was found, the pool's own, uniform.
        losses: name -> mean log perplexity on the target, over the seeds.
        against: name -> the difference of the found mix to it, of log perplexity, paired over the seeds.
        tried: mixes that were learnt from.
        budget: pairs of a blend.
    """

    folder: Path
    groups: tuple[str, ...]
    mixes: dict[str, Floats]
    losses: dict[str, float]
    against: dict[str, Difference]
    tried: int
    budget: int

    def print(self, console: Console) -> None:
        """Print the mixes, and how they compare."""
        for line in self.lines():
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def lines(self) -> list[str]:
        """Return what `print` prints."""
        wide = max(map(len, (*self.groups, *self.mixes)))
        text = [f"{self.tried} mixes were tried at {self.budget:,} pairs; shares, and perplexity on the target"]
        text.append("  ".join([" " * wide, *(name.rjust(max(7, len(name))) for name in self.groups), "perplexity"]))
        for name, mix in self.mixes.items():
            shares = (f"{share:.3f}".rjust(max(7, len(g))) for g, share in zip(self.groups, mix, strict=True))
            text.append("  ".join([name.ljust(wide), *shares, f"{np.exp(self.losses[name]):10.2f}"]))
        for name, difference in self.against.items():
            low, high = difference.low, difference.high
            says = "better" if high < 0 else "worse" if low > 0 else "no difference beyond the noise"
            text.append(
                f"found against {name}: {difference.value:+.4f} in log perplexity [{low:+.4f}, {high:+.4f}]: {says}"
            )
        text.append(f"quotas: {self.folder / QUOTAS} (nemo-mm-rank curate --config it, or rank with ranking.quotas)")
        return text


def find_mix(
    config: MixConfig, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> Mixed:
    """Search for the mix of a run's pool that serves a target best; what was trained before is not trained again.

    Pairs of the pool with the id, the annotation or the text of one of the target take no part.

    Args:
        config: the whole search.
        console: where progress goes.
        engine: where models are trained; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a search on another run that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    run = RunFolder.at(config.run)
    state = State.load(run)
    claim = Claim("mix", config.target, [config.run], overwrite)
    folder = claim.check(config.output)
    reporter = Reporter(console or SafeConsole(quiet=True))
    with using(engine, config.engine) as held, claim.held(folder):
        return _Search(config, run, state, folder, held, reporter).find()


@dataclass
class _Search:
    config: MixConfig
    run: RunFolder
    state: State
    folder: Path
    engine: Engine
    reporter: Reporter

    def find(self) -> Mixed:
        config = self.config
        settings = self.run.load_config().model_copy(update={"engine": config.engine})
        job = Job(settings, RunFolder(self.folder), self.engine, self.reporter)
        target = job.take_in(config.target, self.folder / "target").shards
        budget, names, ids = self._groups(target)
        sizes = np.array([len(group) for group in ids])
        natural, most = sizes / sizes.sum(), np.minimum(sizes / budget, 1.0)
        measure = _Measure(config, settings, self.folder, self.engine, self.reporter, self.state.pool(self.run), target)
        measure.fill(budget, ids)
        trace = search(measure, natural, most, config.search)
        uniform = _within(np.full((1, len(natural)), 1 / len(natural)), most)[0]
        mixes = {FOUND: trace.best, OWN: natural, UNIFORM: uniform}
        seeds = range(config.seeds)
        values = {name: np.array([measure([mix], seed)[0] for seed in seeds]) for name, mix in mixes.items()}
        against = {name: paired_difference(values[FOUND], values[name]) for name in (OWN, UNIFORM)}
        losses = {name: float(found.mean()) for name, found in values.items()}
        self._write(names, trace, mixes, values)
        return Mixed(self.folder, names, mixes, losses, against, len(trace.losses), budget)

    def _groups(self, target: ShardStore) -> tuple[int, tuple[str, ...], list[list[str]]]:
        """Return the budget, and the names of the groups with their pairs, best first, without those of the target."""
        shards, scoring = self.state.scored(self.run), self.state.scored_by(self.run)
        columns = [PAIR_ID, MODALITY, DATA, ANNOTATION]
        pool, held_out = (_without_prints(store.table(columns)) for store in (shards.pool, target))
        gone = set(leaks(pool, held_out)[PAIR_ID].to_pylist())
        if self.config.by == "cluster":
            names = self._clusters()
        else:
            counts = scoring.counts[POOL if self.config.by == "pool" else MODALITY]
            names = sorted({type_of(name) if self.config.by == "type" else name for name in counts})
        groups = Groups.of(self._quota_by, dict.fromkeys(names, 0.0))
        sizes = np.full(len(groups.names), scoring.ranked, dtype=np.int64)
        candidates = Candidates.collect(scoring, shards, groups, sizes, 0, -np.inf)
        ids = np.array(candidates.rows[PAIR_ID].to_pylist(), dtype=object)
        usable = np.array([pair_id not in gone for pair_id in ids], dtype=bool)
        by_group = {name: ids[usable & (candidates.codes == code)].tolist() for code, name in enumerate(groups.names)}
        by_group = {name: pairs for name, pairs in by_group.items() if pairs}
        budget = self.config.budget.pairs(sum(map(len, by_group.values())))
        return budget, tuple(by_group), list(by_group.values())

    @property
    def _quota_by(self) -> str:
        return str((self.folder / CLUSTERS).absolute()) if self.config.by == "cluster" else self.config.by

    def _clusters(self) -> list[str]:
        """Write which pair is in which cluster of fused embeddings, and return their names.

        The centroids come from a bounded sample; the pairs of the pool then go to the nearest one, shard by shard.
        """
        count, shards = self.config.clusters, self.state.open(self.run)
        _, held = gather(shards, [], [FUSED], _SAMPLED, self.config.search.seed)
        sample = held[FUSED].values[held[FUSED].valid] if FUSED in held else torch.empty(0, 1)
        if len(sample) < count:
            raise UserError(f"mix: {count:,} clusters of {len(sample):,} embedded pairs; ask for fewer with --clusters")
        unit = torch.nn.functional.normalize(sample.float(), dim=1).numpy()
        _, centroids = kmeans(unit, count, self.config.search.seed)
        centres = torch.from_numpy(centroids)
        half = (centres * centres).sum(1) / 2
        tables = []
        for _, _, table in live(shards, [PAIR_ID, FUSED]):
            fused = frames.vectors(frames.from_table(table), FUSED)
            for rows, cosines in products(fused.values, centres):
                valid = fused.valid[rows].numpy()
                nearest = (cosines - half).argmax(1).numpy()[valid]
                ids = table[PAIR_ID].slice(rows.start, len(valid)).filter(pa.array(valid))
                tables.append(pa.table({PAIR_ID: ids, GROUP: [f"cluster {number}" for number in nearest]}))
        found = pa.concat_tables(tables)
        write_table(self.folder / CLUSTERS, found)
        return sorted(set(found[GROUP].to_pylist()))

    def _write(self, names: tuple[str, ...], trace: Trace, mixes: dict[str, Floats], values: dict[str, Floats]) -> None:
        columns = {name: trace.mixes[:, place] for place, name in enumerate(names)}
        write_table(self.folder / TRACE, pa.table({"round": trace.rounds, **columns, "log_perplexity": trace.losses}))
        quotas = _rounded(mixes[FOUND])
        shares = {name: share for name, share in zip(names, quotas, strict=True) if share}
        text = yaml.safe_dump({"ranking": {"quota_by": self._quota_by, "quotas": shares}}, sort_keys=False)
        write_text(self.folder / QUOTAS, text)
        facts = {
            name: {"shares": dict(zip(names, mix.tolist(), strict=True)), "log_perplexity": values[name].tolist()}
            for name, mix in mixes.items()
        }
        settings = self.config.model_dump(mode="json", exclude={"engine", "output"})
        write_sealed(self.folder / RESULT, {"config": settings, "mixes": facts})


def _rounded(mix: Floats) -> list[float]:
    """Return shares of three decimals that sum to 1."""
    return [count / 1000 for count in apportion(1000, mix, [1000] * len(mix)).tolist()]


def _without_prints(table: pa.Table) -> pa.Table:
    return table.append_column(DATA_KEY, pa.nulls(table.num_rows, pa.uint64()))


@dataclass
class _Measure:
    """Fills mixes with the best pairs of every group, and trains on them."""

    config: MixConfig
    settings: Config
    folder: Path
    engine: Engine
    reporter: Reporter
    pool: ShardStore
    target: ShardStore

    def fill(self, budget: int, ids: list[list[str]]) -> None:
        """Take what mixes are filled with: ``ids`` of every group, best first."""
        self._budget, self._ids = budget, ids

    def __call__(self, mixes: Sequence[Floats], seed: int) -> Floats:
        """Return ``(m,)`` log perplexities on the target."""
        blends = []
        for mix in mixes:
            counts = apportion(self._budget, mix, [len(group) for group in self._ids])
            chosen = [pair_id for own, count in zip(self._ids, counts.tolist(), strict=True) for pair_id in own[:count]]
            name = f"mix-{digest(sorted(chosen))[:12]}"
            blend = Blend.of(name, seed, chosen, Cost())
            blend.save(self.folder / "blends", name)
            blends.append((blend, name, "pool"))
        parts = {"pool": self.pool, VALIDATION: self.target}
        settings = self.config.downstream
        trained = train_all(blends, parts, settings, self.settings, self.folder, self.engine, self.reporter)
        return np.array([np.log(trained[blend.strategy, seed].values[-1]) for blend, _, _ in blends])

"""The strategies, all of one interface: a pool and its scores in, a blend of exactly the budget out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.benchmark.settings import BenchmarkConfig, Strategy
from nemo_mm_rank.config import Budget, Config, PoolSource, RankingSettings, parse
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.measures.selection import Labels, selection
from nemo_mm_rank.measures.statistics import apportion
from nemo_mm_rank.projection.step import Projection
from nemo_mm_rank.quality.operators import (
    BasicStep,
    ColumnsStep,
    OperatorSettings,
    OthersSettings,
    OthersStep,
    column,
    shared_spaces,
    steps,
)
from nemo_mm_rank.ranking import rank
from nemo_mm_rank.ranking.calibrate import Moments
from nemo_mm_rank.ranking.query_scores import PREFIX, component
from nemo_mm_rank.run import curation, ecodatum, traditional
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import Fits
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import at_work
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import DATA_SPANS, ERROR, MODALITY, PAIR_ID, POOL, annotation_column
from nemo_mm_rank.shards import live
from nemo_mm_rank.steps import Step, columns_added
from nemo_mm_rank.topk import top_k

_NOT_EXPERTS = ("fused", "annotation")


@dataclass(frozen=True)
class Bench:
    """What every strategy chooses from.

    Attributes:
        config: of the benchmark.
        folder: of the benchmark.
        pool: the manifest that is chosen from.
        shards: the same in canonical columns.
        budget: pairs of a blend.
        labels: what is known of the pairs.
        engine: where the work is done.
        console: where progress goes.
        overwrite: whether runs on other pools may be replaced.
    """

    config: BenchmarkConfig
    folder: Path
    pool: PoolSource
    shards: ShardStore
    budget: int
    labels: Labels
    engine: Engine
    console: Console
    overwrite: bool = False

    @cached_property
    def pairs(self) -> pa.Table:
        """``pair_id, modality, pool`` of all pairs, in the pool's order."""
        return self.shards.table([PAIR_ID, MODALITY, POOL])

    def run_config(self, sns: str, seed: int) -> Config:
        """Return the configuration of the main job on the pool."""
        fields = set(Config.model_fields)
        values: dict[str, Any] = self.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        values = {name: value for name, value in values.items() if name in fields}
        return parse(
            Config,
            {
                **values,
                "pools": [self.pool.model_dump(mode="json")],
                "budget": self.budget,
                "seed": seed,
                "output": str(self.run(sns)),
                "sns": {**values.get("sns", {}), "mode": sns},
            },
        )

    def run(self, sns: str) -> Path:
        """Return the folder of the main job's run, embedded once and ranked for every seed."""
        return self.folder / "runs" / sns

    def curate(self, sns: str, seed: int) -> curation.Result:
        """Run the main job, or what is left of it."""
        return curation.curate(self.run_config(sns, seed), self.console, self.engine, self.overwrite)

    def trimmed(self, sns: str) -> ShardStore:
        """Return the pool as a run has trimmed it."""
        folder = RunFolder.at(self.run(sns))
        shards = State.load(folder).open(folder)
        for last in range(1, len(shards.stages) + 1):
            stages = ShardStore(shards.stages[:last], shards.count)
            if DATA_SPANS in stages.columns():
                return stages
        raise UserError(f"{folder.path}: no pair was trimmed in this run; run curate with --sns")


def choose(bench: Bench, strategy: Strategy, seed: int) -> list[str]:
    """Return the ids of exactly ``bench.budget`` pairs, best first.

    Raises:
        UserError: the strategy finds fewer, or cannot be had here.
    """
    pair_ids = _CHOICES.get(strategy, _ranked)(bench, strategy, seed)
    if len(pair_ids) != bench.budget:
        raise UserError(f"{strategy}: {len(pair_ids):,} pairs where the budget is {bench.budget:,}")
    return pair_ids


def _ranked(bench: Bench, strategy: Strategy, seed: int) -> list[str]:
    """Rank as the main job does; the seed is that of the projection."""
    return _ids(bench.curate(strategy.sns, seed).blend[PAIR_ID])


def _ranked_quality(bench: Bench, _: Strategy, seed: int) -> list[str]:
    """Rank as the main job does, with EcoDatum's quality as one more condition."""
    _ecodatum(bench, Strategy.ECODATUM, seed)
    bench.curate("off", seed)
    changes = {"ranking": ecodatum.as_condition(bench.config.ranking, bench.run("ecodatum"))}
    trust = Trust(run=True)  # it has just been made here, by the same configuration
    return _ids(curation.rank(bench.run("off"), changes, bench.console, bench.engine, trust).blend[PAIR_ID])


def _varied(bench: Bench, strategy: Strategy, seed: int) -> list[str]:
    """Rank as the main job does, and choose more than the top; the seed is that of clusters and draws, too."""
    bench.curate("off", seed)
    asked = bench.config.ranking.select.model_dump(exclude_defaults=True)
    changes = {"ranking": {"select": {**asked, "how": strategy.select, "seed": seed}}}
    trust = Trust(run=True)  # it has just been made here, by the same configuration
    return _ids(curation.rank(bench.run("off"), changes, bench.console, bench.engine, trust).blend[PAIR_ID])


def _random(bench: Bench, _: Strategy, seed: int) -> list[str]:
    """Draw any pairs, as they lie in the pool."""
    rows = np.random.default_rng([seed, 0]).permutation(bench.pairs.num_rows)[: bench.budget]
    return _ids(bench.pairs[PAIR_ID].take(pa.array(rows)).to_pylist())


def _stratified(bench: Bench, _: Strategy, seed: int) -> list[str]:
    """Draw from every group its share."""
    settings = bench.config.stratified
    rng = np.random.default_rng([seed, 1])
    if settings.by == "cluster":
        ids, codes = _clusters(bench, settings.clusters, seed)
    else:
        ids = bench.pairs[PAIR_ID].to_pylist()
        names = bench.pairs[MODALITY if settings.by == "modality" else POOL].to_pylist()
        codes = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1]
    order = rng.permutation(len(codes))
    sizes = np.bincount(codes)
    weights = sizes.astype(np.float64) if settings.shares == "proportional" else np.ones(len(sizes))
    counts = apportion(bench.budget, weights, sizes.astype(np.int64))
    place = np.empty(len(order), dtype=np.int64)
    by_group = order[np.argsort(codes[order], kind="stable")]
    place[by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return [ids[row] for row in order if place[row] < counts[codes[row]]]


def _clusters(bench: Bench, count: int, seed: int) -> tuple[list[str], Ints]:
    """Return the ids of the embedded pairs, and their cluster by k-means over the annotations' embeddings."""
    from scipy.cluster.vq import kmeans2

    folder = RunFolder.at(bench.curate("off", bench.config.seeds[0]).folder)
    shards = State.load(folder).open(folder)
    column = annotation_column(bench.config.anchor)
    frame = frames.from_table(shards.table([PAIR_ID, column]))
    vectors = frames.vectors(frame, column)
    valid = vectors.valid.numpy()
    ids = [str(pair_id) for pair_id, ok in zip(frames.strings(frame, PAIR_ID), valid, strict=True) if ok]
    _, codes = kmeans2(vectors.values.numpy()[valid].astype(np.float64), count, minit="++", seed=seed, missing="warn")
    return ids, np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _traditional(bench: Bench, _: Strategy, __: int) -> list[str]:
    """Fill the budget by the text-only baseline, which knows no seed."""
    config = traditional.TraditionalConfig(
        pools=(bench.pool,),
        budget=Budget(count=bench.budget),
        output=str(bench.run("traditional")),
        traditional=bench.config.traditional,
        rows_per_shard=bench.config.rows_per_shard,
        shards=bench.config.shards,
    )
    return _ids(traditional.curate(config, bench.console, bench.engine, bench.overwrite).blend[PAIR_ID])


def _best_expert(bench: Bench, _: Strategy, __: int) -> list[str]:
    """Rank by one expert's cosine with the queries alone: the best one's.

    Which one is best, the truth says (by average precision), which no user has: the baseline is that much better than
    what one would find. Where nothing was planted and nothing is known of topics, it is the one with the best Recall@10
    of its own in the projection's table.
    """
    folder = RunFolder.at(bench.curate("off", bench.config.seeds[0]).folder)
    scored = State.load(folder).scored(folder)
    cosines = [name for name in scored.columns() if name.startswith(PREFIX)]
    experts = sorted({component(name) for name in cosines}.difference(_NOT_EXPERTS))
    if not experts:
        raise UserError(f"{Strategy.EXPERT}: no expert shares a space with the queries; leave the strategy out")
    blends = {name: _by_one(bench, scored, name, cosines) for name in experts}
    if bench.labels.wanted < len(bench.labels.pair_ids):
        return max(blends.values(), key=lambda ids: selection(ids, bench.labels)["average_precision"])
    metrics = Projection.load(folder.path / State.load(folder).projection).metrics["mean"]
    return blends[max(experts, key=lambda name: metrics.get(f"emb_data__{name}", {}).get("recall_at_10", 0.0))]


def _by_one(bench: Bench, scored: ShardStore, expert: str, cosines: Sequence[str]) -> list[str]:
    columns = [name for name in cosines if component(name) == expert]
    settings = RankingSettings(weights={expert: 1.0}, conditions={})
    return _ids(rank(scored, columns, settings, Budget(count=bench.budget)).chosen[PAIR_ID].to_pylist())


def _ecodatum(bench: Bench, _: Strategy, __: int) -> list[str]:
    """Fill the budget by EcoDatum's ensemble, which knows neither query nor seed, from what ranked has embedded."""
    run = bench.curate("off", bench.config.seeds[0]).folder
    config = ecodatum.EcoDatumConfig(
        run=str(run),
        budget=Budget(count=bench.budget),
        output=str(bench.run("ecodatum")),
        trust_run=True,  # it has just been made here, by the same configuration
        media=bench.config.media,
        models=bench.config.models,
        **dict(bench.config.ecodatum),
    )
    return _ids(ecodatum.curate(config, bench.console, bench.engine, bench.overwrite).blend[PAIR_ID])


def _by_agreement(bench: Bench, strategy: Strategy, _: int) -> list[str]:
    """Take the pairs whose two sides agree best: DataComp's CLIP-score fraction, or negCLIPLoss.

    In the space of every expert that shares one with text; a pair's score is the mean of its standard deviations above
    the pool's mean, over the spaces that it is in. No query is known. (By a text-based expert, agreement is what SIEVE
    measures: of the annotation with a description of the data.)
    """
    folder = RunFolder.at(bench.curate("off", bench.config.seeds[0]).folder)
    state, models = State.load(folder), State.load(folder).specs(folder)
    shards, spaces = state.open(folder), shared_spaces(bench.config.experts, models)
    if not spaces:
        raise UserError(f"{strategy}: no expert shares a space with text; leave the strategy out")
    step: Step = ColumnsStep(OperatorSettings(experts=spaces))
    if strategy == Strategy.NEGCLIPLOSS:
        batches = bench.config.negcliploss.model_dump()
        operators = {name: OthersSettings(**space.model_dump(), **batches) for name, space in spaces.items()}
        fits = Fits(folder.fitted, bench.engine, Reporter(bench.console))
        step = OthersStep(fits.others(operators, bench.config.seed, shards))
    tables = []
    for _part, _rows, table in live(shards, [*dict.fromkeys([PAIR_ID, *step.requires])]):
        tables.append(columns_added(step, table).drop_columns([ERROR]).append_column(PAIR_ID, table[PAIR_ID]))
    scores_table = pa.concat_tables(tables)
    columns = [scores_table[name].to_numpy().astype(np.float64) for name in step.provides]
    standings = np.stack([Moments.of(values).standardise(values) for values in columns])
    known = np.isfinite(standings)
    scores = np.where(known, standings, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    scores[~known.any(0)] = -np.inf
    return _ids(scores_table[PAIR_ID].take(pa.array(top_k(scores, bench.budget, scores_table[PAIR_ID]))).to_pylist())


def _datacomp(bench: Bench, _: Strategy, seed: int) -> list[str]:
    """Draw from the pairs that DataComp's basic filter keeps; from the others where those are too few.

    Words and characters are asked of every annotation, sizes of images alone, English where ``ecodatum.operators``
    names a ``language`` file.
    """
    asked = bench.config.ecodatum.operators
    language = asked.language
    images: tuple[Any, ...] = ("resolution", "geometric")
    settings = OperatorSettings(images=images, texts=(), language=language, fingerprints=False)
    basic = BasicStep(english=language is not None)
    config = ecodatum.EcoDatumConfig(pools=(bench.pool,), output=str(bench.run("datacomp")), media=bench.config.media)
    config = config.model_copy(update={name: getattr(bench.config, name) for name in ("rows_per_shard", "shards")})
    with at_work(config, bench.console, bench.engine, bench.overwrite) as job:
        judged = job.take_through([*steps(settings, {}, bench.config.media), basic], config.pool(job).shards)
        table = judged.table([PAIR_ID, *basic.provides, ERROR])
    passed = table[column("datacomp_basic")].fill_null(0).to_numpy() > 0
    order = np.random.default_rng([seed, 2]).permutation(len(passed))
    order = order[np.argsort(~passed[order], kind="stable")]
    return _ids(table[PAIR_ID].take(pa.array(order[: bench.budget])).to_pylist())


def _ids(values: Any) -> list[str]:
    return [str(value) for value in values]


_CHOICES = {
    Strategy.QUALITY: _ranked_quality,
    **{one: _varied for one in Strategy if one.select is not None},
    Strategy.RANDOM: _random,
    Strategy.STRATIFIED: _stratified,
    Strategy.TRADITIONAL: _traditional,
    Strategy.EXPERT: _best_expert,
    Strategy.ECODATUM: _ecodatum,
    Strategy.CLIP_SCORE: _by_agreement,
    Strategy.NEGCLIPLOSS: _by_agreement,
    Strategy.DATACOMP: _datacomp,
}

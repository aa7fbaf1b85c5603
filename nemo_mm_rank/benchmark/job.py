"""The benchmark as a job: strategies and seeds, each kept once it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from nemo_mm_rank.benchmark import measures, tables
from nemo_mm_rank.benchmark.blends import Blend, measured
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.page import FACTS, RESULTS, write_benchmark_report
from nemo_mm_rank.benchmark.settings import BenchmarkConfig, Strategy
from nemo_mm_rank.benchmark.source import Source, prepare
from nemo_mm_rank.benchmark.strategies import Bench, choose
from nemo_mm_rank.benchmark.training import VALIDATION, train_all
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine, SerialEngine, using
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import write_sealed, write_table, write_text
from nemo_mm_rank.io.owned import Claim, refuse_links
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import digest
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.tables import markdown

_FOLDERS = ("demo", "source", "held-out", "validation", "planted", "pool", "blends", "runs", "features", "downstream")
TABLE, COST = "table1.md", "cost.md"


@dataclass(frozen=True)
class Outcome:
    """A finished benchmark.

    Attributes:
        folder: where everything lies.
        results: `measures.SCHEMA`.
        table: what `TABLE` holds.
        cost: what `COST` holds.
    """

    folder: Path
    results: pa.Table
    table: str
    cost: str

    def print(self, console: Console) -> None:
        """Print the tables."""
        console.print(self.table + "\n" + self.cost, highlight=False, markup=False, soft_wrap=True)


def benchmark(
    config: BenchmarkConfig, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> Outcome:
    """Compare strategies; whatever an earlier run in the same folder has finished is taken.

    The folder gets ``results.parquet``, ``table1.md``, ``cost.md``, ``blends/<strategy>-<seed>.parquet`` (``pair_id,
    rank``), ``truth.parquet``, ``leaks.parquet``, ``report.html``, and under ``runs/`` the runs of the main job. The
    same configuration and versions give the same files, but for what says how long things took.

    Args:
        config: the whole benchmark.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a benchmark of other pools, or of other noise, that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    config.register()
    loader.pick_device(config.engine.device)
    loader.check_models(config.models)
    if isinstance(config.downstream, SmallSettings) and isinstance(config.downstream.features, dict):
        loader.check_models({str(modality): spec for modality, spec in config.downstream.features.items()})
    claim = Claim("benchmark", (*config.pools, *config.validation.pools), overwrite=overwrite)
    folder = claim.check(config.output)
    reporter = Reporter(console or SafeConsole(quiet=True))
    with using(engine, config.engine) as held, claim.held(folder):
        return _benchmark(config, folder, held, reporter, overwrite)


def _benchmark(config: BenchmarkConfig, folder: Path, engine: Engine, reporter: Reporter, overwrite: bool) -> Outcome:
    refuse_links(folder, _FOLDERS)
    source = prepare(config, folder, engine, reporter, overwrite)
    budget = config.budget.pairs(source.pairs)
    quiet = SafeConsole(quiet=True)
    bench = Bench(config, folder, source.planted.pool, source.shards, budget, source.labels, engine, quiet, overwrite)
    blends, keys = _choose_all(bench, reporter)
    modes = dict.fromkeys(one.sns for one in config.strategies)
    for mode in modes:
        # Ends with the first seed's ranking in the run's folder, whatever was done last.
        if mode != "off" or any(one.ours and one.sns == mode for one in config.strategies):
            bench.curate(mode, config.seeds[0])
    parts = {"pool": source.shards}
    trimmed = {mode: bench.trimmed(mode) for mode in modes if mode != "off"}
    parts |= {f"sns-{mode}": shards for mode, shards in trimmed.items()}
    parts[VALIDATION] = source.validation
    trained = train_all(
        [(blend, key, _part(blend)) for blend, key in zip(blends, keys, strict=True)],
        parts,
        config.downstream,
        bench.run_config("off", config.seed),
        folder,
        engine,
        reporter,
    )
    modality = dict(zip(bench.pairs[PAIR_ID].to_pylist(), bench.pairs[MODALITY].to_pylist(), strict=True))
    mended = {mode: measures.repaired_pairs(source.originals, shards) for mode, shards in trimmed.items()}
    by_strategy = {str(one): mended[one.sns] for one in config.strategies if one.sns in mended}
    rows = [
        *measures.of_blends(blends, source.labels, modality, config.seeds[0], by_strategy),
        *measures.of_training(trained),
        *measures.of_costs(blends, source.pairs),
    ]
    for strategy in config.strategies:
        if strategy.embeds:
            run = RunFolder.at(bench.run(strategy.sns))
            shards = State.load(run).open(run)
            rows += measures.of_spaces(bench, strategy, shards, config.seeds[0])
    return _write(config, folder, source, budget, blends, measures.table(rows), reporter)


def _part(blend: Blend) -> str:
    mode = Strategy(blend.strategy).sns
    return "pool" if mode == "off" else f"sns-{mode}"


def _choose_all(bench: Bench, reporter: Reporter) -> tuple[list[Blend], list[str]]:
    """Return the blends of all strategies and seeds, and the keys of their files."""
    config, folder = bench.config, bench.folder / "blends"
    pool_keys = [bench.shards.key(part) for part in range(bench.shards.count)]
    settings = {name: value for name, value in config.recorded().items() if name not in _NO_MATTER}
    specific = {name: settings.pop(name) for name in _OWN}
    here = isinstance(bench.engine, SerialEngine)
    blends, keys = [], []
    for strategy in config.strategies:
        about = {**settings, **{name: values for name, values in specific.items() if strategy in _OWN[name]}}
        keyed = [(seed, digest([pool_keys, about, strategy, seed])) for seed in config.seeds]
        earlier = {seed: Blend.load(folder, strategy, seed, key) for seed, key in keyed}
        with reporter.step(f"{strategy}", len(keyed), sum(blend is not None for blend in earlier.values())) as advance:
            for seed, key in keyed:
                blend = earlier[seed]
                if blend is None:
                    spent = folder / f"{strategy}-{seed}.cost.json"
                    with measured(config.cold and seed == config.seeds[0], here, spent, key) as cost:
                        ids = choose(bench, strategy, seed)
                    blend = Blend.of(strategy, seed, ids, cost)
                    blend.save(folder, key)
                    mirror.unlink(spent)
                    advance(1)
                blends.append(blend)
                keys.append(key)
    return blends, keys


_OWN = {
    "stratified": (Strategy.STRATIFIED,),
    "traditional": (Strategy.TRADITIONAL,),
    "ecodatum": (Strategy.ECODATUM, Strategy.QUALITY, Strategy.DATACOMP),
    "negcliploss": (Strategy.NEGCLIPLOSS,),
}
"""Settings that only some strategies know."""

_NO_MATTER = ("strategies", "seeds", "downstream", "bootstrap", "cold", "jsonl")
"""Settings that change nothing of what one strategy chooses under one seed."""


def _write(
    config: BenchmarkConfig,
    folder: Path,
    source: Source,
    budget: int,
    blends: list[Blend],
    results: pa.Table,
    reporter: Reporter,
) -> Outcome:
    facts = {
        "config": config.model_dump(mode="json", by_alias=True, exclude={"engine", "output", "import_from"}),
        "pool": source.planted.pool.path,
        "pairs": source.pairs,
        "wanted": source.labels.wanted,
        "budget": budget,
        "planted": {"counts": source.planted.counts(), "short": [str(one) for one in source.planted.short]},
        "validation": {"pairs": source.held_out, "removed": source.removed, "leaks": len(source.leaks)},
        "blends": {f"{blend.strategy}-{blend.seed}": blend.digest for blend in blends},
        "interrupted": {f"{one.strategy}-{one.seed}": one.cost.interrupted for one in blends if one.cost.interrupted},
    }
    bench = tables.Comparison(tables.Results(results, config.seeds), facts)
    shown = [table for of in (tables.training, tables.selection, tables.mix, tables.geometry) for table in of(bench)]
    table, cost = markdown(shown, "Benchmark", tables.lines(bench)), markdown(tables.cost(bench))
    write_table(folder / RESULTS, results)
    write_text(folder / TABLE, table)
    write_text(folder / COST, cost)
    write_sealed(folder / FACTS, facts)
    try:
        write_benchmark_report(folder)
    except UserError as error:  # the extra is missing: the figures are there all the same
        reporter.say(f"no report: {error}")
    return Outcome(folder, results, table, cost)

"""What a benchmark found, in sections: the verdicts first, then training, selection, mix, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from nemo_mm_rank.benchmark import tables
from nemo_mm_rank.benchmark.measures import POOL
from nemo_mm_rank.benchmark.settings import Strategy
from nemo_mm_rank.benchmark.tables import Comparison, Results
from nemo_mm_rank.config import Query, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_sealed, read_table
from nemo_mm_rank.io.owned import local
from nemo_mm_rank.measures.statistics import mean_interval
from nemo_mm_rank.report import charts, content, page
from nemo_mm_rank.report import overview as of_run
from nemo_mm_rank.report.content import Finding, Section, Tile
from nemo_mm_rank.report.gallery import Blend
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.schema import PAIR_ID
from nemo_mm_rank.tables import Row, Table, counted, share

RESULTS, FACTS = "results.parquet", "benchmark.json"


@dataclass(frozen=True)
class Benchmark(Comparison):
    """What a report reads of a finished benchmark.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Benchmark:
        """Read a benchmark's folder.

        Raises:
            UserError: it is not finished, or a file of it is damaged.
        """
        path = local(folder)
        if not (path / FACTS).exists():
            raise UserError(f"{path}: the benchmark is not finished; start it again")
        facts = read_sealed(path / FACTS)
        return cls(Results(read_table(path / RESULTS), facts["config"]["seeds"]), facts, path)

    @property
    def seeds(self) -> Sequence[int]:
        """In the order of the configuration."""
        return self.results.seeds

    def run(self) -> tuple[str, Path] | None:
        """Return the strategy and the folder of the run whose pairs can be looked at, None where there is none."""
        for name in self.ours:
            path = self.folder / "runs" / Strategy(name).sns
            if (path / "manifest.json").exists():
                return name, path
        return None

    def blend(self, strategy: str) -> list[str]:
        """Return the pairs that a strategy chose under the first seed, best first."""
        table = read_table(self.folder / "blends" / f"{strategy}-{self.seeds[0]}.parquet")
        ids: list[str] = table.sort_by("rank")["pair_id"].to_pylist()
        return ids

    def truth(self) -> pa.Table | None:
        """Return what was planted, None where nothing is known."""
        path = self.folder / "truth.parquet"
        return read_table(path) if path.exists() else None


def title(bench: Benchmark) -> str:
    """Return what the blends were to be about."""
    queries = bench.facts["config"]["queries"]
    return "Benchmark: " + " + ".join(parse(Query, query).label for query in queries if query["weight"] > 0)


def subtitle(bench: Benchmark) -> str:
    """Return what was compared, in a line."""
    return (
        f"{counted(len(bench.strategies), 'strategy', 'strategies')} at a budget of {bench.facts['budget']:,} of "
        f"{bench.facts['pairs']:,} pairs, {counted(len(bench.seeds), 'seed')}"
    )


def overview(bench: Benchmark) -> Section:
    """Return the figures that are looked at first, and the verdicts."""
    pairs, budget = bench.facts["pairs"], bench.facts["budget"]
    tiles = [
        Tile("pool", f"{pairs:,}", "pairs"),
        Tile("budget", f"{budget:,}", share(budget, pairs) + " of the pool"),
        Tile("strategies", str(len(bench.strategies)), f"{len(bench.ours)} are ours"),
        Tile("seeds", str(len(bench.seeds)), ", ".join(map(str, bench.seeds))),
    ]
    if wanted := bench.results.of(POOL, "precision"):
        tiles.insert(
            1, Tile("worth choosing", f"{round(wanted[0] * pairs):,}", f"{share(wanted[0], 1)}: clean, on topic")
        )
    lead = " ".join(tables.lines(bench)[1:])
    return Section("overview", "Verdict", lead, [content.Tiles(tiles), content.Findings(findings(bench))])


def findings(bench: Benchmark) -> list[Finding]:
    """Return what the comparison says, in sentences; what is not separable is called so."""
    verdicts = []
    for measure, name, lower in (("best_perplexity", "held-out perplexity", True), ("precision", "precision", False)):
        verdicts += _verdict(bench, measure, name, lower)
    leaks, held = bench.facts["validation"]["leaks"], bench.facts["validation"]["pairs"]
    if leaks:
        verdicts.append(Finding("warn", f"{counted(leaks, 'pair')} of the pool too near to a validation pair."))
    else:
        verdicts.append(Finding("good", f"No pair of the pool is near to one of the {held:,} validation pairs."))
    if len(bench.seeds) < 3:
        verdicts.append(Finding("warn", f"{counted(len(bench.seeds), 'seed')}: too few to tell strategies apart."))
    return verdicts


def _verdict(bench: Benchmark, measure: str, name: str, lower: bool) -> list[Finding]:
    results = bench.results
    measured = [one for one in bench.ours if results.of(one, measure)]
    if not measured:
        return []
    best = min(measured, key=lambda one: float(np.mean(results.of(one, measure))) * (1 if lower else -1))
    by_verdict: dict[str, list[str]] = {}
    for name_of_ours, other, difference, adjusted in bench.compared(measure):
        if name_of_ours == best:
            by_verdict.setdefault(tables.verdict(difference, adjusted, lower), []).append(other)
    value = charts.interval_text(mean_interval(results.of(best, measure)))
    pieces = [_said(what, names) for what, names in sorted(by_verdict.items(), key=lambda item: item[0] != "better")]
    worse = any(what.startswith("worse") for what in by_verdict)
    mark: Any = "good" if set(by_verdict) == {"better"} else "warn" if worse else "note"
    return [Finding(mark, "; ".join([f"By {name}, the best of our strategies is {best} ({value})", *pieces]) + ".")]


def _said(what: str, names: Sequence[str]) -> str:
    """Return a verdict of `tables.verdict` with the strategies that it is about."""
    head, _, but = what.partition(", ")
    joint = {"better": "than", "worse": "than", "not separable": "from"}.get(head, "beside")
    return f"{head} {joint} {', '.join(names)}" + (f" ({but})" if but else "")


def training(bench: Benchmark) -> Section | None:
    """Return how models that were trained on the blends do; None where none was."""
    steps = bench.results.steps()
    if not steps:
        return None
    lines = []
    for name in bench.strategies:
        values = {step: of for step in steps if (of := bench.results.of(name, "perplexity", step))}
        if values:
            means = list(map(mean_interval, values.values()))
            lines.append(charts.Curve(name, charts.strategy_colour(name), list(values), means, name in bench.ours))
    note = (
        "Mean over the seeds; band: 95 % interval of Student's t, cut off at the frame. Lower is better. "
        "Thick lines: our strategies."
    )
    chart = charts.curves("Held-out perplexity", lines, "training step", "perplexity", note)
    differences = _differences(
        bench, "best_perplexity", "Best perplexity: our strategies minus each baseline", "lower is better"
    )
    lead = "The same model, start, order and number of steps on every blend; only the chosen pairs differ."
    return Section("training", "Training on the blends", lead, [chart, *differences, *tables.training(bench)])


def selection(bench: Benchmark) -> Section | None:
    """Return what the blends are worth against what is known of the pool; None where nothing is."""
    known = tables.selection(bench)
    if not known:
        return None
    rows = [
        (name, charts.strategy_colour(name), mean_interval(bench.results.of(name, "precision")))
        for name in bench.strategies
    ]
    rows.sort(key=lambda row: -row[2].value)
    rows += [("pool", 7, mean_interval([value])) for value in bench.results.of(POOL, "precision")]
    label = "precision (mean over seeds, 95 % interval)"
    chart = charts.intervals("Precision: share of the blend that is clean and on topic", rows, label)
    differences = _differences(bench, "precision", "Precision: our strategies minus each baseline", "higher is better")
    lead = "Measured against a known truth, because the noise in the pool was planted."
    return Section("selection", "Selection against the truth", lead, [chart, *differences, *known])


def mix(bench: Benchmark) -> Section:
    """Return how blends are mixed, and what they share."""
    names = bench.results.modalities()
    colours = [charts.colour(name, place) for place, name in enumerate(names)]
    shares = {}
    for strategy in (POOL, *bench.strategies):
        found = [bench.results.of(strategy, "share", None, name) for name in names]
        if all(found):
            shares[strategy] = [float(np.mean(values)) for values in found]
    parts: list[content.Part] = [charts.mixes("Modalities in the pool and in the blends", names, colours, shares)]
    lead = "What a strategy prefers, and whether two of them choose the same pairs."
    return Section("mix", "Mix and overlap", lead, [*parts, *tables.mix(bench)])


def spaces(bench: Benchmark, about: str) -> Section:
    """Return the geometry with intervals, and the place of the maps."""
    lead = "Where the experts put the pairs, and where the projection puts them."
    return Section("spaces", "Spaces", lead, [*tables.geometry(bench), content.Widget("maps", about)])


def cost(bench: Benchmark) -> Section:
    """Return what the strategies cost."""
    lead = "Wall-clock time and memory of this machine; another machine gives other figures."
    return Section("cost", "Cost", lead, tables.cost(bench))


def provenance(bench: Benchmark) -> Section:
    """Return the digests of the blends, and the configuration."""
    rows = [Row((name, digest)) for name, digest in bench.facts["blends"].items()]
    config = yaml.safe_dump(bench.facts["config"], sort_keys=False, allow_unicode=True)
    blends = Table("Blends (strategy-seed)", ["blend", "digest"], rows, (0, 1))
    lead = "Every blend is a file beside this page: a list of pairs with its digest."
    return Section("provenance", "How the blends were made", lead, [blends, content.Folded("Configuration", config)])


def _differences(bench: Benchmark, measure: str, title: str, better: str) -> list[content.Chart]:
    rows = [
        (f"{ours} \N{MINUS SIGN} {theirs}", charts.strategy_colour(ours), difference)
        for ours, theirs, difference, _ in bench.compared(measure)
    ]
    label = f"paired difference, 95 % interval ({better})"
    note = "If the interval contains 0, the difference may be noise."
    return [charts.intervals(title, rows, label, note, differences=True)] if rows else []


def write_benchmark_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one self-contained page about a finished benchmark; return its path. See `report.write_report`."""
    return page.put_page(folder, "benchmark", output, lambda: benchmark_page(Benchmark.open(folder)))


def benchmark_page(bench: Benchmark) -> content.Page:
    """Return the report of a benchmark; its pairs are those of the first run of ours, where there is one."""
    parts: list[Section | None] = [
        overview(bench),
        training(bench),
        selection(bench),
        mix(bench),
    ]
    data: dict[str, Any] = {}
    if (shown := bench.run()) is not None:
        name, folder = shown
        run = Run.open(folder)
        data, count = page.page_data(run, _blends(bench, run, name))
        data.update(_truth(bench, data["id"][:count]))
        parts += [of_run.scores(run), spaces(bench, of_run.ABOUT_MAPS), of_run.pairs()]
    parts += [cost(bench), provenance(bench)]
    sections = [section for section in parts if section is not None]
    return content.Page(title(bench), subtitle(bench), sections, data)


def _truth(bench: Benchmark, pair_ids: Sequence[str]) -> dict[str, Any]:
    truth, columns = bench.truth(), {}
    for name, column in (("truth", "kinds"), ("relevant", "relevant")):
        if truth is not None and column in truth.column_names:
            known = dict(zip(truth[PAIR_ID].to_pylist(), truth[column].to_pylist(), strict=True))
            columns[name] = [known.get(pair_id) for pair_id in pair_ids]
    return columns


def _blends(bench: Benchmark, run: Run, first: str) -> list[Blend]:
    """Return what every strategy chose under the first seed, that of the run itself first."""
    blends = []
    for name in [first, *(other for other in bench.strategies if other != first)]:
        ids = bench.blend(name)
        note = f"chosen by {name}, seed {bench.seeds[0]}"
        blends.append(Blend(name, note, len(ids), run.scored.named(ids, run.config.seed)))
    return blends

"""What a benchmark found, in sections: the verdicts first, then training, selection, mix, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from nemo_mm_rank.benchmark import markdown
from nemo_mm_rank.benchmark.measures import POOL
from nemo_mm_rank.benchmark.settings import Strategy
from nemo_mm_rank.benchmark.tables import Results, verdict
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.owned import check_file, local, recognised
from nemo_mm_rank.measures.statistics import Interval, holm, mean_interval
from nemo_mm_rank.report import overview as of_run
from nemo_mm_rank.report.charts import Curve, colour, curves, intervals, mixes, strategy_colour
from nemo_mm_rank.report.content import (
    Chart,
    Finding,
    Findings,
    Folded,
    Page,
    Part,
    Row,
    Section,
    Table,
    Tile,
    Tiles,
    Widget,
    counted,
    number,
    share,
)
from nemo_mm_rank.report.gallery import Blend
from nemo_mm_rank.report.page import REPORT, is_page, page_data, put_page
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.schema import PAIR_ID

RESULTS = "results.parquet"


@dataclass(frozen=True)
class Benchmark:
    """What a report reads of a finished benchmark.

    Attributes:
        folder: where it lies.
        results: every value that was measured.
        strategies: in the order of its configuration.
        seeds: in that order.
        facts: ``benchmark.json``.
        document: ``table1.md``.
        cost: ``cost.md``.
    """

    folder: Path
    results: Results
    strategies: Sequence[str]
    seeds: Sequence[int]
    facts: dict[str, Any]
    document: markdown.Document
    cost: markdown.Document

    @classmethod
    def open(cls, folder: str | Path) -> Benchmark:
        """Read a benchmark's folder.

        Raises:
            UserError: it is not finished.
        """
        path = Path(folder)
        try:
            facts = json.loads((path / "benchmark.json").read_text(encoding="utf-8"))
            documents = [(path / name).read_text(encoding="utf-8") for name in ("table1.md", "cost.md")]
        except FileNotFoundError as error:
            raise UserError(f"{path}: the benchmark is not finished; start it again") from error
        seeds = facts["config"]["seeds"]
        results = Results(read_table(path / RESULTS), seeds)
        strategies = facts["config"]["strategies"]
        return cls(path, results, strategies, seeds, facts, *map(markdown.read, documents))

    @property
    def ours(self) -> list[str]:
        """The strategies that rank as this project does."""
        return [name for name in self.strategies if name in list(Strategy) and Strategy(name).ours]

    @property
    def theirs(self) -> list[str]:
        """The others."""
        return [name for name in self.strategies if name not in self.ours]

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

    def tables(self, *titles: str) -> list[Table]:
        """Return those tables of `document` whose titles begin so."""
        return [table for title, table in self.document.tables.items() if title.startswith(titles)]


def title(bench: Benchmark) -> str:
    """Return what the blends were to be about."""
    queries = bench.facts["config"]["queries"]
    return "Benchmark: " + " + ".join(query["text"] for query in queries if query["weight"] > 0)


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
        Tile("strategies", str(len(bench.strategies)), f"{len(bench.ours)} of ours"),
        Tile("seeds", str(len(bench.seeds)), ", ".join(map(str, bench.seeds))),
    ]
    if wanted := bench.results.of(POOL, "precision"):
        tiles.insert(
            1, Tile("worth choosing", f"{round(wanted[0] * pairs):,}", f"{share(wanted[0], 1)}: clean, on topic")
        )
    lead = " ".join(bench.document.lines[1:])
    return Section("overview", "Verdict", lead, [Tiles(tiles), Findings(findings(bench))])


def findings(bench: Benchmark) -> list[Finding]:
    """Return what the comparison says, in sentences; what is not separable is called so."""
    found = []
    for measure, name, lower in (("best_perplexity", "held-out perplexity", True), ("precision", "precision", False)):
        found += _verdict(bench, measure, name, lower)
    validation = bench.facts.get("validation", {})
    if validation:
        leaks, held = validation["leaks"], validation["pairs"]
        if leaks:
            found.append(Finding("warn", f"{counted(leaks, 'pair')} of the pool too near to a validation pair."))
        else:
            found.append(Finding("good", f"No pair of the pool is near to one of the {held:,} validation pairs."))
    if len(bench.seeds) < 3:
        found.append(Finding("warn", f"{counted(len(bench.seeds), 'seed')}: too few to tell strategies apart."))
    return found


def _verdict(bench: Benchmark, measure: str, name: str, lower: bool) -> list[Finding]:
    results = bench.results
    measured = [one for one in bench.ours if results.of(one, measure)]
    if not measured:
        return []
    best = min(measured, key=lambda one: float(np.mean(results.of(one, measure))) * (1 if lower else -1))
    # All of ours are in the family that Holm's adjustment is for, as in the table.
    differences = results.differences(measure, bench.ours, bench.theirs)
    adjusted = dict(zip(differences, holm([one.p for one in differences.values()]), strict=True))
    said: dict[str, list[str]] = {}
    for (one, other), difference in differences.items():
        if one == best:
            said.setdefault(verdict(difference, adjusted[one, other], lower), []).append(other)
    value = mean_interval(results.of(best, measure))
    pieces = [_said(what, names) for what, names in sorted(said.items(), key=lambda item: item[0] != "better")]
    worse = any(what.startswith("worse") for what in said)
    mark: Any = "good" if set(said) == {"better"} else "warn" if worse else "note"
    return [Finding(mark, "; ".join([f"By {name}, the best of ours is {best} ({_interval(value, 3)})", *pieces]) + ".")]


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
        found = [
            (step, mean_interval(values)) for step in steps if (values := bench.results.of(name, "perplexity", step))
        ]
        if found:
            sure = all(one.n > 1 for _, one in found)
            lines.append(
                Curve(
                    name,
                    strategy_colour(name),
                    [step for step, _ in found],
                    [one.value for _, one in found],
                    [one.low for _, one in found] if sure else (),
                    [one.high for _, one in found] if sure else (),
                    name in bench.ours,
                )
            )
    note = (
        "Mean over the seeds; band: 95 % interval of Student's t, as far as the frame goes. Lower is better. "
        "Thick: strategies of ours."
    )
    chart = curves("Held-out perplexity", lines, "training step", "perplexity", note)
    differences = _differences(bench, "best_perplexity", "Best perplexity: ours less each baseline", "lower is better")
    lead = "The same model, start, order and number of steps on every blend; only the chosen pairs differ."
    tables = bench.tables("Held-out perplexity", "Best perplexity")
    return Section("training", "Training on the blends", lead, [chart, *differences, *tables])


def selection(bench: Benchmark) -> Section | None:
    """Return what the blends are worth against what is known of the pool; None where nothing is."""
    tables = bench.tables("Selection", "Precision")
    if not tables:
        return None
    rows = [
        (name, strategy_colour(name), one.value, one.low if one.n > 1 else None, one.high if one.n > 1 else None)
        for name in bench.strategies
        for one in [mean_interval(bench.results.of(name, "precision"))]
    ]
    rows.sort(key=lambda row: -row[2])
    pool = bench.results.of(POOL, "precision")
    rows += [("pool", 7, value, None, None) for value in pool]
    chart = intervals(
        "Precision: share of the blend that is clean and on topic",
        [(*row, _interval(Interval(row[2], _nan(row[3]), _nan(row[4]), 2), 3)) for row in rows],
        "precision (mean over seeds, 95 % interval)",
        "",
    )
    differences = _differences(bench, "precision", "Precision: ours less each baseline", "higher is better")
    lead = "Against a truth that is known, because the noise in the pool was planted."
    return Section("selection", "Selection against the truth", lead, [chart, *differences, *tables])


def mix(bench: Benchmark) -> Section:
    """Return how blends are mixed, and what they share."""
    names = bench.results.modalities()
    colours = [colour(name, place) for place, name in enumerate(names)]
    shares = {}
    for strategy in (POOL, *bench.strategies):
        found = [bench.results.of(strategy, "share", None, name) for name in names]
        if all(found):
            shares[strategy] = [float(np.mean(values)) for values in found]
    parts: list[Part] = [mixes("Modalities in the pool and in the blends", names, colours, shares)]
    lead = "What a strategy prefers, and whether two of them choose the same pairs."
    return Section("mix", "Mix and overlap", lead, [*parts, *bench.tables("Modality mix", "Overlap")])


def spaces(bench: Benchmark, about: str) -> Section:
    """Return the geometry with intervals, and the place of the maps."""
    lead = "Where the experts put the pairs, and where the projection puts them."
    return Section("spaces", "Spaces", lead, [*bench.tables("Geometry"), Widget("maps", about)])


def cost(bench: Benchmark) -> Section:
    """Return what the strategies cost."""
    lead = "Wall clock and memory of this machine; another one gives other figures."
    return Section("cost", "What it cost", lead, list(bench.cost.tables.values()))


def provenance(bench: Benchmark) -> Section:
    """Return the digests of the blends, and the configuration."""
    rows = [Row((name, digest)) for name, digest in bench.facts["blends"].items()]
    config = yaml.safe_dump(bench.facts["config"], sort_keys=False, allow_unicode=True)
    blends = Table("Blends (strategy-seed)", ["blend", "digest"], rows, (0, 1))
    lead = "Every blend lies beside this page as a list of pairs with its digest."
    return Section("provenance", "Where it comes from", lead, [blends, Folded("Configuration", config)])


def _differences(bench: Benchmark, measure: str, title: str, better: str) -> list[Chart]:
    found = bench.results.differences(measure, bench.ours, bench.theirs)
    rows = [
        (
            f"{one} \N{MINUS SIGN} {other}",
            strategy_colour(one),
            difference.value,
            difference.low if difference.n > 1 else None,
            difference.high if difference.n > 1 else None,
            _interval(difference, 3, signed=True),
        )
        for (one, other), difference in found.items()
    ]
    if not rows:
        return []
    label = f"paired difference, 95 % interval ({better})"
    return [intervals(title, rows, label, "An interval that holds 0 does not tell the two apart.", True)]


def _interval(one: Interval, digits: int, signed: bool = False) -> str:
    plus = "+" if signed and one.value > 0 else ""
    half = (one.high - one.low) / 2
    return f"{plus}{number(one.value, digits)}" + ("" if np.isnan(half) else f" \N{PLUS-MINUS SIGN} {half:.{digits}f}")


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def write_benchmark_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one self-contained page about a finished benchmark; return its path. See `report.write_report`."""
    path = check_file(Path(folder) / REPORT if output is None else output, is_page, "report")
    page = benchmark_page(Benchmark.open(folder))
    if output is None:
        recognised(local(folder), "benchmark")
    return put_page(page, path)


def benchmark_page(bench: Benchmark) -> Page:
    """Return the report of a benchmark; its pairs are those of the first run of ours, where there is one."""
    found: list[Section | None] = [
        overview(bench),
        training(bench),
        selection(bench),
        mix(bench),
    ]
    data: dict[str, Any] = {}
    if (of := bench.run()) is not None:
        name, folder = of
        run = Run.open(folder)
        data, count = page_data(run, _blends(bench, run, name))
        data.update(_truth(bench, data["id"][:count]))
        found += [of_run.scores(run), spaces(bench, of_run.ABOUT_MAPS), of_run.pairs()]
    found += [cost(bench), provenance(bench)]
    sections = [section for section in found if section is not None]
    return Page(title(bench), subtitle(bench), sections, data)


def _truth(bench: Benchmark, pair_ids: Sequence[str]) -> dict[str, Any]:
    truth, found = bench.truth(), {}
    for name, column in (("truth", "kinds"), ("relevant", "relevant")):
        if truth is not None and column in truth.column_names:
            known = dict(zip(truth[PAIR_ID].to_pylist(), truth[column].to_pylist(), strict=True))
            found[name] = [known.get(pair_id) for pair_id in pair_ids]
    return found


def _blends(bench: Benchmark, run: Run, first: str) -> list[Blend]:
    """Return what every strategy chose under the first seed, that of the run itself first."""
    found = []
    for name in [first, *(other for other in bench.strategies if other != first)]:
        ids = bench.blend(name)
        note = f"chosen by {name}, seed {bench.seeds[0]}"
        found.append(Blend(name, note, len(ids), run.scored.named(ids, run.config.seed)))
    return found

"""What a benchmark found as tables: the same ones on its page and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nemo_mm_rank.benchmark.measures import POOL
from nemo_mm_rank.benchmark.settings import Strategy
from nemo_mm_rank.config import Query, parse
from nemo_mm_rank.measures.statistics import Difference, Interval, holm, mean_interval, paired_difference
from nemo_mm_rank.tables import Row, Table

_SELECTION = {
    "precision": "precision",
    "precision_repaired": "repaired too",
    "recall": "recall",
    "average_precision": "AP",
    "precision_clean": "clean",
    "clean_repaired": "clean or repaired",
    "precision_on_topic": "on topic",
}


@dataclass(frozen=True)
class Results:
    """Values by strategy, measure, step and modality, seed by seed.

    Attributes:
        table: `measures.SCHEMA`.
        seeds: in the order that values are returned in.
    """

    table: pa.Table
    seeds: Sequence[int]

    @cached_property
    def _values(self) -> dict[tuple[str, str, int | None, str | None], dict[int, float]]:
        values: dict[tuple[str, str, int | None, str | None], dict[int, float]] = {}
        for row in self.table.to_pylist():
            key = row["strategy"], row["measure"], row["step"], row["modality"]
            values.setdefault(key, {})[row["seed"]] = row["value"]
        return values

    def of(self, strategy: str, measure: str, step: int | None = None, modality: str | None = None) -> list[float]:
        """Return a value for each seed; none where it was not measured."""
        by_seed = self._values.get((strategy, measure, step, modality), {})
        return [by_seed[seed] for seed in self.seeds if seed in by_seed]

    def steps(self) -> list[int]:
        """Return the training steps that there are perplexities of."""
        return sorted({step for _, measure, step, _ in self._values if measure == "perplexity" and step is not None})

    def modalities(self) -> list[str]:
        """Return the pool's modalities."""
        return [key[3] for key in self._values if key[:2] == (POOL, "share") and key[3] is not None]


class Compared(NamedTuple):
    """One of our strategies beside one of the others.

    Attributes:
        ours, theirs: names.
        difference: paired by seed.
        adjusted: its p value, adjusted for the number of comparisons (Holm).
    """

    ours: str
    theirs: str
    difference: Difference
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """A benchmark in figures.

    Attributes:
        results: every value that was measured.
        facts: ``benchmark.json``: the configuration, the pool's size, what was planted, the validation pairs.
    """

    results: Results
    facts: Mapping[str, Any]

    @property
    def strategies(self) -> list[str]:
        """All, in the order of the configuration."""
        return list(self.facts["config"]["strategies"])

    @property
    def ours(self) -> list[str]:
        """The strategies that rank as this project does."""
        return [name for name in self.strategies if name in list(Strategy) and Strategy(name).ours]

    @property
    def theirs(self) -> list[str]:
        """The others."""
        return [name for name in self.strategies if name not in self.ours]

    def compared(self, measure: str) -> list[Compared]:
        """Return the paired differences of each of ours to each of theirs, where both were measured."""
        values = {name: self.results.of(name, measure) for name in self.strategies}
        pairs = [(ours, theirs) for ours in self.ours for theirs in self.theirs]
        pairs = [(ours, theirs) for ours, theirs in pairs if values[ours] and len(values[ours]) == len(values[theirs])]
        differences = [paired_difference(values[ours], values[theirs]) for ours, theirs in pairs]
        adjusted = holm([difference.p for difference in differences])
        return [Compared(*pair, found, p) for pair, found, p in zip(pairs, differences, adjusted, strict=True)]


def lines(bench: Comparison) -> list[str]:
    """Return what was compared, in paragraphs: first of all the objective."""
    facts, config = bench.facts, bench.facts["config"]
    asked = [parse(Query, query) for query in config["queries"]]
    queries = [query.label if query.weight == 1 else f"{query.label} ({query.weight:+g})" for query in asked]
    held_out = facts["validation"]
    paragraphs = [
        f"Objective: {'; '.join(queries)}",
        f"Pool of {facts['pairs']:,} pairs, of which {facts['wanted']:,} are "
        + ("clean" if config["relevant"] is None else "clean and on topic")
        + f"; blends of {facts['budget']:,}; seeds {', '.join(map(str, config['seeds']))}. "
        "Values are means over the seeds with the 95 % interval of Student's t.",
        f"{held_out['pairs']:,} validation pairs are kept apart, and {held_out['removed']:,} that were too near to one "
        f"were taken from the pool; leaks left: {held_out['leaks']:,}.",
    ]
    if config["plant"] is not None:
        planted = ", ".join(f"{kind} {count:,}" for kind, count in facts["planted"]["counts"].items())
        paragraphs += [f"Planted: {planted or 'nothing'}.", *facts["planted"]["short"]]
    return paragraphs


def training(bench: Comparison) -> list[Table]:
    """Return held-out perplexity, and its differences; nothing where no model was trained."""
    results, steps = bench.results, _some(bench.results.steps())
    if not steps:
        return []
    rows = [
        [
            name,
            *(_value(results.of(name, "perplexity", step)) for step in steps),
            _value(results.of(name, "best_perplexity")),
        ]
        for name in bench.strategies
    ]
    head = ["strategy", *(f"step {step:,}" for step in steps), "best"]
    title = "Held-out perplexity (lower is better)"
    return [_table(title, head, rows), *_differences(bench, "best_perplexity", lower=True)]


def _some(steps: Sequence[int], most: int = 4) -> list[int]:
    """Return at most so many of the steps, evenly, the last among them."""
    if len(steps) <= most:
        return list(steps)
    places = np.linspace(0, len(steps), most + 1).round().astype(int)[1:] - 1
    return [steps[place] for place in places]


def _differences(bench: Comparison, measure: str, lower: bool) -> list[Table]:
    """Return the paired differences, and in words what they say."""
    rows = [
        [
            f"{ours} - {theirs}",
            f"{difference.value:+.3f}",
            _span(difference),
            _p(difference.p),
            _p(adjusted),
            verdict(difference, adjusted, lower),
        ]
        for ours, theirs, difference, adjusted in bench.compared(measure)
    ]
    title = measure.replace("_", " ").capitalize()
    head = ["difference", "mean", "95 % interval", "p", "p (Holm)", "says"]
    note = (
        "Paired by seed: the same seed is the same start, order and number of tokens. A difference is separable where "
        "its interval excludes 0; Holm's p value is adjusted for the number of comparisons. Where no seed "
        "changes the value, the interval has no width."
    )
    return [_table(f"{title}: differences", head, rows, note, text=(0, 5))] if rows else []


def verdict(difference: Difference, adjusted: float, lower: bool) -> str:
    """Say what a difference says: ``better``, ``worse``, or that it is not separable."""
    if difference.n < 2:
        return "not known from one seed"
    if not difference.separable:
        return "not separable"
    direction = "better" if (difference.value < 0) == lower else "worse"
    return direction if adjusted < 0.05 else f"{direction}, not after Holm"


def selection(bench: Comparison) -> list[Table]:
    """Return what blends are worth against the truth, and the differences; nothing where nothing is known."""
    results, config = bench.results, bench.facts["config"]
    if config["plant"] is None and config["relevant"] is None:
        return []
    head = ["strategy", *_SELECTION.values()]
    rows = [[name, *(_value(results.of(name, measure)) for measure in _SELECTION)] for name in bench.strategies]
    topic = "" if config["relevant"] is None else " and on topic"
    note = (
        f"Precision: share of the blend that is clean{topic}; the pool's is {results.of(POOL, 'precision')[0]:.3f}. "
        "Repaired too: a pair whose planted sentence SNS has cut, and hardly any other, counts as clean. "
        "A near-duplicate counts as clean where what it copies is not in the blend. AP: over the blend's ranks."
    )
    return [
        _table("Selection against the truth", head, rows, note),
        *_differences(bench, "precision", lower=False),
    ]


def mix(bench: Comparison) -> list[Table]:
    """Return how blends are mixed, and what they share."""
    results, strategies = bench.results, bench.strategies
    modalities = results.modalities()
    rows = [
        [
            name,
            *(_mean(results.of(name, "share", None, modality)) for modality in modalities),
            _mean(results.of(name, "mix_distance")),
        ]
        for name in (POOL, *strategies)
    ]
    tables = [_table("Modality mix (shares)", ["strategy", *modalities, "distance from the pool"], rows)]
    if len(strategies) > 1:
        rows = [
            [name, *("-" if other == name else _mean(results.of(name, f"overlap__{other}")) for other in strategies)]
            for name in strategies
        ]
        tables.append(_table("Overlap of blends (Jaccard)", ["", *strategies], rows))
    return tables


_GEOMETRY = ("gap", "matched_gap", "uniformity", "recall_at_1", "recall_at_5", "recall_at_10")
_WAYS = ("annotation_to_data", "data_to_annotation")


def geometry(bench: Comparison) -> list[Table]:
    """Return gaps and recall of the spaces of our strategies; nothing where none was measured."""
    rows = []
    values = [row for row in bench.results.table.to_pylist() if "__" in row["measure"] and row["low"] is not None]
    for name in bench.ours:
        by_measure = {row["measure"]: row for row in values if row["strategy"] == name}
        for space in dict.fromkeys(measure.split("__", 1)[1] for measure in by_measure):
            cells = []
            for measure in _GEOMETRY:
                ways = [f"{measure}_{way}" for way in _WAYS] if measure.startswith("recall") else [measure]
                cells.append(" / ".join(_with_interval(by_measure[f"{way}__{space}"]) for way in ways))
            rows.append([name, space, *cells])
    head = ["strategy", "space", "gap", "matched gap", "uniformity", "Recall@1", "Recall@5", "Recall@10"]
    note = (
        "On clean pairs that no fit has seen, first seed; 95 % bootstrap intervals; gaps without the noise that the "
        "means of few pairs have, in each fold; recall: annotations search data / "
        "data search annotations."
    )
    return [_table("Geometry", head, rows, note, text=(0, 1))] if rows else []


def cost(bench: Comparison) -> list[Table]:
    """Return what the strategies cost; kept apart, since it differs from run to run."""
    head = ["strategy", "s, first seed", "s, later seeds", "pairs/s", "peak MiB", "model items", "s of training"]
    rows = []
    for name in bench.strategies:
        seconds, speed, peak, items, trained = (
            bench.results.of(name, measure)
            for measure in ("seconds", "pairs_per_second", "peak_bytes", "model_items", "train_seconds")
        )
        rows.append(
            [
                name,
                _mean(seconds[:1], ".1f"),
                _mean(seconds[1:], ".1f"),
                _mean(speed[:1], ",.0f"),
                _mean([size / 2**20 for size in peak[:1]], ",.0f"),
                _mean(items[:1], ",.0f"),
                _mean(trained, ".1f"),
            ]
        )
    cold = bench.facts["config"]["cold"]
    note = (
        f"First seed: {'no model is loaded' if cold else 'models and embeddings of earlier strategies are reused'}; "
        "later ones find the embeddings, and fit and rank anew. "
        "ranked-quality, best-expert, ecodatum, and stratified by cluster read "
        "what ranked has embedded. Peak: resident memory of this process; like model items, only where there are no "
        "workers."
    )
    if parts := bench.facts.get("interrupted"):
        interrupted = ", ".join(f"{name} ({times} x)" for name, times in parts.items())
        note += f" Interrupted and continued, all parts added: {interrupted}."
    return [_table("Cost", head, rows, note)]


def _table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", text: Sequence[int] = (0,)
) -> Table:
    return Table(title, head, [Row(cells) for cells in rows], text, note)


def _with_interval(row: Mapping[str, Any]) -> str:
    if np.isnan(row["value"]):  # a gap where no modality has two annotations
        return "-"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _value(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = mean_interval(values)
    return f"{mean.value:.3f}" + (f" ± {mean.high - mean.value:.3f}" if mean.n > 1 else "")


def _mean(values: Sequence[float], form: str = ".3f") -> str:
    return f"{np.mean(values):{form}}" if values else "-"


def _span(interval: Interval) -> str:
    return "-" if interval.n < 2 else f"[{interval.low:+.3f}, {interval.high:+.3f}]"


def _p(p: float) -> str:
    if np.isnan(p):
        return "-"
    return "< .0001" if p < 1e-4 else f"{p:.4f}"

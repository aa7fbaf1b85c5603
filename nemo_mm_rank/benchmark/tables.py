"""The tables that a person reads, in Markdown; the same values give the same characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank.benchmark.measures import POOL
from nemo_mm_rank.benchmark.settings import BenchmarkConfig
from nemo_mm_rank.benchmark.source import Source
from nemo_mm_rank.measures.statistics import Difference, Interval, holm, mean_interval, paired_difference

_SELECTION = {
    "precision": "precision",
    "recall": "recall",
    "average_precision": "AP",
    "precision_clean": "clean",
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
        found: dict[tuple[str, str, int | None, str | None], dict[int, float]] = {}
        for row in self.table.to_pylist():
            key = row["strategy"], row["measure"], row["step"], row["modality"]
            found.setdefault(key, {})[row["seed"]] = row["value"]
        return found

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

    def differences(
        self, measure: str, ours: Sequence[str], theirs: Sequence[str]
    ) -> dict[tuple[str, str], Difference]:
        """Return the paired differences of each of ours to each of theirs, where both were measured."""
        found = {}
        for one in ours:
            for other in theirs:
                left, right = self.of(one, measure), self.of(other, measure)
                if left and len(left) == len(right):
                    found[one, other] = paired_difference(left, right)
        return found


def table1(results: Results, config: BenchmarkConfig, source: Source, budget: int) -> str:
    """Return the tables of a benchmark."""
    strategies = [str(one) for one in config.strategies]
    ours = [str(one) for one in config.strategies if one.ours]
    theirs = [name for name in strategies if name not in ours]
    parts = [_head(config, source, budget)]
    if results.steps():
        parts += [_perplexity(results, strategies), _compared(results, "best_perplexity", ours, theirs, lower=True)]
    if config.plant is not None or config.relevant is not None:
        parts += [
            _selection(results, strategies, source.relevant),
            _compared(results, "precision", ours, theirs, lower=False),
        ]
    parts += [_mix(results, strategies), _overlaps(results, strategies), _geometry(results, ours)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(config: BenchmarkConfig, source: Source, budget: int) -> str:
    queries = "; ".join(f"{q.text}" if q.weight == 1 else f"{q.text} ({q.weight:+g})" for q in config.queries)
    lines = [
        "# Benchmark",
        "",
        f"Objective: {queries}",
        "",
        f"Pool of {source.pairs:,} pairs, of which {source.labels.wanted:,} are "
        + ("clean and on topic" if source.relevant else "clean")
        + f"; blends of {budget:,}; seeds {', '.join(map(str, config.seeds))}. "
        "Values are means over the seeds with the 95 % interval of Student's t.",
        "",
        f"{source.held_out:,} validation pairs are kept apart, and {source.removed:,} that were too near to one were "
        f"taken from the pool; leaks left: {len(source.leaks):,}.",
    ]
    if config.plant is not None:
        planted = ", ".join(f"{kind} {count:,}" for kind, count in source.planted.counts().items())
        lines += ["", f"Planted: {planted or 'nothing'}."]
        lines += [line for one in source.planted.short for line in ("", str(one))]
    return "\n".join(lines)


def _perplexity(results: Results, strategies: Sequence[str]) -> str:
    steps = results.steps()
    shown = _some(steps)
    head = ["strategy", *(f"step {step:,}" for step in shown), "best"]
    rows = [
        [
            name,
            *(_value(results.of(name, "perplexity", step), 3) for step in shown),
            _value(results.of(name, "best_perplexity"), 3),
        ]
        for name in strategies
    ]
    return "## Held-out perplexity (lower is better)\n\n" + markdown(head, rows)


def _some(steps: Sequence[int], most: int = 4) -> list[int]:
    """Return at most so many of the steps, evenly, the last among them."""
    if len(steps) <= most:
        return list(steps)
    places = np.linspace(0, len(steps), most + 1).round().astype(int)[1:] - 1
    return [steps[place] for place in places]


def _compared(results: Results, measure: str, ours: Sequence[str], theirs: Sequence[str], lower: bool) -> str:
    """Return the paired differences, and in words what they say."""
    found = results.differences(measure, ours, theirs)
    if not found:
        return ""
    adjusted = holm([difference.p for difference in found.values()])
    rows = []
    for (one, other), difference, p in zip(found, found.values(), adjusted, strict=True):
        rows.append(
            [
                f"{one} - {other}",
                f"{difference.value:+.3f}",
                _span(difference, 3),
                _p(difference.p),
                _p(p),
                verdict(difference, p, lower),
            ]
        )
    title = measure.replace("_", " ").capitalize()
    head = ["difference", "mean", "95 % interval", "p", "p (Holm)", "says"]
    note = (
        "Paired by seed: the same seed is the same start, order and number of tokens. A difference is separable where "
        "its interval excludes 0; Holm's p value is adjusted for the number of comparisons. What no seed changes has "
        "an interval without width."
    )
    return f"## {title}: differences\n\n{markdown(head, rows)}\n\n{note}"


def verdict(difference: Difference, adjusted: float, lower: bool) -> str:
    """Say what a difference says: ``better``, ``worse``, or that it is not separable."""
    if difference.n < 2:
        return "one seed says nothing"
    if not difference.separable:
        return "not separable"
    said = "better" if (difference.value < 0) == lower else "worse"
    return said if adjusted < 0.05 else f"{said}, not after Holm"


def _selection(results: Results, strategies: Sequence[str], relevant: bool) -> str:
    head = ["strategy", *_SELECTION.values()]
    rows = [[name, *(_value(results.of(name, measure), 3) for measure in _SELECTION)] for name in strategies]
    pool = results.of(POOL, "precision")[0]
    note = (
        f"Precision: share of the blend that is clean{' and on topic' if relevant else ''}; the pool's is {pool:.3f}. "
        "A near-duplicate counts as clean where what it copies is not in the blend. AP: over the blend's ranks."
    )
    return f"## Selection against the truth\n\n{markdown(head, rows)}\n\n{note}"


def _mix(results: Results, strategies: Sequence[str]) -> str:
    modalities = results.modalities()
    rows = [
        [
            name,
            *(_mean(results, name, "share", modality) for modality in modalities),
            _mean(results, name, "mix_distance"),
        ]
        for name in (POOL, *strategies)
    ]
    return "## Modality mix (shares)\n\n" + markdown(["strategy", *modalities, "distance from the pool"], rows)


def _overlaps(results: Results, strategies: Sequence[str]) -> str:
    if len(strategies) < 2:
        return ""
    rows = [
        [name, *("-" if other == name else _mean(results, name, f"overlap__{other}") for other in strategies)]
        for name in strategies
    ]
    return "## Overlap of blends (Jaccard)\n\n" + markdown(["", *strategies], rows)


def _geometry(results: Results, ours: Sequence[str]) -> str:
    wanted = ("gap", "matched_gap", "uniformity", "recall_at_1", "recall_at_5", "recall_at_10")
    rows = []
    values = [row for row in results.table.to_pylist() if "__" in row["measure"] and row["low"] is not None]
    for name in ours:
        mine = {row["measure"]: row for row in values if row["strategy"] == name}
        for space in dict.fromkeys(measure.split("__", 1)[1] for measure in mine):
            cells = []
            for measure in wanted:
                both = [f"{measure}_{way}" if measure.startswith("recall") else measure for way in _WAYS]
                found = [mine[f"{one}__{space}"] for one in dict.fromkeys(both)]
                cells.append(" / ".join(map(_with_interval, found)))
            rows.append([name, space, *cells])
    if not rows:
        return ""
    head = ["strategy", "space", "gap", "matched gap", "uniformity", "Recall@1", "Recall@5", "Recall@10"]
    note = (
        "On clean pairs that no fit has seen, first seed; 95 % bootstrap intervals; gaps without the noise that the "
        "means of few pairs have, in each fold; recall: annotations search data / "
        "data search annotations."
    )
    return f"## Geometry\n\n{markdown(head, rows)}\n\n{note}"


_WAYS = ("annotation_to_data", "data_to_annotation")


def _with_interval(row: Mapping[str, Any]) -> str:
    if np.isnan(row["value"]):  # a gap where no modality has two annotations
        return "-"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def cost_table(results: Results, config: BenchmarkConfig) -> str:
    """Return what the strategies cost; kept apart, since it differs from run to run."""
    head = ["strategy", "s, first seed", "s, later seeds", "pairs/s", "peak MiB", "model items", "s of training"]
    rows = []
    for name in map(str, config.strategies):
        seconds = results.of(name, "seconds")
        later = seconds[1:]
        peak = results.of(name, "peak_bytes")
        items, trained = results.of(name, "model_items"), results.of(name, "train_seconds")
        rows.append(
            [
                name,
                f"{seconds[0]:.1f}" if seconds else "-",
                f"{np.mean(later):.1f}" if later else "-",
                f"{results.of(name, 'pairs_per_second')[0]:,.0f}" if seconds else "-",
                f"{peak[0] / 2**20:,.0f}" if peak else "-",
                f"{items[0]:,.0f}" if items else "-",
                f"{np.mean(trained):.1f}" if trained else "-",
            ]
        )
    note = (
        f"First seed: {'no model is loaded' if config.cold else 'what others before it have seen is remembered'}; "
        "later ones find the embeddings, and fit and rank anew. "
        "ranked-quality, best-expert, ecodatum, and stratified by cluster read "
        "what ranked has embedded. Peak: resident memory of this process; like model items, only where there are no "
        "workers."
    )
    return f"## Cost\n\n{markdown(head, rows)}\n\n{note}\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _value(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    found = mean_interval(values)
    half = f" ± {found.high - found.value:.{digits}f}" if found.n > 1 else ""
    return f"{found.value:.{digits}f}{half}"


def _mean(results: Results, strategy: str, measure: str, modality: str | None = None) -> str:
    values = results.of(strategy, measure, None, modality)
    return f"{np.mean(values):.3f}" if values else "-"


def _span(found: Interval, digits: int) -> str:
    return "-" if found.n < 2 else f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _p(p: float) -> str:
    if np.isnan(p):
        return "-"
    return "< .0001" if p < 1e-4 else f"{p:.4f}"

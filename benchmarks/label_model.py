"""Label model: from votes to the best 40 %, beside Snorkel; many shards; and votes beside labelling row by row.

    python -m benchmarks.label_model [--rows 1000000] [--pool 8800000] [--shards 100]

Votes are drawn with the coverages and accuracies that EcoDatum's paper prints (table 5). The peers run in the same
process, one after the other; medians of ``--repeats``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.ranking_topk import Peak
from nemo_mm_rank.quality import LabelModel, label_votes, lf_summary
from nemo_mm_rank.quality.ensemble.votes import PatternCounts
from nemo_mm_rank.ranking import top_k

COVERAGE = (0.003, 0.014, 0.532, 0.345, 0.739, 0.754, 0.658, 0.423)
ACCURACY = (0.756, 0.619, 0.660, 0.583, 0.808, 0.915, 0.878, 0.633)
SHARE = 0.4


def draw(rows: int, seed: int) -> np.ndarray:
    """Return ``(rows, 8)`` int8 votes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows, dtype=np.int8)
    votes = np.full((rows, len(COVERAGE)), -1, dtype=np.int8)
    for place, (coverage, accuracy) in enumerate(zip(COVERAGE, ACCURACY, strict=True)):
        voted = random.random(rows, dtype=np.float32) < coverage
        right = random.random(rows, dtype=np.float32) < accuracy
        votes[:, place] = np.where(voted, np.where(right, labels, 1 - labels), -1)
    return votes


def ours(votes: np.ndarray) -> np.ndarray:
    """Summary, fit, scores, and the best 40 %."""
    lf_summary(votes)
    quality = LabelModel().fit(votes).predict_proba(votes)
    return top_k(quality, int(len(votes) * SHARE))


def snorkels(votes: np.ndarray) -> np.ndarray:
    """The same as the authors' script does it: Snorkel, and a stable sort of a list."""
    import_module("snorkel.labeling").LFAnalysis(votes).lf_summary()
    model = import_module("snorkel.labeling.model").LabelModel(cardinality=2, verbose=False)
    model.fit(votes, n_epochs=200, lr=0.01, l2=0.001, seed=123, progress_bar=False)
    quality = model.predict_proba(votes)[:, 1]
    order = sorted(enumerate(quality), key=lambda pair: pair[1], reverse=True)
    return np.array([row for row, _ in order[: int(len(votes) * SHARE)]])


def timed(work: Callable[[np.ndarray], np.ndarray], votes: np.ndarray, repeats: int) -> tuple[float, float, np.ndarray]:
    """Return median seconds, peak MiB above the input, and the result."""
    seconds, found = [], np.zeros(0)
    with Peak() as peak:
        for _ in range(repeats):
            started = time.perf_counter()
            found = work(votes)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), peak.mib, found


def beside_snorkel(rows: int, repeats: int) -> Table:
    votes = draw(rows, 0)
    table = Table(title=f"votes -> summary, fit, scores, best 40 %: {rows:,} x 8, median of {repeats}")
    for column in ("", "seconds", "ratio", "MiB above input", "same pairs"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    ours(votes[:1000])
    mine, memory, chosen = timed(ours, votes, repeats)
    table.add_row("pattern counts", f"{mine:.3f}", "1", f"{memory:.0f}", "")
    if find_spec("snorkel"):
        wide = votes.astype(np.int64)  # as its own applier makes them
        snorkels(wide[:1000])
        theirs, memory, others = timed(snorkels, wide, 3)
        same = len(np.intersect1d(chosen, others)) / len(others)
        table.add_row("Snorkel 0.10", f"{theirs:.3f}", f"{theirs / mine:.0f}", f"{memory:.0f}", f"{same:.2%}")
    return table


def many_shards(rows: int, shards: int) -> Table:
    """The same from shards that are drawn one at a time, so that no more than one of them is held."""
    table = Table(title=f"{rows:,} rows in {shards} shards, drawn one at a time")
    for column in ("rows", "count s", "fit s", "score s", "patterns", "MiB above one shard"):
        table.add_column(column, justify="right", no_wrap=True)
    for count in sorted({shards // 10, shards}):
        size = rows // shards
        draw(size, 0)
        counting = scoring = 0.0
        parts: list[PatternCounts] = []
        with Peak() as peak:
            for shard in range(count):
                votes = draw(size, shard)
                started = time.perf_counter()
                parts = [PatternCounts.merged([*parts, PatternCounts.of(votes)])]
                counting += time.perf_counter() - started
            started = time.perf_counter()
            model = LabelModel().fit_counts(parts[0].patterns, parts[0].counts)
            fitting = time.perf_counter() - started
            for shard in range(count):
                votes = draw(size, shard)
                started = time.perf_counter()
                model.predict_proba(votes)
                scoring += time.perf_counter() - started
        figures = (f"{counting:.2f}", f"{fitting:.3f}", f"{scoring:.2f}", f"{len(parts[0].counts):,}")
        table.add_row(f"{size * count:,}", *figures, f"{peak.mib:.0f}")
    return table


FUNCTIONS = [
    ("blurry", 0.28, np.inf, (0,)),
    ("geometric", 0.33, 0.33, (0,)),
    ("english", 1.0, 1.0, (0,)),
    ("icc", 0.005, 0.035, (0, 1)),
    ("clip", 0.19, 0.23, (0, 1)),
    ("hclip", 0.19, 0.23, (0, 1)),
    ("vclip", 0.19, 0.23, (0, 1)),
    ("boxes", 0.0, 5.0, (0, 1)),
]


def row_by_row(frame: pd.DataFrame) -> np.ndarray:
    """Label as the authors do: ``pandas.apply`` over rows, a Python function for each label."""

    def vote(row: pd.Series, column: str, low: float, high: float, allowed: tuple[int, ...]) -> int:
        said = 1 if row[column] >= high else 0 if row[column] <= low else -1
        return said if said in allowed else -1

    rows = frame.apply(lambda row: [vote(row, *function) for function in FUNCTIONS], axis=1)
    return np.array(rows.tolist(), dtype=np.int8)


def votes_beside_rows(rows: int) -> Table:
    random = np.random.default_rng(0)
    names = [name for name, *_ in FUNCTIONS]
    frame = pd.DataFrame({name: random.random(rows) * (0.5 if name != "boxes" else 8) for name in names})
    table = Table(title=f"scores -> votes: {rows:,} x {len(FUNCTIONS)}")
    for column in ("vectorised s", "row by row s", "ratio", "equal"):
        table.add_column(column, justify="right", no_wrap=True)
    mine = []
    for _ in range(5):
        started = time.perf_counter()
        votes = label_votes(frame, FUNCTIONS)
        mine.append(time.perf_counter() - started)
    started = time.perf_counter()
    theirs = row_by_row(frame)
    took = time.perf_counter() - started
    seconds = statistics.median(mine)
    table.add_row(f"{seconds:.4f}", f"{took:.2f}", f"{took / seconds:.0f}", str(bool((votes == theirs).all())))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pool", type=int, default=8_800_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    console = Console(width=100)
    console.print(beside_snorkel(options.rows, options.repeats))
    console.print(many_shards(options.pool, options.shards))
    console.print(votes_beside_rows(100_000))


if __name__ == "__main__":
    main()

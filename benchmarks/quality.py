"""How good the ranking is on the real pool: geometry on held-out pairs, and average precision for two objectives.

    python -m benchmarks.quality [--seeds 0 1 2] [--folder FOLDER]

Every figure is out of sample (each pair is projected by the network that never saw its annotation) and stands beside
its baselines: each expert alone, and the annotation alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks import real_pool
from nemo_mm_rank import curate, rank
from nemo_mm_rank.measures import average_precision

MEDIA = ("image", "audio", "video")
PLAIN: dict[str, Any] = {"conditions": {}}
ALONE: dict[str, dict[str, Any]] = {
    "without the condition": PLAIN,
    "fused alone": {**PLAIN, "weights": {"fused": 1.0}},
    "expert words alone": {**PLAIN, "weights": {"words": 1.0}},
    "annotation alone": {**PLAIN, "weights": {"annotation": 1.0}},
}


def relevant(blend: pd.DataFrame, query: str) -> np.ndarray:
    """Return which pairs an objective asks for: media for the scenes, annotations with the word for the dog."""
    if query == real_pool.SCENES:
        return blend["modality"].isin(MEDIA).to_numpy()
    return blend["annotation"].str.contains(r"\bdogs?\b", case=False, regex=True).to_numpy()


def precision(blend: pd.DataFrame, query: str) -> float:
    """Return the average precision of a blend that holds the whole pool, best first."""
    return float(average_precision(-np.arange(len(blend), dtype=np.float64), relevant(blend, query)))


def measure(folder: Path, seeds: list[int]) -> tuple[dict[str, dict[str, list[float]]], int]:
    """Return row -> measure -> one value per seed, and the number of pairs. Embeddings are made once."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pairs = 0
    for seed in seeds:
        result = curate(config=real_pool.settings(folder, seed=seed, budget="100%"), progress=False)
        pairs = len(result.blend)
        for space, values in result.manifest["projection"]["metrics"]["mean"].items():
            name = {"fused": "ranking (default weights)", "emb_data__words": "expert words alone"}.get(space, space)
            for measured in ("gap", "matched_gap", "recall_at_10"):
                found[name][measured].append(values[measured])
        for query in (real_pool.SCENES, real_pool.DOG):
            column = "AP scenes" if query == real_pool.SCENES else "AP dog"
            ranked = rank(folder, query, trust_run=True).blend
            found["ranking (default weights)"][column].append(precision(ranked, query))
            for name, changes in ALONE.items():
                alone = rank(folder, query, ranking=changes, trust_run=True).blend
                found[name][column].append(precision(alone, query))
    return found, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep the run here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        found, pairs = measure(options.folder or Path(temporary), options.seeds)
    columns = ("gap", "matched_gap", "recall_at_10", "AP scenes", "AP dog")
    Console().print(
        f"{pairs:,} pairs, every one held out once (4 folds); mean of seeds {options.seeds}, in brackets sd"
    )
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in found.items():
        cells = []
        for column in columns:
            got = values.get(column)
            spread = f" ({statistics.stdev(got):.3f})" if got and len(got) > 1 else ""
            cells.append(f"{statistics.mean(got):.3f}{spread}" if got else "-")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""EcoDatum on the real pool with planted noise: the ensemble beside each operator, votes counted, and our agreement.

    python -m benchmarks.ecodatum [--kinds swaps all] [--seeds 0 1 2] [--folder FOLDER]

Average precision of clean pairs in the order of each score, over the pairs that could be judged and are left once
duplicates are gone: a near-duplicate that was planted counts as clean where what it copies, and any copy before it, is
gone. An operator that says nothing of a pair puts it in the middle (its column's median). Equal scores are in an order
drawn at random, or where the job's tie-break puts them within their modality. The agreement is out of sample. A random
order has the share of clean pairs. Then our ranking for an objective, with the quality as one more condition: the share
of the first 10 % that is clean and on topic, and the AP of such pairs. Mean over the seeds (of planting and of the
run), in brackets the standard deviation.
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
import numpy.typing as npt
import pandas as pd

from benchmarks import real_pool
from benchmarks.quality import relevant
from nemo_mm_rank import curate, rank
from nemo_mm_rank.benchmark.planting import PlantSettings, plant
from nemo_mm_rank.config import parse
from nemo_mm_rank.measures import average_precision
from nemo_mm_rank.measures.selection import Labels
from nemo_mm_rank.run import ecodatum
from nemo_mm_rank.run.ecodatum import EcoDatumConfig

Floats = npt.NDArray[np.float64]

CONDITIONS = ((3.0, 0.25), (1.0, 0.5), (3.0, 0.5), (3.0, 1.0))
"""Strengths of match and quality."""


def scores_of(result: ecodatum.EcoDatumResult, run: Path) -> pd.DataFrame:
    """Return every judged pair's operators, by ``pair_id``."""

    def whole(pattern: str, root: Path) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(file) for file in sorted(root.glob(pattern))], ignore_index=True)

    ids = whole("pool/part-*.parquet", run)["pair_id"]
    operators = [
        whole(f"steps/{kind}-*/part-*.parquet", result.folder)
        for kind in ("quality-texts", "quality-media", "quality-columns", "quality-sentences")
    ]
    frame = pd.concat(
        [one[[name for name in one if name in result.manifest["operators"]]] for one in operators], axis=1
    )
    return frame.set_index(pd.Index(ids))


def measure(
    folder: Path, kinds: str, seed: int
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Return of every score the average precision and the precision of its best 40 %, and what `ranked` says."""
    planted = plant(str(real_pool.POOL), folder / "pool", parse(PlantSettings, {"kinds": kinds}), seed)
    settings = real_pool.settings(folder / "run", seed=seed, budget="100%")
    run = curate(config={**settings, "pools": planted.pool.model_dump(exclude_none=True)}, progress=False)
    job = {"run": str(run.folder), "output": str(folder / "ecodatum"), "trust_run": True}
    result = ecodatum.curate(parse(EcoDatumConfig, job))
    quality = result.quality[result.quality["duplicate_of"].isna()].set_index("pair_id")
    quality = quality.sample(frac=1, random_state=seed)  # the pool's order knows modalities and sources
    known = pd.Series(planted.truth["clean"].to_pylist(), index=planted.truth["pair_id"].to_pylist())
    operators = scores_of(result, run.folder).loc[quality.index]
    votes = np.stack(quality["votes"].tolist())
    orders: dict[str, Floats] = {
        str(name).removeprefix("quality__"): column.fillna(column.median()).to_numpy(dtype=np.float64)
        for name, column in operators.items()
    }
    orders["majority vote"] = ((votes == 1).sum(axis=1) - (votes == 0).sum(axis=1)).astype(np.float64)
    orders["ensemble"] = quality["quality"].to_numpy(dtype=np.float64)
    tie_break = result.manifest["tie_break"].removeprefix("quality__")
    modality = run.pairs(["pair_id", "modality"]).set_index("pair_id")["modality"].reindex(quality.index)
    ties = pd.Series(orders[tie_break]).groupby(modality.to_numpy()).rank(pct=True).to_numpy()
    # By rank: between qualities near 0 or 1 there is no room for a number.
    ascending = np.lexsort((ties, orders["ensemble"]))
    orders[f"ensemble, ties by {tie_break}"] = np.argsort(ascending).astype(np.float64)
    labels = Labels.of(planted.truth, np.ones(planted.truth.num_rows, dtype=bool))
    truth = labels.sound(labels.rows(quality.index.tolist()))
    found = {"(random order)": (float(truth.mean()), float(truth.mean()))}
    for name, order in orders.items():
        best = np.argsort(-order, kind="stable")[: int(0.4 * len(order))]
        found[name] = (float(average_precision(order, truth)), float(truth[best].mean()))
    return found, ranked(run.folder, result, known)


def ranked(run: Path, result: ecodatum.EcoDatumResult, clean: pd.Series) -> dict[str, tuple[float, float]]:
    """Return what our ranking for the scenes is worth: AP, and precision of the first 10 %."""
    path = str(result.folder / ecodatum.SCORES)
    ways: dict[str, dict[str, Any]] = {"ranked": {}}
    for match, quality in CONDITIONS:
        conditions = {"match": match, "quality": quality}
        ways[f"ranked, match {match} and quality {quality}"] = {
            "scores": {"quality": path},
            "conditions": conditions,
        }
    found = {}
    for name, settings in ways.items():
        blend = rank(run, real_pool.SCENES, "100%", ranking=settings, trust_run=True).blend
        good = clean.reindex(blend["pair_id"]).to_numpy(dtype=bool) & relevant(blend, real_pool.SCENES)
        first = good[: int(0.1 * len(good))]
        found[name] = (precision_of(good), float(first.mean()))
    chosen = (
        result.quality.set_index("pair_id")["quality"].reindex(blend["pair_id"]).fillna(0).to_numpy(dtype=np.float64)
    )
    drawn = np.random.default_rng(0).permutation(len(good))  # ties are not to be in the order of the ranking
    chosen, good = chosen[drawn], good[drawn]
    first = good[np.argsort(-chosen, kind="stable")[: int(0.1 * len(good))]]
    found["quality alone"] = (float(average_precision(chosen, good)), float(first.mean()))
    return found


def precision_of(good: npt.NDArray[np.bool_]) -> float:
    """Return the average precision of rows that are in their order, best first."""
    return float(average_precision(-np.arange(len(good), dtype=np.float64), good))


def print_table(title: str, columns: tuple[str, str], found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|---|---|")
    for name, rows in sorted(found.items(), key=lambda item: -statistics.mean(row[0] for row in item[1])):
        cells = []
        for column in zip(*rows, strict=True):
            spread = f" ({statistics.stdev(column):.3f})" if len(column) > 1 else ""
            cells.append(f"{statistics.mean(column):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["swaps", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep pools and runs here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        for kinds in options.kinds:
            found: dict[str, list[tuple[float, float]]] = defaultdict(list)
            topical: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for seed in options.seeds:
                folder = (options.folder or Path(temporary)) / f"{kinds}-{seed}"
                for table, figures in zip((found, topical), measure(folder, kinds, seed), strict=True):
                    for name, pair in figures.items():
                        table[name].append(pair)
            print(f"\nplanted: {kinds}, 40 % of each modality; seeds {options.seeds}")
            print_table("clean", ("AP", "precision of the best 40 %"), found)
            print_table("clean and on topic", ("AP", "precision of the first 10 %"), topical)


if __name__ == "__main__":
    main()

"""EcoDatum on the real pool with planted noise: the ensemble beside each operator, votes counted, and our agreement.

    python -m benchmarks.ecodatum [--kinds swaps all] [--seeds 0 1 2] [--folder FOLDER]

Average precision of clean pairs in the order of each score, over all pairs that could be judged, near-duplicates that
were planted counted as noise. An operator that says nothing of a pair puts it in the middle (its column's median). The
agreement is out of sample. A random order has the share of clean pairs. Mean over the seeds (of planting and of the
run), in brackets the standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import real_pool
from nemo_mm_rank import curate
from nemo_mm_rank.config import parse
from nemo_mm_rank.evaluation import PlantSettings, average_precision, plant
from nemo_mm_rank.run import ecodatum
from nemo_mm_rank.run.ecodatum import EcoDatumConfig

Floats = npt.NDArray[np.float64]


def scores_of(result: ecodatum.EcoDatumResult, run: Path) -> pd.DataFrame:
    """Return every judged pair's operators, by ``pair_id``."""

    def whole(pattern: str, root: Path) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(file) for file in sorted(root.glob(pattern))], ignore_index=True)

    ids = whole("pool/part-*.parquet", run)["pair_id"]
    operators = [
        whole(f"steps/{kind}-*/part-*.parquet", result.folder)
        for kind in ("quality-texts", "quality-media", "quality-columns")
    ]
    frame = pd.concat(
        [one[[name for name in one if name in result.manifest["operators"]]] for one in operators], axis=1
    )
    return frame.set_index(pd.Index(ids))


def measure(folder: Path, kinds: str, seed: int) -> dict[str, tuple[float, float]]:
    """Return of every score the average precision, and the precision of its best 40 %."""
    planted = plant(str(real_pool.POOL), folder / "pool", parse(PlantSettings, {"kinds": kinds}), seed)
    settings = real_pool.settings(folder / "run", seed=seed, budget="100%")
    run = curate(config={**settings, "pools": planted.pool.model_dump(exclude_none=True)}, progress=False)
    result = ecodatum.curate(parse(EcoDatumConfig, {"run": str(run.folder), "output": str(folder / "ecodatum")}))
    quality = result.quality.set_index("pair_id")
    clean = pd.Series(planted.truth["clean"].to_pylist(), index=planted.truth["pair_id"].to_pylist())[quality.index]
    operators = scores_of(result, run.folder).loc[quality.index]
    votes = np.stack(quality["votes"].tolist())
    orders: dict[str, Floats] = {
        str(name).removeprefix("quality__"): column.fillna(column.median()).to_numpy(dtype=np.float64)
        for name, column in operators.items()
    }
    orders["majority vote"] = ((votes == 1).sum(axis=1) - (votes == 0).sum(axis=1)).astype(np.float64)
    orders["ensemble"] = quality["quality"].to_numpy(dtype=np.float64)
    tie = orders.get("agreement", np.zeros(len(quality)))
    orders["ensemble, ties by agreement"] = orders["ensemble"] + 1e-9 * np.argsort(np.argsort(tie))
    truth = clean.to_numpy(dtype=bool)
    for line in result.manifest["ensemble"]["warnings"]:
        print(f"    {kinds} {seed}: {line}", file=sys.stderr)
    for name, values in result.manifest["ensemble"]["functions"].items():
        said = votes[:, list(result.manifest["ensemble"]["functions"]).index(name)]
        right = (truth[said >= 0] == (said[said >= 0] == 1)).mean() if (said >= 0).any() else np.nan
        print(
            f"    {name:24s} weight {values['weight']:.3f} right {right:.3f} coverage {values['coverage']:.3f}",
            file=sys.stderr,
        )
    found = {"(random order)": (float(truth.mean()), float(truth.mean()))}
    for name, order in orders.items():
        best = np.argsort(-order, kind="stable")[: int(0.4 * len(order))]
        found[name] = (float(average_precision(order, truth)), float(truth[best].mean()))
    return found


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
            for seed in options.seeds:
                folder = (options.folder or Path(temporary)) / f"{kinds}-{seed}"
                for name, figures in measure(folder, kinds, seed).items():
                    found[name].append(figures)
            print(f"\nplanted: {kinds}, 40 % of each modality; seeds {options.seeds}")
            print("| score | AP of clean pairs | precision of the best 40 % |\n|---|---|---|")
            for name, rows in sorted(found.items(), key=lambda item: -statistics.mean(row[0] for row in item[1])):
                cells = []
                for column in zip(*rows, strict=True):
                    spread = f" ({statistics.stdev(column):.3f})" if len(column) > 1 else ""
                    cells.append(f"{statistics.mean(column):.3f}{spread}")
                print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

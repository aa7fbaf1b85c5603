"""How many pairs a projection needs: sample size against held-out recall, matched gap and CPU seconds.

    python -m benchmarks.learning_curve RUN [RUN ...] [--sizes 250 500 1000 2000] [--epochs 5 20] [--seeds 3]

Each RUN is the folder of a finished run: its embeddings are read, and nothing is embedded again. One pair in four, by a
hash of its annotation, is set aside before anything is fitted, the same for all sizes, epochs and seeds. A seed chooses
the pairs of the sample, the folds, weights, batches and dropout.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Config
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.measures.gaps import matched_gap_square
from nemo_mm_rank.measures.geometry import recalls
from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import read_sample
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.sampling import FitSample, hashes

ASIDE, SEARCHED = 4, 4096
MEASURES = ("Recall@10", "matched gap", "CPU s")


def taken(sample: FitSample, rows: Ints) -> FitSample:
    """Return some pairs of a sample."""
    where = torch.from_numpy(rows)
    return FitSample(
        {name: Vectors(one.values[where], one.valid[where]) for name, one in sample.sources.items()},
        sample.anchors[where],
        [sample.modality[row] for row in rows],
        [sample.annotations[row] for row in rows],
        sample.anchor_space,
        sample.takes,
    )


def measured(config: Config, training: FitSample, aside: FitSample, epochs: int, seed: int) -> tuple[float, ...]:
    """Fit on one sample and measure on the pairs that were set aside."""
    settings = config.projection.model_copy(update={"max_epochs": epochs, "threads": 1})
    started = time.process_time()
    projection = fit(training, settings, seed)
    spent = time.process_time() - started
    fused = projection.project(aside.sources, aside.annotations)
    present = fused.valid
    data, anchors = F.normalize(fused.values[present], dim=1), F.normalize(aside.anchors[present], dim=1)
    modality = np.array(aside.modality)[present.numpy()]
    contents = codes(list(aside.annotations), len(present), "cpu")[present]
    gap = matched_gap_square(data, anchors, modality, contents, 0).gap().value
    found = recalls(data[:SEARCHED], anchors[:SEARCHED], (10,))[10]["average"]
    return found * len(data) / len(present), gap, spent


def curve(run: Path, sizes: list[int], epochs: list[int], seeds: int) -> Table:
    """Return one line for each sample size and number of epochs: mean and standard deviation over the seeds."""
    folder = RunFolder.at(run)
    config = folder.load_config()
    sample = read_sample(State.load(folder).open(folder), config)
    held = hashes(sample.annotations, 12345) % np.uint64(ASIDE) == 0
    aside, rest = taken(sample, np.flatnonzero(held)), np.flatnonzero(~held)
    table = Table(title=f"{len(rest):,} pairs to fit on, {len(aside.anchors):,} set aside, {seeds} seeds")
    for name in ("sample", "epochs", *MEASURES):
        table.add_column(name, justify="right")
    for size in [*(size for size in sizes if size < len(rest)), len(rest)]:
        for most in epochs:
            values = []
            for seed in range(seeds):
                rows = np.sort(np.random.default_rng(seed).permutation(rest)[:size])
                values.append(measured(config, taken(sample, rows), aside, most, seed))
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1 if seeds > 1 else 0)
            cells = (f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True))
            table.add_row(f"{size:,}", str(most), *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=120)
    for run in options.runs:
        console.print(curve(run, options.sizes, options.epochs, options.seeds))


if __name__ == "__main__":
    main()

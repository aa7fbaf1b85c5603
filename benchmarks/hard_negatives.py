"""How often a photo is closer to its own caption than to one that differs in a word or two, by what differs.

    python -m benchmarks.hard_negatives --folder FOLDER

402 photos of the real pool (SugarCrepe). For every space that holds photos and texts; a photo is fused by the network
that never saw its captions. FOLDER is that of `benchmarks.suite`, whose run of the real pool is used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import real_models, real_pool
from benchmarks.suite import OBJECTIVES, Texts, embed, load, make, spoil
from nemo_mm_rank import frames
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.measures.statistics import mean_interval
from nemo_mm_rank.schema import DATA
from nemo_mm_rank.vectors import rowwise, take


def table(folder: Path) -> Iterator[str]:
    """Yield a markdown table: kind of difference, pairs, and the share that is told right in each space."""
    embed("real", folder)
    base = load(folder / "base-real")
    texts = Texts(base, folder / "texts-real-0.npz")
    made = make(spoil(base, OBJECTIVES["real"], "clean", 0.0, 0, folder), texts, 0)
    place = {f"real_pool/{row[DATA]}": number for number, row in enumerate(base.rows)}
    lines = [json.loads(line) for line in real_pool.NEGATIVES.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["data"] in place]
    rows = np.array([place[line["data"]] for line in lines], dtype=np.int64)
    there = torch.ones(len(rows), dtype=torch.bool)
    own, other = (
        Vectors(texts.encode([line[name] for line in lines], "text").vectors, there)
        for name in ("caption", "hard_negative")
    )
    texts.save()
    frame = frames.from_table(made.table)
    spaces = {"words": "emb_data__words", "fused": "emb_fused"}
    right = {}
    for name, column in spaces.items():
        photos = take(frames.vectors(frame, column), rows)
        right[name] = (rowwise(photos, own) > rowwise(photos, other)).numpy().astype(float)
    kinds = defaultdict(list)
    for number, line in enumerate(lines):
        kinds[line["kind"]].append(number)
    yield "| what differs | pairs | " + " | ".join(spaces) + " |"
    yield "|---" * (2 + len(spaces)) + "|"
    for kind, of in [*sorted(kinds.items()), ("all", list(range(len(lines))))]:
        cells = []
        for name in spaces:
            interval = mean_interval(right[name][of].tolist())
            cells.append(f"{interval.value:.2f} +- {interval.high - interval.value:.2f}")
        yield f"| {kind} | {len(of)} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    if reason := real_pool.missing() or real_models.missing():
        sys.exit(f"skipped: {reason}")
    print("\n".join(table(options.folder)))


if __name__ == "__main__":
    main()

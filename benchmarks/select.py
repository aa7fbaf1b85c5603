"""Choosing more than the top, and scores that look at other pairs: time and memory beside top-k's scan.

    python -m benchmarks.select [--rows 1000000] [--dim 512] [--budget 0.02] [--over 3]
    python -m benchmarks.select --dog FOLDER [--seeds 5] [--steps 0]

Synthetic pairs in files, as steps leave them: vectors in a hundred directions with noise, annotations of a few words.
Each way in a process of its own, on one thread. Time is that of the CPU, so that what else the machine does stays out
of it; memory is the peak beyond what stood before, so the candidates that are held count.
The scan is three queries' cosines with all pairs and the best of them, from the same files. With ``--dog``, the table
of all strategies on the dog benchmark (`benchmarks.strategies`), five seeds by default.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ranking_topk import Peak
from nemo_mm_rank import frames
from nemo_mm_rank.benchmark.settings import Strategy
from nemo_mm_rank.config import Budget, Query, RankingSettings, parse
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.quality.operators import Batches, OthersSettings
from nemo_mm_rank.quality.operators.others import keys_of, neg_clip_loss
from nemo_mm_rank.ranking import Files, cosines, rank
from nemo_mm_rank.ranking.examples import KIND, Examples, Likeness
from nemo_mm_rank.topk import TopK

SHARD = 10_000
COLUMNS = ["cosine__annotation", "cosine__fused"]
WORDS = [f"word{number}" for number in range(2000)]
EXAMPLES = 1000


def write_pool(folder: Path, rows: int, dim: int) -> Files:
    """Write shards of pairs with both sides' vectors, scores and annotations."""
    centres = torch.nn.functional.normalize(torch.randn(100, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    paths = []
    for shard, start in enumerate(range(0, rows, SHARD)):
        n = min(SHARD, rows - start)
        generator = torch.Generator().manual_seed(shard + 1)
        rng = np.random.default_rng(shard)
        kind = torch.randint(0, 100, (n,), generator=generator)
        data, annotation = (centres[kind] + 0.05 * torch.randn(n, dim, generator=generator) for _ in range(2))
        scores = pa.array(rng.normal(0.3, 0.1, n).astype(np.float32))
        said = rng.zipf(1.3, (n, 8)) % len(WORDS)
        table = pa.table(
            {
                "pair_id": [f"pair-{start + number:09d}" for number in range(n)],
                "pool": pa.array(["demo"] * n),
                "modality": pa.array(["image"] * n),
                "error": pa.nulls(n, pa.string()),
                "annotation": [" ".join(WORDS[word] for word in row) for row in said.tolist()],
                **dict.fromkeys(COLUMNS, scores),
                "emb_fused": frames.to_arrow(Vectors.full(data)),
                "emb_annotation__text": frames.to_arrow(Vectors.full(annotation)),
            }
        )
        write_table(folder / f"part-{shard:05d}.parquet", table)
        paths.append((folder / f"part-{shard:05d}.parquet",))
    return Files(tuple(paths))


def vectors(shards: Files, columns: list[str]) -> Iterator[tuple[list[Vectors], list[str]]]:
    for part in range(shards.count):
        table = shards.read(part, ["pair_id", *columns])
        frame = frames.from_table(table)
        yield [frames.vectors(frame, name) for name in columns], table["pair_id"].to_pylist()


def scan(shards: Files, budget: int, _: int) -> int:
    queries = torch.nn.functional.normalize(torch.randn(3, shards_dim(shards)), dim=1)
    best = TopK(budget)
    for [fused], ids in vectors(shards, ["emb_fused"]):
        best.add(cosines(fused.values, queries).amax(1).double().numpy(), pa.array(ids), pa.table({"pair_id": ids}))
    return budget


def shards_dim(shards: Files) -> int:
    [fused], _ = next(vectors(shards, ["emb_fused"]))
    return int(fused.values.shape[1])


def negcliploss(shards: Files, budget: int, _: int) -> int:
    settings = OthersSettings(expert="x", model="x")
    sides, ids = next(vectors(shards, ["emb_fused", "emb_annotation__text"]))
    batches = Batches.of(sides[0], sides[1], ids, settings)
    for sides, ids in vectors(shards, ["emb_fused", "emb_annotation__text"]):
        neg_clip_loss(sides[0], sides[1], keys_of(ids), batches, settings.temperature)
    return budget


def like(shards: Files, budget: int, _: int) -> int:
    [fused], ids = next(vectors(shards, ["emb_fused"]))
    words = dict.fromkeys(("pair_id", "data", "annotation", "media_root"), ids[:EXAMPLES])
    rows = pa.table({**words, "modality": ["image"] * EXAMPLES, KIND: ["pairs"] * EXAMPLES})
    values = torch.nn.functional.normalize(fused.values[:EXAMPLES], dim=1)
    examples = Examples(rows, {"emb_fused": Vectors.full(values)})
    likeness = Likeness(parse(Query, {"like": "examples"}), examples, "text")
    for part in range(shards.count):
        likeness.scores(frames.from_table(shards.read(part, ["emb_fused"])))
    return budget


def chosen(how: str) -> Callable[[Files, int, int], int]:
    def work(shards: Files, budget: int, over: int) -> int:
        settings = parse(
            RankingSettings, {"select": {"how": how, "over": over}, "weights": {"annotation": 1.0}, "conditions": {}}
        )
        return len(rank(shards, COLUMNS, settings, Budget(count=budget)).chosen)

    return work


WORK: dict[str, Callable[[Files, int, int], int]] = {
    "top-k's scan (3 queries)": scan,
    f"like, {EXAMPLES:,} examples": like,
    "negCLIPLoss, 4 batches of 512": negcliploss,
    **{f"rank, {how}": chosen(how) for how in ("top", "clusters", "soft-cap", "balanced", "diverse", "coverage")},
}


def measure(name: str, shards: Files, budget: int, over: int, out: Any) -> None:
    torch.set_num_threads(1)
    with Peak() as peak:
        start = time.process_time()
        count = WORK[name](shards, budget, over)
        seconds = time.process_time() - start
    out.put((seconds, peak.mib, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--budget", type=float, default=0.02)
    parser.add_argument("--over", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="what has one of these words in its name; the scan first"
    )
    parser.add_argument("--dog", type=Path, help="instead: the dog benchmark's table, in this folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of the dog benchmark's training; 0: none")
    options = parser.parse_args()
    if options.dog:
        more = [] if options.steps is None else ["--steps", str(options.steps)]
        asked = ["--query", "dog", "--seeds", str(options.seeds), "--output", str(options.dog), *more]
        sys.exit(subprocess.call([sys.executable, "-m", "benchmarks.strategies", *asked, "--strategies", *Strategy]))
    budget = int(options.rows * options.budget)
    table = Table(title=f"{options.rows:,} x {options.dim}, budget {budget:,}, candidates {options.over} x budget")
    for column in ("what", "CPU time", "beside the scan", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    spawn, base = multiprocessing.get_context("spawn"), None
    with tempfile.TemporaryDirectory() as folder:
        shards = write_pool(Path(folder), options.rows, options.dim)
        words = ["scan", *options.only] if options.only else [""]
        for name in (name for name in WORK if any(word in name for word in words)):
            out = spawn.SimpleQueue()
            process = spawn.Process(target=measure, args=(name, shards, budget, options.over, out))
            process.start()
            seconds, mib, _ = out.get()
            process.join()
            base = base or seconds
            table.add_row(name, f"{seconds:.1f} s", f"{seconds / base:.1f}", f"{mib:.0f} MiB")
            print(f"{name}: {seconds:.1f} s, {mib:.0f} MiB", file=sys.stderr, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

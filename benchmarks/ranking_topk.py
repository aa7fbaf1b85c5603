"""Ranking: time against bare ``matmul`` + ``topk``, and memory against the number of shards.

    python -m benchmarks.ranking_topk [--rows 1000000] [--dim 512] [--pool 10000000]

The peers run in the same process (first table) or in a process of their own each, like ours (second table).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.ranking import Files, cosines, rank, top_k

COSINES = ["cosine__annotation", "cosine__fused", "cosine__words"]
MIB = 1 << 20
P = ParamSpec("P")


class Peak(AbstractContextManager["Peak"]):
    """Peak resident memory while the block runs, above what was there before it, in MiB."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        return (self._highest - self._before) / MIB


def in_memory(rows: int, dim: int, k: int, repeats: int) -> Table:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.empty(rows, dim)
    for start in range(0, rows, 50_000):
        block = vectors[start : start + 50_000]
        block.copy_(torch.nn.functional.normalize(torch.randn(block.shape, generator=generator), dim=1))
    queries = torch.nn.functional.normalize(torch.randn(3, dim, generator=generator), dim=1)
    ids = pa.array([f"pair-{i:09d}" for i in range(rows)])

    def ours(directions: torch.Tensor) -> np.ndarray:
        return top_k(cosines(vectors, directions).amax(1), k, ids)

    def bare(directions: torch.Tensor) -> np.ndarray:
        found: np.ndarray = torch.topk((vectors @ directions.T).amax(1), k).indices.numpy()
        return found

    table = Table(title=f"{rows:,} x {dim} float32, k = {k:,}, {torch.get_num_threads()} threads, {repeats} runs each")
    for column in ("queries", "matmul + topk", "cosines + top_k", "ratio", "memory beyond input", "same pairs"):
        table.add_column(column, justify="right", no_wrap=True)
    for count in (1, 3):
        directions = queries[:count]
        with Peak() as peak:
            found = ours(directions)
        same = len(np.intersect1d(found, bare(directions))) / k
        # In turns, so that both meet the same load of the machine.
        pairs = [(_seconds(bare, directions), _seconds(ours, directions)) for _ in range(repeats)]
        theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
        table.add_row(
            str(count),
            f"{theirs * 1e3:.0f} ms",
            f"{mine * 1e3:.0f} ms",
            f"{mine / theirs:.2f}",
            f"{peak.mib:.0f} MiB",
            f"{same:.2%}",
        )
    return table


def _seconds(work: Callable[P, object], *args: P.args, **named: P.kwargs) -> float:
    start = time.perf_counter()
    work(*args, **named)
    return time.perf_counter() - start


def write_scores(folder: Path, rows: int, shards: int) -> Files:
    """Write what `ScoreStep` leaves of a pool: the same rows however many shards."""
    paths = []
    for shard, numbers in enumerate(np.array_split(np.arange(rows), shards)):
        rng = np.random.default_rng(int(numbers[0]))
        scores = {name: pa.array(rng.normal(0.2, 0.1, len(numbers)).astype(np.float32)) for name in COSINES}
        words = {
            "pair_id": pa.array([f"pair-{number:09d}" for number in numbers]),
            "pool": pa.array(["demo"] * len(numbers)),
            "modality": pa.array(["image", "text"] * (len(numbers) // 2) + ["image"] * (len(numbers) % 2)),
            "error": pa.nulls(len(numbers), pa.string()),
        }
        path = folder / f"part-{shard:05d}.parquet"
        write_table(path, pa.table({**words, **scores}))
        paths.append((path,))
    return Files(tuple(paths))


def stream(shards: Files, k: int) -> int:
    return len(rank(shards, COSINES, RankingSettings(), Budget(count=k)).chosen)


def gather(shards: Files, k: int) -> int:
    frame = pd.concat([pd.read_parquet(path) for (path,) in shards.parts], ignore_index=True)
    scores = frame[COSINES]
    frame["score"] = ((scores - scores.mean()) / scores.std()).sum(axis=1)
    return len(frame.sort_values(["score", "pair_id"], ascending=[False, True]).head(k))


def measure(work: Callable[[Files, int], int], shards: Files, k: int, out: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    with Peak() as peak:
        seconds = _seconds(work, shards, k)
    out.put((seconds, peak.mib))


def sharded(pool: int, k: int) -> Table:
    table = Table(title=f"choosing {k:,} pairs from files of scores, each in a process of its own")
    for column in ("pairs", "shards", "how", "time", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    spawn = multiprocessing.get_context("spawn")
    for rows, shards in ((pool // 10, 10), (pool, 100), (pool, 10)):
        with tempfile.TemporaryDirectory() as folder:
            files = write_scores(Path(folder), rows, shards)
            for how, work in (("rank, shard by shard", stream), ("pandas, all at once", gather)):
                out = spawn.SimpleQueue()
                process = spawn.Process(target=measure, args=(work, files, k, out))
                process.start()
                seconds, mib = out.get()
                process.join()
                table.add_row(f"{rows:,}", str(shards), how, f"{seconds:.1f} s", f"{mib:.0f} MiB")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--pool", type=int, default=10_000_000)
    parser.add_argument("--k", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(in_memory(options.rows, options.dim, options.k, options.repeats))
    console.print(sharded(options.pool, options.k))


if __name__ == "__main__":
    main()

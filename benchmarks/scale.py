"""What grows with budget and shards, in CPU seconds, which other work on the machine hardly changes.

    python -m benchmarks.scale [--budgets 5000 10000 20000] [--tasks 2000] [--shards 250 500] [--workers 2]

Near-duplicates: candidates in topics, one in ten nearly equal to another; all are wanted. Shards: texts of a few words,
five rows a shard, from manifest to blend with the cheapest models, so that what is left is the cost of a shard.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.config import Config, EngineSettings
from nemo_mm_rank.engine import make_engine
from nemo_mm_rank.ranking.select import DistinctFirst
from nemo_mm_rank.run.curation import curate

ROWS = 5


def seconds() -> float:
    """Return the CPU seconds of this process and of those of its children that have ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in spent)


def candidates(n: int, dimensions: int = 512, topics: int = 200) -> npt.NDArray[np.float32]:
    """Return embeddings in topics, whose spread falls from one direction to the next."""
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(1 + np.arange(dimensions) / 8)
    centres = rng.standard_normal((topics, dimensions)) * spread
    vectors = centres[rng.integers(topics, size=n)] + 0.8 * spread * rng.standard_normal((n, dimensions))
    doubles = rng.choice(n, n // 10, replace=False)
    vectors[doubles] = vectors[rng.integers(n, size=len(doubles))]
    vectors[doubles] += 0.02 * rng.standard_normal((len(doubles), dimensions))
    return vectors.astype(np.float32)


def collapse(n: int) -> str:
    vectors = candidates(n)
    before = seconds()
    picker = DistinctFirst(vectors, 0.95)
    picker.take(np.arange(n), np.zeros(n, np.int64), np.array([n]))
    return f"{n:>9,} candidates: {seconds() - before:6.1f} s, {int(picker.taken.sum()):,} taken"


def run(folder: Path, shards: int, workers: int) -> str:
    rng, pool = np.random.default_rng(0), folder / "pool.jsonl"
    words = [f"word{number}" for number in range(400)]
    with pool.open("w") as lines:
        for row in range(shards * ROWS):
            data, annotation = (" ".join(rng.choice(words, 8)) for _ in range(2))
            row_of = {"id": f"pair-{row}", "modality": "text", "data": data, "annotation": annotation}
            lines.write(json.dumps(row_of) + "\n")
    values = {
        "pools": str(pool),
        "queries": "word1 word2",
        "budget": 100,
        "output": str(folder / "run"),
        "models": {"text": {"class": "hashed-text", "dim": 64}},
        "experts": [{"name": "text", "kind": "text-based", "encoder": "text"}],
        "sns": {"mode": "off"},
        "projection": {"max_epochs": 1, "folds": 2, "threads": 1, "max_pairs": 1000},
        "engine": {"workers": workers} if workers else {},
        "rows_per_shard": ROWS,
    }
    config = Config.model_validate(values)
    told = []
    for what in ("first", "again"):
        spent, clock = seconds(), time.process_time()
        found = curate(config)
        told.append(f"{what} {seconds() - spent:6.1f} s (driver {time.process_time() - clock:.1f})")
    digest = found.manifest["blend"]["digest"]
    return f"{shards:>9,} shards, {workers} workers: {', '.join(told)}; blend {digest}"


def nothing(part: int) -> int:
    return part


def tasks(shards: int, workers: int) -> str:
    engine = make_engine(EngineSettings(workers=workers))
    try:
        clock = time.process_time()
        done = len(dict(engine.map(nothing, range(shards))))
        return f"{done:>9,} shards with nothing to do, {workers} workers: driver {time.process_time() - clock:.1f} s"
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="*", default=[5000, 10_000, 20_000])
    parser.add_argument("--shards", type=int, nargs="*", default=[250, 500])
    parser.add_argument("--tasks", type=int, nargs="*", default=[2000], help="shards with nothing to do, on Dask")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    for n in options.budgets:
        print(collapse(n), flush=True)
    for shards in options.tasks:
        print(tasks(shards, options.workers or 2), flush=True)
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            print(run(Path(folder), shards, options.workers), flush=True)


if __name__ == "__main__":
    main()

"""What our Curator stages cost beside a bare stage that calls the same models, and what the executors cost themselves.

    python -m benchmarks.curator_overhead [--rows 256] [--batches 6] [--runs 3] [--executors]

The stages run in this process, in turn, on the same batches of texts with the same sentence encoder. The executors run
pipelines of a stage that does nothing, over few batches and over many: the difference is the cost of a batch, the rest
is start-up. Memory is that of all processes that a pipeline starts, at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pyarrow as pa
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch

from benchmarks import real_pool, weights
from nemo_mm_rank import frames
from nemo_mm_rank.curator import ExpertEmbeddingStage
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.models import loader

MODELS = {"minilm": {"class": "sentence-transformers", "path": weights.minilm()}}
EXPERTS = [{"name": "words", "kind": "text-based", "encoder": "minilm"}]

FEW, MANY = 4, 64

EXECUTORS: dict[str, Callable[[], Any]] = {
    "RayActorPool": lambda: RayActorPoolExecutor(show_progress=False),
    "RayData": RayDataExecutor,
    "Xenna, batch mode": lambda: XennaExecutor({"execution_mode": "batch"}),
}


class BareStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Calls the encoder on both sides of a batch and adds two columns; minds nothing else."""

    name = "bare"

    def __init__(self) -> None:
        self._encoder: Any = None

    def setup(self, worker_metadata: Any = None) -> None:
        spec = MODELS["minilm"]
        self._encoder = loader.find_class(spec["class"])(path=spec["path"], device="cpu")

    def process(self, task: DocumentBatch) -> DocumentBatch:
        table = task.data
        for name in ("data", "annotation"):
            vectors = self._encoder.encode(table[name].to_pylist(), "text").vectors
            table = table.append_column(f"emb_{name}", frames.to_arrow(Vectors.full(vectors)))
        return DocumentBatch(task.dataset_name, table, _stage_perf=task._stage_perf, _metadata=task._metadata)


class NothingStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Hands batches on; a worker that stays, as one with a model is."""

    name = "nothing"

    def setup(self, worker_metadata: Any = None) -> None:
        """Nothing to load."""

    def process(self, task: DocumentBatch) -> DocumentBatch:
        return task


def batches(rows: int, count: int) -> list[DocumentBatch]:
    """Return batches of the real pool's texts and code, every text in one of them only."""
    lines = [json.loads(line) for line in real_pool.POOL.read_text(encoding="utf-8").splitlines()]
    texts = [line for line in lines if line["modality"] in ("text", "code")]
    texts = list({(line["data"], line["annotation"]): line for line in texts}.values())
    names = ("pair_id", "pool", "modality", "data", "annotation")
    return [
        DocumentBatch("texts", pa.table({name: [line[name] for line in texts[start : start + rows]] for name in names}))
        for start in range(0, min(rows * count, len(texts)), rows)
    ]


def stages(rows: int, count: int, runs: int) -> None:
    work = batches(rows, count)
    seconds: dict[str, list[float]] = {"bare stage": [], "ExpertEmbeddingStage": []}
    for _ in range(runs):
        for name, took in seconds.items():
            loader.release()  # and with the models what they remember: every run embeds everything
            stage: Any = BareStage()
            if name != "bare stage":
                stage = ExpertEmbeddingStage(experts=EXPERTS, models=MODELS, anchor="minilm")
            stage.setup()
            stage.process(DocumentBatch("first", work[0].data.slice(0, 1)))
            started = time.process_time()
            for task in work:
                stage.process(task)
            took.append(time.process_time() - started)
    n = sum(task.num_items for task in work)
    bare = seconds["bare stage"]
    print(f"{n:,} pairs of text in {len(work)} batches, {runs} runs in turn, CPU seconds\n")
    print("| stage | median s | min s | max s | ratio to bare (median of the runs) |")
    print("|---|---|---|---|---|")
    for name, took in seconds.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(took, bare, strict=True))
        print(f"| {name} | {statistics.median(took):.2f} | {min(took):.2f} | {max(took):.2f} | {ratio:.3f} |")


class Memory(threading.Thread):
    """Follows the memory of this process's children, in MiB; shared pages are counted once for each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._stop_now = 0.0, threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total / 2**20)

    def stop(self) -> float:
        self._stop_now.set()
        self.join()
        return self.peak


def executors() -> None:
    table = pa.table({"text": ["a short text"] * 16})
    print("\n| executor | start-up s | a batch ms | peak MiB of its processes |")
    print("|---|---|---|---|")
    for name, make in EXECUTORS.items():
        took = {}
        memory = Memory()
        memory.start()
        for count in (FEW, MANY):
            tasks = [DocumentBatch("nothing", table) for _ in range(count)]
            started = time.perf_counter()
            done = Pipeline("nothing", stages=[NothingStage()]).run(make(), tasks)
            took[count] = time.perf_counter() - started
            assert done is not None
            assert len(done) == count
        batch = max(0.0, took[MANY] - took[FEW]) / (MANY - FEW)
        print(f"| {name} | {took[FEW] - FEW * batch:.1f} | {1000 * batch:.0f} | {memory.stop():,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--executors", action="store_true", help="measure Curator's executors as well")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    stages(options.rows, options.batches, options.runs)
    if options.executors:
        executors()


if __name__ == "__main__":
    main()

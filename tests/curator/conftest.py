"""A small pool with everything in it, a finished run of it, and pipelines that need no cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nemo_mm_rank import curate
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.curation import Result
from tests.integration.runs import settings

pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")

from nemo_curator.backends.base import BaseStageAdapter
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch, EmptyTask, Task

Through = Callable[[Sequence[ProcessingStage[Any, Any]], Sequence[Task[Any]] | None], list[Any]]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of each modality, two of them with a foreign sentence, and four faulty ones."""
    return make_demo_pool(tmp_path_factory.mktemp("curator") / "pool", 5)


@pytest.fixture(scope="session")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run of the pool, everything trimmed."""
    output = tmp_path_factory.mktemp("curator") / "run"
    ranking = {
        "weights": {"fused": 0.5, "experts": 2.0, "annotation": 1.0},
        "calibration": "quantile",
    }
    return curate(config=settings(pool, output, budget=10, ranking=ranking), progress=False)


@pytest.fixture(scope="session")
def rows(run: Result) -> pa.Table:
    """The pairs of the run as it read them."""
    return read_table(run.folder / "pool" / "part-00000.parquet")


@pytest.fixture
def batch(rows: pa.Table) -> DocumentBatch:
    """The same as a batch from somewhere."""
    return DocumentBatch(dataset_name="demo", data=rows, _metadata={"source_files": ["pool.jsonl"]})


@pytest.fixture(scope="session")
def through() -> Through:
    """Take tasks through stages as executors do, one at a time, in this process."""

    def go(stages: Sequence[ProcessingStage[Any, Any]], tasks: Sequence[Task[Any]] | None = None) -> list[Any]:
        pipeline = Pipeline("test", stages=list(stages))
        pipeline.build()
        flowing = list(tasks or [EmptyTask()])
        for stage in pipeline.stages:
            adapter = BaseStageAdapter(stage)
            adapter.setup_on_node()
            adapter.setup()
            flowing = [out for task in flowing for out in adapter.process_batch([task])]
            adapter.teardown()
        return flowing

    return go


@pytest.fixture(scope="module")
def ffprobe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """See that there is an `ffprobe`, which Curator's video stages run."""
    with pytest.MonkeyPatch.context() as patch:
        if shutil.which("ffprobe") is None:
            program = tmp_path_factory.mktemp("bin") / "ffprobe"
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("ffprobe.py")} "$@"\n')
            program.chmod(0o755)
            patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        yield

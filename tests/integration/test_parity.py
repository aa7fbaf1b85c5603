"""The same pool through plain steps, Dask, Curator's executors and Curator's stages: the same pairs, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank import curate, frames
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.state import State
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, FUSED, PAIR_ID, SNS_REASON
from tests.integration.faults import make_pools
from tests.integration.runs import digests, settings

pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")

from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor

from nemo_mm_rank.curator.engine import CuratorEngine
from nemo_mm_rank.curator.workflow import MultimodalRankWorkflow

BUDGET = 20

EXECUTORS: dict[str, Callable[[], Any]] = {
    "ray-actor-pool": lambda: RayActorPoolExecutor(show_progress=False),
    "ray-data": RayDataExecutor,
    "xenna": lambda: XennaExecutor({"execution_mode": "batch"}),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pools(tmp_path_factory.mktemp("pool") / "pool", 5)[0]


@pytest.fixture(scope="module")
def plain(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that all others are held against: plain steps in this process."""
    folder = tmp_path_factory.mktemp("plain")
    return curate(config=settings(pool, folder / "run", shards=3, budget=BUDGET), progress=False)


def rows(run: Path) -> pa.Table:
    """Return everything that a run made of its pairs, by ``pair_id``."""
    folder = RunFolder(run)
    shards = State.load(folder).open(folder)
    return pa.concat_tables(shards.read(part) for part in range(shards.count)).sort_by(PAIR_ID)


def assert_same_pairs(found: pa.Table, expected: pa.Table) -> None:
    """Check that spans, reasons and errors are equal, and embeddings equal to 1e-5."""
    assert found.num_rows == expected.num_rows
    vectors = [name for name in expected.column_names if name.startswith("emb_")]
    assert FUSED in vectors
    assert len(vectors) > 3
    for name in (PAIR_ID, DATA_SPANS, ANNOTATION_SPANS, SNS_REASON, ERROR):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for name in vectors:
        mine, theirs = (frames.vectors(frames.from_table(table.select([name])), name) for table in (found, expected))
        assert mine.valid.tolist() == theirs.valid.tolist(), name
        np.testing.assert_allclose(mine.values.numpy(), theirs.values.numpy(), atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dask", *EXECUTORS])
def test_the_same_by_every_way(way: str, pool: Path, plain: Result, tmp_path: Path) -> None:
    config = settings(pool, tmp_path / "run", budget=BUDGET, shards=4)
    if way == "dask":
        curate(config={**config, "engine": {"workers": 2}}, progress=False)
    else:
        outcome = MultimodalRankWorkflow(config=config).run(EXECUTORS[way]())
        assert outcome.get_metadata("manifest") == plain.manifest
        assert sorted(outcome.pipeline_tasks) == ["count", "projection + rank", "sns + experts"]
        assert sorted(task.data for task in outcome.pipeline_tasks["sns + experts"]) == [0, 1, 2, 3]
    assert digests(tmp_path / "run") == digests(plain.folder)
    assert_same_pairs(rows(tmp_path / "run"), rows(plain.folder))

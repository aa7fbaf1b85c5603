"""The same pool through plain steps, Dask, Curator's executors and Curator's stages: the same pairs, to the byte."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from nemo_mm_rank import curate, frames
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, FUSED, PAIR_ID, SNS_REASON
from tests.integration.faults import make_pools
from tests.integration.runs import digests, settings

pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")

from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.backends.xenna import XennaExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.io.writer import ParquetWriter

from nemo_mm_rank.curator import MultimodalRankStage, MultimodalRankWorkflow, PoolReader

pytestmark = pytest.mark.usefixtures("ray_alone")

BUDGET = 20

ROOT = Path(__file__).resolve().parents[2]
CURATOR09 = ROOT / ".venv-curator09" / "bin" / "python"

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
    assert found.num_rows == expected.num_rows > 0
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
        assert sorted(outcome.pipeline_tasks) == ["count", "match", "projection", "rank", "sns + experts"]
        assert sorted(task.data for task in outcome.pipeline_tasks["sns + experts"]) == [0, 1, 2, 3]
    assert digests(tmp_path / "run") == digests(plain.folder)
    assert_same_pairs(rows(tmp_path / "run"), rows(plain.folder))


@pytest.mark.slow
def test_the_same_by_stages(pool: Path, plain: Result, tmp_path: Path) -> None:
    stages = [
        PoolReader(pools=pool, rows_per_batch=17),
        MultimodalRankStage(run=plain.folder),
        ParquetWriter(str(tmp_path / "out")),
    ]
    Pipeline("stages", stages=stages).run(EXECUTORS["ray-actor-pool"]())
    found = ds.dataset(tmp_path / "out").to_table()
    bad = pc.fill_null(pc.starts_with(found[ERROR].cast(pa.string()), "pool: "), False)
    live = found.filter(pc.invert(bad))
    assert_same_pairs(live.sort_by(PAIR_ID), rows(plain.folder))
    scores = dict(zip(found[PAIR_ID].to_pylist(), found["score"].to_pylist(), strict=True))
    assert [scores[name] for name in plain.blend[PAIR_ID]] == plain.blend["score"].tolist()


@pytest.mark.slow
@pytest.mark.skipif(not CURATOR09.exists(), reason="needs what `make test-curator09` installs")
def test_the_same_by_curator_09(plain: Result, tmp_path: Path) -> None:
    script = ROOT / "tests" / "legacy" / "parity_run.py"
    done = subprocess.run(
        [str(CURATOR09), str(script), str(plain.folder), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = pa.concat_tables(read_table(file) for file in sorted(tmp_path.glob("part-*.parquet")))
    assert_same_pairs(found.sort_by(PAIR_ID), rows(plain.folder))

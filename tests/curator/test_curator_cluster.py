from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline

from nemo_mm_rank.curator import ExpertEmbeddingStage, PoolReader, QuarantineStage

pytestmark = pytest.mark.usefixtures("ray_alone")


@pytest.mark.slow
def test_on_ray_as_in_this_process(pool: Path, tmp_path: Path, through: Any) -> None:
    def stages(quarantine: Path) -> list[Any]:
        return [PoolReader(pools=pool, rows_per_batch=12), ExpertEmbeddingStage(), QuarantineStage(quarantine)]

    here = through(stages(tmp_path / "here"))
    there = Pipeline("there", stages=stages(tmp_path / "there")).run(RayActorPoolExecutor(show_progress=False)) or []
    assert sorted(task.task_id for task in there) == sorted(task.task_id for task in here)
    found, expected = (
        pa.concat_tables(task.data for task in sorted(tasks, key=lambda task: task.task_id)) for tasks in (there, here)
    )
    assert found.equals(expected)
    assert sorted(file.name for file in (tmp_path / "there").iterdir()) == sorted(
        file.name for file in (tmp_path / "here").iterdir()
    )
    assert pd.read_parquet(tmp_path / "there").equals(pd.read_parquet(tmp_path / "here"))
    assert {perf.stage_name for perf in there[0]._stage_perf} >= {"experts", "quarantine"}

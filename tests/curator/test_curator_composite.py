from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.io.writer import ParquetWriter

from nemo_mm_rank.curator import MultimodalRankStage, PoolReader
from nemo_mm_rank.errors import ConfigError, ModelError, UserError
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.schema import PAIR_ID


def read(tasks: list[Any]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for task in tasks for file in task.data], ignore_index=True)


def test_a_finished_run_on_the_same_pool_says_the_same(pool: Path, run: Result, tmp_path: Path, through: Any) -> None:
    rank = MultimodalRankStage(run=run.folder, quarantine=tmp_path / "quarantine")
    reader = PoolReader(pools=pool, rows_per_batch=7)
    out = read(through([reader, rank, ParquetWriter(path=str(tmp_path / "out"))]))
    quarantine = pd.read_parquet(tmp_path / "quarantine")
    assert sorted(quarantine[PAIR_ID].dropna()) == sorted(run.quarantine[PAIR_ID].dropna())
    told = ["step", "error"]
    assert sorted(map(tuple, quarantine[told].to_numpy())) == sorted(map(tuple, run.quarantine[told].to_numpy()))
    assert len(out) + len(quarantine) == run.manifest["counts"]["pool"]["rows"]
    assert out["error"].isna().all()
    best = out.sort_values(["score", PAIR_ID], ascending=[False, True]).head(len(run.blend))
    assert best[PAIR_ID].tolist() == run.blend[PAIR_ID].tolist()
    assert best["score"].tolist() == run.blend["score"].tolist()
    spans = dict(zip(out[PAIR_ID], out["sns_annotation_spans"], strict=True))
    for name, kept in zip(run.blend[PAIR_ID], run.blend["sns_annotation_spans"], strict=True):
        assert (spans[name] is None) == (kept is None)
        if kept is not None:
            assert [part.tolist() for part in spans[name]] == [part.tolist() for part in kept]


@pytest.mark.parametrize("form", ["mapping", "object", "file"])
def test_from_a_configuration_and_a_projection(form: str, run: Result, tmp_path: Path) -> None:
    finished = FinishedRun.load(run.folder)
    values = finished.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    config: Any = finished.config
    if form == "mapping":
        config = {key: value for key, value in values.items() if key != "pools"}
    elif form == "file":
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(values))
    stage = MultimodalRankStage(config=config, projection=finished.projection)
    assert [part.name for part in stage.decompose()] == ["sns", "experts", "projection", "rank"]
    assert "score" not in stage.outputs()[1]
    from_run = MultimodalRankStage(run=run.folder, quarantine=tmp_path / "failed")
    assert stage.inputs() == from_run.inputs()
    assert [part.name for part in from_run.decompose()] == [
        "sns",
        "experts",
        "projection",
        "match",
        "rank",
        "quarantine",
    ]


def test_sns_that_is_off_is_left_out(run: Result) -> None:
    finished = FinishedRun.load(run.folder)
    config = finished.config.model_copy(update={"sns": finished.config.sns.model_copy(update={"mode": "off"})})
    stage = MultimodalRankStage(config=config, projection=finished.projection)
    assert [part.name for part in stage.decompose()] == ["experts", "projection", "rank"]


def test_resources_and_a_pipeline_s_description(pool: Path, run: Result, tmp_path: Path) -> None:
    stage = MultimodalRankStage(run=run.folder, quarantine=tmp_path, resources=Resources(cpus=2))
    stage.with_({"experts": {"resources": Resources(cpus=3)}})
    pipeline = Pipeline("p", stages=[PoolReader(pools=pool), stage])
    pipeline.build()
    assert {part.name: part.resources.cpus for part in pipeline.stages} == {
        "pool_files": 0.5,
        "pool_reader": 1.0,
        "sns": 2,
        "experts": 3,
        "projection": 1.0,
        "match": 2,
        "rank": 1.0,
        "quarantine": 1.0,
    }
    text = pipeline.describe()
    assert "Error" not in text
    assert "score" in text
    for part in pipeline.stages:
        assert type(pickle.loads(pickle.dumps(part))) is type(part)


def test_what_can_be_mended_is_said(run: Result, tmp_path: Path) -> None:
    for arguments in ({}, {"run": run.folder, "config": {"queries": "x"}}, {"config": {"queries": "x"}}):
        with pytest.raises(ConfigError, match="give either the run, or both config and projection"):
            MultimodalRankStage(**arguments)
    with pytest.raises(UserError, match="is not a run"):
        MultimodalRankStage(run=tmp_path)
    with pytest.raises(ConfigError, match="querys: unknown key; did you mean 'queries'"):
        MultimodalRankStage(config={"querys": "x"}, projection=tmp_path)
    with pytest.raises(ModelError, match="contains no projection"):
        MultimodalRankStage(config={"queries": "x"}, projection=tmp_path)

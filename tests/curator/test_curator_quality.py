"""EcoDatum's stages give new pairs what the job gave its own, one by one, as one, and in a pipeline."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.config import parse
from nemo_mm_rank.curator import (
    ColumnQualityStage,
    EcoDatumStage,
    EnsembleStage,
    ExpertEmbeddingStage,
    MediaQualityStage,
    TextQualityStage,
)
from nemo_mm_rank.curator.stages import to_table
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.ecodatum import EcoDatumConfig, EcoDatumResult, OperatorSetup, curate
from tests.curator.conftest import Through


@pytest.fixture(scope="module")
def job(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> EcoDatumResult:
    output = tmp_path_factory.mktemp("quality") / "run"
    return curate(parse(EcoDatumConfig, {"pools": str(pool), "output": str(output), "duplicates": "off"}))


def test_the_whole_chain_scores_pairs_as_the_job_did(
    job: EcoDatumResult, rows: pa.Table, through: Through, tmp_path: Path
) -> None:
    stage = EcoDatumStage(run=job.folder, quarantine=tmp_path / "failed")
    names = [f"quality-{kind}" for kind in ("texts", "media", "columns", "sentences", "ensemble")]
    assert [one.name for one in stage.decompose()] == ["experts", *names, "quarantine"]
    batches = [DocumentBatch(dataset_name="demo", data=rows.slice(start, 7)) for start in range(0, len(rows), 7)]
    found = pd.concat([to_table(task).to_pandas() for task in through([stage], batches)])
    ours, theirs = found.set_index("pair_id"), job.quality.set_index("pair_id")
    assert sorted(ours.index) == sorted(theirs.index)
    assert ours.loc[theirs.index, "quality"].tolist() == theirs["quality"].tolist()
    assert [list(votes) for votes in ours.loc[theirs.index, "votes"]] == [list(votes) for votes in theirs["votes"]]
    failed = pd.concat([pd.read_parquet(file) for file in (tmp_path / "failed").glob("*.parquet")])
    by_steps = job.quarantine[job.quarantine["file"].isna()]  # all others never became pairs
    assert (
        failed[["pair_id", "step", "error"]].values.tolist() == by_steps[["pair_id", "step", "error"]].values.tolist()
    )


def test_each_kind_of_operator_is_a_stage(job: EcoDatumResult, batch: DocumentBatch) -> None:
    done, _ = OperatorSetup.load(job.folder)
    media = MediaQualityStage(operators={"images": ["blurry"], "fingerprints": False}).process(batch)
    texts = TextQualityStage(operators={"texts": ["words"]}).process(media)
    table = to_table(texts)
    assert [name for name in table.column_names if name.startswith("quality__")] == [
        "quality__blurry",
        "quality__words",
    ]
    embedded = ExpertEmbeddingStage(experts=done.experts, models=done.models, anchor=done.anchor).process(batch)
    agreement = ColumnQualityStage(operators=done.operators, models=done.models).process(embedded)
    steps = job.folder.glob("steps/quality-columns-*/part-00000.parquet")
    expected = read_table(next(steps))["quality__agreement_words"].to_pylist()
    assert to_table(agreement)["quality__agreement_words"].to_pylist() == expected


def test_the_ensemble_by_itself_needs_its_columns(job: EcoDatumResult, batch: DocumentBatch) -> None:
    stage = EnsembleStage(ensemble=job.folder / "fitted" / "ensemble")
    assert stage.outputs()[1] == ["quality", "votes", "error"]
    with pytest.raises(UserError, match=r"quality-ensemble: the frame has no column .*'quality__agreement_words'"):
        stage.process(batch)
    assert pickle.loads(pickle.dumps(stage)).step.identity() == stage.step.identity()


def test_resources_go_to_the_stages_with_models(job: EcoDatumResult) -> None:
    stages = {
        one.name: one
        for one in EcoDatumStage(run=job.folder, resources=Resources(cpus=2.0), allow_failures=0.5).decompose()
    }
    assert {stage.allow_failures for stage in stages.values()} == {0.5}
    cpus = {name: stage.resources.cpus for name, stage in stages.items()}
    assert cpus == {
        "experts": 2.0,
        "quality-texts": 2.0,
        "quality-media": 2.0,
        "quality-columns": 1.0,
        "quality-sentences": 2.0,
        "quality-ensemble": 1.0,
    }


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no finished EcoDatum job"):
        EcoDatumStage(run=tmp_path)
    with pytest.raises(UserError, match="contains no fitted ensemble"):
        EnsembleStage(ensemble=tmp_path)
    with pytest.raises(ConfigError, match="TextQualityStage: the settings name no operator of this kind"):
        TextQualityStage(operators={"texts": []})
    with pytest.raises(ConfigError, match="no model 'clip'"):
        MediaQualityStage(operators={"agreement": {"clip": {"model": "clip"}}})


def test_classes_that_a_job_names_are_loaded_where_trusted(pool: Path, batch: DocumentBatch, tmp_path: Path) -> None:
    own = {"red": {"class": "tests.quality.operators.operator_models:Redness"}}
    settings = {"images": ["dark"], "texts": ["words"], "own": own}
    output = str(tmp_path / "run")
    config = {"pools": str(pool), "output": output, "duplicates": "off", "operators": settings}
    job = curate(parse(EcoDatumConfig, config))
    with pytest.raises(UserError, match="operator 'red' of this run is the class"):
        EcoDatumStage(run=job.folder)
    stages = {one.name: one for one in EcoDatumStage(run=job.folder, trust_run=True).decompose()}
    scored = to_table(pickle.loads(pickle.dumps(stages["quality-media"])).process(batch))
    assert scored["quality__red"].null_count < len(scored)

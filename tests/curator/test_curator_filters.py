from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from nemo_curator.stages.text.filters import Score, ScoreFilter
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.config import ModelSpec, parse
from nemo_mm_rank.curator import BlendMembershipFilter, ObjectiveFilter, PairAgreementFilter, RankScoreStage
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import PAIR_ID

QUERIES: list[str | dict[str, Any]] = ["a dog", {"text": "a printer", "weight": -0.5}]


@pytest.fixture(scope="module")
def finished(run: Result) -> FinishedRun:
    return FinishedRun.load(run.folder)


@pytest.fixture(scope="module")
def fused(run: Result) -> pa.Table:
    folder = RunFolder(run.folder)
    return State.load(folder).open(folder).read(0)


@pytest.mark.parametrize("column", ["emb_fused", "emb_annotation__text"])
@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_objective_s_score_is_that_of_the_ranking(
    column: str, combine: str, finished: FinishedRun, fused: pa.Table, through: Any
) -> None:
    config, models = finished.config, finished.models
    queries: list[str | dict[str, Any]] = [*QUERIES, "the sea"]
    stage = RankScoreStage(
        queries=queries, experts=config.experts, models=models, ranking={"combine": combine, "weights": {"fused": 1}}
    )
    name = "cosine__fused" if column == "emb_fused" else "cosine__annotation"
    expected = stage.process(DocumentBatch("demo", fused)).data[name].to_pylist()
    cut = sorted(value for value in expected if value is not None)[10]
    objective = ObjectiveFilter(queries, cut, models=models, combine=combine)
    filters = ScoreFilter(objective, text_field=column, score_field="objective")
    (out,) = through([filters], [DocumentBatch("demo", fused)])
    kept = [(row, value) for row, value in zip(fused.to_pylist(), expected, strict=True) if value and value >= cut]
    assert out.data[PAIR_ID].tolist() == [row[PAIR_ID] for row, _ in kept]
    assert out.data["objective"].tolist() == [value for _, value in kept]
    assert 0 < len(kept) < fused.num_rows - 1


def test_the_objective_is_embedded_once_and_does_not_travel(finished: FinishedRun, fused: pa.Table) -> None:
    objective = ObjectiveFilter(QUERIES, 0.1, models=finished.models)
    small = pickle.dumps(objective)
    stage = Score(objective, score_field="objective", text_field="emb_fused")
    stage.setup_on_node()
    stage.setup()
    loader.release()
    vector = fused["emb_fused"].drop_null()[0].as_py()
    score = objective.score_document(vector)
    assert len(pickle.dumps(objective)) == len(small)
    assert pickle.loads(small).score_document(vector) == score  # loads what it needs where Curator has not
    for nothing in (None, float("nan"), pd.NA):
        assert math.isnan(objective.score_document(nothing))
    assert math.isnan(objective.score_document([0.0] * len(vector)))
    assert not objective.keep_document(float("nan"))
    with pytest.raises(ConfigError, match=f"the queries by 'text' have {len(vector)} dimensions, the embeddings 3"):
        objective.score_document([1.0, 0.0, 0.0])
    with pytest.raises(ConfigError, match="anchor: there is no model 'txet'; did you mean 'text'"):
        ObjectiveFilter("a dog", 0, anchor="txet")
    with pytest.raises(ConfigError, match="combine"):
        ObjectiveFilter("a dog", 0, combine="sum")


def test_agreement(fused: pa.Table, through: Any) -> None:
    values = fused["agreement_score"].to_pylist()
    cut = sorted(value for value in values if value is not None)[5]
    stage = ScoreFilter(PairAgreementFilter(cut), text_field="agreement_score", score_field="again")
    (out,) = through([stage], [DocumentBatch("demo", fused)])
    assert out.data["again"].tolist() == [value for value in values if value is not None and value >= cut]
    assert None in values  # a pair that failed has none, and goes
    assert stage.name == "PairAgreementFilter"


@pytest.mark.parametrize("place", ["", "blend.parquet"])
def test_membership(place: str, run: Result, fused: pa.Table, tmp_path: Path, through: Any) -> None:
    member = BlendMembershipFilter(run.folder / place)
    stage = ScoreFilter(pickle.loads(pickle.dumps(member)), text_field=PAIR_ID, score_field="member")
    (out,) = through([stage], [DocumentBatch("demo", fused)])
    assert sorted(out.data[PAIR_ID]) == sorted(run.blend[PAIR_ID])
    best = out.data.sort_values("member", ascending=False)
    assert best[PAIR_ID].tolist() == run.blend[PAIR_ID].tolist()
    assert best["member"].tolist() == [1 / rank for rank in run.blend["rank"]]
    others = ScoreFilter(member, text_field=PAIR_ID, invert=True)
    assert others.process(DocumentBatch("demo", fused)).num_items == fused.num_rows - len(run.blend)
    with pytest.raises(UserError, match="this is not a blend"):
        BlendMembershipFilter(tmp_path).load_model()


def test_a_model_that_is_missing(tmp_path: Path) -> None:
    models = {"text": parse(ModelSpec, {"class": "hashed-text", "statistics": str(tmp_path / "none")})}
    stage = ScoreFilter(ObjectiveFilter("a dog", 0, models=models), text_field="emb_fused")
    for do in (stage.setup_on_node, stage.setup):
        with pytest.raises(UserError, match=r"statistics .*none: No such file"):
            do()

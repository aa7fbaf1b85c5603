from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank import curate, rank
from nemo_mm_rank.curator import MultimodalRankStage, RankScoreStage
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ERROR, MODALITY, PAIR_ID
from tests.integration.runs import BROAD, many_texts, settings


def stage_of(finished: FinishedRun, scoring: Scoring | None) -> RankScoreStage:
    config = finished.config
    return RankScoreStage(
        queries=config.queries,
        experts=config.experts,
        models=finished.models,
        anchor=config.anchor,
        ranking=config.ranking,
        scoring=scoring,
    )


def fused(run: Result) -> pa.Table:
    folder = RunFolder(run.folder)
    return State.load(folder).open(folder).read(0)


def test_scores_are_those_of_the_run(run: Result) -> None:
    finished = FinishedRun.load(run.folder)
    table = fused(run)
    done = stage_of(finished, finished.scoring).process(DocumentBatch("demo", table)).data
    scores = dict(zip(done[PAIR_ID].to_pylist(), done["score"].to_pylist(), strict=True))
    blend = dict(zip(run.blend[PAIR_ID], run.blend["score"], strict=True))
    assert {name: scores[name] for name in blend} == blend  # to the bit
    failed = done.filter(pc.is_valid(done[ERROR]))
    assert failed[PAIR_ID].to_pylist() == ["bad-corrupt"]
    assert failed["score"].to_pylist() == [None]
    # Whatever company a pair comes in.
    one = stage_of(finished, finished.scoring).process(DocumentBatch("demo", table.slice(7, 1))).data
    assert one.select(done.column_names).equals(done.slice(7, 1))
    plain = stage_of(finished, None).process(DocumentBatch("demo", table)).data
    assert plain.equals(done.drop_columns(["score"]).select(plain.column_names))


def test_a_broad_objective_scores_by_closeness_to_the_run_s_best(tmp_path: Path) -> None:
    pool = many_texts(tmp_path / "pool.jsonl")
    broad = curate(
        config=settings(pool, tmp_path / "run", budget=40, shards=3, ranking={"broad": BROAD}), progress=False
    )
    assert broad.manifest["ranking"]["topic"]["breadth"] == 1
    finished, folder = FinishedRun.load(broad.folder), RunFolder(broad.folder)
    assert finished.scoring.means
    shards = State.load(folder).open(folder)
    found: dict[str, float] = {}
    for part in range(shards.count):
        done = stage_of(finished, finished.scoring).process(DocumentBatch("demo", shards.read(part))).data
        assert "feedback__fused" in done.column_names
        assert done["feedback__fused"].null_count == 0
        found.update(zip(done[PAIR_ID].to_pylist(), done["score"].to_pylist(), strict=True))
    assert len(found) == 120
    assert {name: found[name] for name in broad.blend[PAIR_ID]} == dict(
        zip(broad.blend[PAIR_ID], broad.blend["score"], strict=True)
    )
    best = sorted(found, key=lambda name: (-found[name], name))[: len(broad.blend)]
    assert best == broad.blend[PAIR_ID].tolist()


def test_a_modality_that_the_run_knows_nothing_of_is_quarantined(run: Result) -> None:
    finished = FinishedRun.load(run.folder)
    table = fused(run)
    strange = table.set_column(
        table.column_names.index(MODALITY), MODALITY, pa.array(["scent", *table[MODALITY].to_pylist()[1:]])
    )
    done = stage_of(finished, finished.scoring).process(DocumentBatch("demo", strange)).data.to_pylist()
    assert done[0][ERROR] == "rank: EmbeddingError: the run has ranked no scent to compare it with"
    assert done[0]["score"] is None
    assert all(row["score"] is not None for row in done if row[ERROR] is None)


def test_a_run_that_was_ranked_again_scores_by_its_last_queries(run: Result, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    again = rank(copy, query=["a dog"], ranking={"calibration": "zscore"})
    finished = FinishedRun.load(copy)
    assert [query.text for query in finished.config.queries] == ["a dog"]
    done = stage_of(finished, finished.scoring).process(DocumentBatch("demo", fused(run))).data
    scores = dict(zip(done[PAIR_ID].to_pylist(), done["score"].to_pylist(), strict=True))
    assert {name: scores[name] for name in again.blend[PAIR_ID]} == dict(
        zip(again.blend[PAIR_ID], again.blend["score"], strict=True)
    )
    RunFolder(copy).manifest.unlink()
    with pytest.raises(UserError, match="the ranking is not finished"):
        FinishedRun.load(copy)
    with pytest.raises(UserError, match="is not a run"):
        FinishedRun.load(tmp_path)


CODE = """
import numpy as np


class Short:
    columns, least = ("annotation",), 0.1

    def __init__(self, name):
        self.name = name

    def chances(self, table):
        return np.array([1 / len(text.split()) for text in table["annotation"].to_pylist()])
"""


def test_a_condition_of_one_s_own_is_asked_of_new_pairs_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "short_of_mine.py").write_text(CODE, encoding="utf-8")
    ranking = {"conditions": {"match": 3.0, "short": {"class": "short_of_mine:Short"}}}
    config = settings(many_texts(tmp_path / "pool.jsonl"), tmp_path / "run", budget=120, shards=2, ranking=ranking)
    run = curate(config=config, import_from=tmp_path, progress=False)
    with pytest.raises(UserError, match="condition 'short' of this run is the class 'short_of_mine:Short'"):
        MultimodalRankStage(run=run.folder)
    stages = MultimodalRankStage(run=run.folder, import_from=tmp_path).decompose()
    stage = pickle.loads(pickle.dumps(stages[-1]))
    assert "annotation" in stage.inputs()[1]
    folder = RunFolder(run.folder)
    done = stage.process(DocumentBatch("demo", State.load(folder).open(folder).read(1))).data
    blend = dict(zip(run.blend[PAIR_ID], run.blend["score"], strict=True))
    assert done["score"].to_pylist() == [blend[name] for name in done[PAIR_ID].to_pylist()]
    assert set(done["condition__short"].to_pylist()) <= {1 / 4, 1 / 5}

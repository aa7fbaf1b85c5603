"""Scores from a file beside the pool's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nemo_mm_rank import curate, rank
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.ranking.query_scores import Given
from nemo_mm_rank.run.curation import explain
from nemo_mm_rank.run.folder import RunFolder
from tests.integration.faults import make_pools
from tests.integration.runs import digests, settings


def write(path: Path, scores: dict[str, Any], column: str = "quality") -> str:
    values = pa.array(list(scores.values()))
    pq.write_table(pa.table({"pair_id": list(scores), "other": ["x"] * len(scores), column: values}), path)
    return str(path)


def test_joined_by_id(tmp_path: Path) -> None:
    path = write(tmp_path / "q.parquet", {"b": 0.5, "a": 0.25, "n": float("nan"), "none": None, "more": 1.0})
    given = Given.open("quality", path, "quality")
    found = given.of(pa.array(["a", "x", "b", "n", "none", "a"]))
    assert found.to_pylist() == [0.25, None, 0.5, None, None, 0.25]
    again = Given.open("quality", write(tmp_path / "q.parquet", {"a": 1}), "quality")
    assert again.digest != given.digest
    assert again.of(pa.array(["a", "b"])).to_pylist() == [1.0, None]


def test_files_that_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.parquet", {"a": 0.5})
    (tmp_path / "text.parquet").write_text("no")
    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.table({"pair_id": ["a", "a"], "quality": [0.1, 0.2]}), twice)
    for path, column, message in (
        (tmp_path / "none.parquet", "quality", "cannot be read as Parquet"),
        (tmp_path / "text.parquet", "quality", "cannot be read as Parquet"),
        (good, "qualty", "no column 'qualty'; pair_id, other, quality"),
        (good, "other", "is string, not a number"),
        (twice, "quality", "has a pair_id twice"),
        (write(tmp_path / "inf.parquet", {"a": float("inf")}), "quality", "infinite"),
    ):
        with pytest.raises(ConfigError, match=message):
            Given.open("mine", str(path), column)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ({"weights": {"qualty": 1.0}, "scores": {"quality": "q.parquet"}}, "no score 'qualty'; did you mean 'quality'"),
        ({"conditions": {"quality": 1.0}}, "no condition 'quality'"),
        ({"scores": {"fused": "q.parquet"}}, "'fused' cannot be used as a name: it is taken"),
        ({"scores": {"a__b": "q.parquet"}}, "'a__b' cannot be used as a name"),
        ({"scores": {"q": {"path": "q.parquet", "colum": "x"}}}, "did you mean 'column'"),
        ({"conditions": {"match": -1}}, "conditions.match"),
        ({"conditions": {"agreement": 1}}, "no condition 'agreement'"),
        ({"weights": {"match": 1}}, "no score 'match'"),
        ({"broad": {"weights": {"fusd": 1}}}, "ranking.broad.weights: there is no score 'fusd'; did you mean 'fused'"),
        ({"broad": {"skewness": [1.0, 1.0]}}, "skewness: the first value must be below the second"),
        ({"feedback": 5}, "feedback: unknown key"),
    ],
)
def test_settings_that_are_refused(ranking: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, {"pools": "p.jsonl", "queries": "x", "ranking": ranking})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder every test ranks anew."""
    folder = tmp_path_factory.mktemp("given")
    pool = make_pools(folder / "pool", 5)[0]
    return curate(config=settings(pool, folder / "run", shards=3, budget="100%"), progress=False).folder


def embedded(run: Path) -> dict[str, int]:
    kept = ("experts", "projection", "sns")
    return {str(p): p.stat().st_ino for p in (run / "steps").rglob("*.parquet") if p.parent.name.startswith(kept)}


def test_a_weight_ranks_by_it_without_embedding_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = embedded(run)
    assert before
    ids = rank(run, "red").blend["pair_id"].tolist()
    scores = {pair_id: float(place) for place, pair_id in enumerate(sorted(ids)[:-1])}
    path = write(tmp_path / "q.parquet", {**scores, "stranger": 1e6})
    alone = {"weights": {"quality": 1.0}, "conditions": {}, "scores": {"quality": path}}
    result = rank(run, "red", ranking=alone, budget="100%")
    assert embedded(run) == before
    blend = result.blend
    # The one without a score stands where the mean is, between the others.
    expected = sorted(scores, key=lambda pair_id: -scores[pair_id])
    assert [name for name in blend["pair_id"] if name in scores] == expected
    mean = np.mean(list(scores.values()))
    place = blend["pair_id"].tolist().index(sorted(ids)[-1])
    assert scores[blend["pair_id"][place - 1]] >= mean >= scores[blend["pair_id"][place + 1]]
    assert blend["score_quality"][place] == 0
    assert result.manifest["ranking"]["statistics"]["given__quality"]["pairs"] == len(scores)
    told = explain(run, expected[0])
    assert f"given quality: {len(scores) - 1:.3f} (pool" in told

    first = digests(run)
    rank(run, "red", ranking=alone, budget="100%")
    assert digests(run) == first
    write(tmp_path / "q.parquet", {name: -score for name, score in scores.items()})  # the same path, other scores
    turned = rank(run, "red", ranking=alone, budget="100%").blend["pair_id"].tolist()
    assert [name for name in turned if name in scores] == expected[::-1]


def test_what_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from nemo_mm_rank.run import curation

    ids = rank(run, "red").blend["pair_id"].tolist()
    path = write(tmp_path / "q.parquet", {ids[0]: 1.0, ids[1]: float("nan")})
    heard = StringIO()
    curation.rank(run, {"ranking": {"scores": {"quality": path}, "weights": {"quality": 1.0}}}, Console(file=heard))
    assert f"score quality     1 of {len(ids)} pairs have one; the others count as the mean" in heard.getvalue()


def test_ranking_anew_changes_what_is_given_and_nothing_else(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["ranking"] = {"weights": {"annotation": 1.0}, "spread": 3.0}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    settings = rank(copy, "red", ranking={"spread": 0.5}).manifest["config"]["ranking"]
    assert (settings["weights"], settings["spread"]) == ({"annotation": 1.0}, 0.5)


def test_a_condition_is_a_chance(run: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"conditions": {}}
    before = rank(run, "red", ranking=plain, budget="100%").blend
    worst = before["pair_id"].tolist()[:5]
    path = write(tmp_path / "q.parquet", {name: 0.1 if name in worst else 1.0 for name in before["pair_id"]})
    scores = {"quality": path}
    strict = {**plain, "conditions": {"quality": 2.0}, "scores": scores}
    after = rank(run, "red", ranking=strict, budget="100%").blend.set_index("pair_id")
    summary = rank(run, "red", ranking=strict, budget="100%").manifest["ranking"]
    old = before.set_index("pair_id")
    cost = old["score"] - after["score"].reindex(old.index)
    assert cost[[name for name in old.index if name not in worst]].abs().max() < 1e-12
    assert cost[worst].min() == pytest.approx(cost[worst].max())
    assert cost[worst[0]] > 0
    assert summary["conditions"] == {"quality": {"strength": 2.0, "known": len(before)}}
    assert after.loc[worst[0], "reason"].endswith("; quality 10 %")
    assert after.loc[worst[0], "chance_quality"] == 0.1
    assert "quality      10 % likely x weight" in explain(run, worst[0])
    bad = write(tmp_path / "bad.parquet", dict.fromkeys(before["pair_id"], 1.5))
    with pytest.raises(ConfigError, match="'quality' has values outside of"):
        rank(run, "red", ranking={**strict, "scores": {"quality": bad}})
    assert RunFolder(run).blend.exists()

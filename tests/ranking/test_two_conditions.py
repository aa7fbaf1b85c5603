"""On topic and the data's own: the score, its words, and that no division into shards changes a bit of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import skew

from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.demo import words
from nemo_mm_rank.ranking import rank as rank_shards
from nemo_mm_rank.ranking.feedback import FeedbackStep, means_of
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.ranking.topic import TELLS, Mixture, Topic
from nemo_mm_rank.run.curation import Result, explain
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import LEAST_CHANCE, MATCH
from tests.integration.runs import digests, settings

SHARDS = (1, 7, 50)
COLUMNS = ["cosine__annotation", "cosine__words", "feedback__words", "given__quality", MATCH]
BROAD = {"skewness": (50, 60)}
"""Every objective counts as broad."""


@dataclass(frozen=True)
class Tables:
    tables: list[pa.Table]

    @property
    def count(self) -> int:
        return len(self.tables)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        table = self.tables[part]
        return table if columns is None else table.select([name for name in columns if name in table.column_names])


def split(table: pa.Table, parts: int) -> Tables:
    cuts = np.linspace(0, table.num_rows, parts + 1).astype(int)
    return Tables([table.slice(a, b - a) for a, b in pairwise(cuts)])


def make_pool(n: int, seed: int, wrong: float = 0.4, dim: int = 24) -> pa.Table:
    """Pairs on topic to a degree, the wrong ones of which have a low chance; some columns are null for some."""
    rng = np.random.default_rng(seed)
    clean = rng.random(n) >= wrong
    modality = rng.choice(["image", "audio", "video"], n, p=[0.6, 0.38, 0.02])
    chance = np.where(clean, rng.uniform(0.9, 1.0, n), rng.uniform(0.0, 0.3, n))
    quality = np.where(rng.random(n) < 0.2, np.nan, rng.random(n))
    about = rng.normal(0, 0.035, n)  # the sides of a pair go together, to a correlation of about .2
    return pa.table(
        {
            "pair_id": [f"p{i:05d}" for i in rng.permutation(n)],
            "pool": ["demo"] * n,
            "modality": modality,
            "error": pa.array(["x: Y: z" if bad else None for bad in rng.random(n) < 0.05], pa.string()),
            "clean": clean,
            "emb_data__words": pa.array(rng.normal(size=(n, dim)).tolist(), pa.list_(pa.float32())),
            "emb_annotation__text": pa.array(rng.normal(size=(n, dim)).tolist(), pa.list_(pa.float32())),
            "cosine__words": pa.array(about + rng.gamma(3, 0.06, n), pa.float32()),
            "cosine__annotation": pa.array(about + rng.normal(0.3, 0.05, n), pa.float32()),
            "feedback__words": pa.array(rng.normal(0.5, 0.1, n), pa.float32()),
            "given__quality": pa.array(quality, pa.float64(), from_pandas=True),
            MATCH: pa.array(np.where(modality == "video", np.nan, chance), pa.float64(), from_pandas=True),
        }
    )


def naive(rows: list[dict[str, Any]], options: RankingSettings) -> tuple[np.ndarray, float]:
    """Return scores by the formula, row by row, and the skewness of what they are on topic by."""

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    def standard(values: np.ndarray) -> np.ndarray:
        standardised: np.ndarray = np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values))
        return standardised

    plain = {"annotation": column("cosine__annotation"), "experts": column("cosine__words")}
    widest = max(map(np.std, plain.values()))
    power = {name: (np.std(values) / widest) ** options.spread for name, values in plain.items()}
    tells = 1.0
    if options.broad is not None:
        tells = float(
            np.clip((np.corrcoef(plain["experts"], plain["annotation"])[0, 1] - TELLS[0]) / (TELLS[1] - TELLS[0]), 0, 1)
        )
        power["experts"] *= tells
    plain["quality"] = column("given__quality")
    topic = standard(sum(w * power.get(name, 1) * standard(plain[name]) for name, w in options.weights.items()))
    skewness = float(skew(topic))
    if options.broad is not None:
        low, high = options.broad.skewness
        breadth = min(1.0, max(0.0, (high - skewness) / (high - low)))
        near = {**plain, "experts": plain["experts"] + options.broad.feedback_weight * column("feedback__words")}
        weights = {name: w * (tells if name == "experts" else 1) for name, w in options.broad.weights.items()}
        parts = [w * standard(near[name]) for name, w in weights.items() if name in near]
        broad = standard(np.sum(parts, axis=0))
        topic = (1 - breadth) * topic + breadth * broad
    for name, values in (("match", column(MATCH)), ("quality", column("given__quality"))):
        logs = np.log(np.maximum(values, LEAST_CHANCE))
        topic = topic + options.conditions[name] * np.where(np.isnan(logs), np.nanmean(logs), logs)
    return topic, skewness


WEIGHTS = {"annotation": 1.0, "experts": 2.0, "quality": 0.5}


@pytest.mark.parametrize(
    "broad",
    [
        None,
        {"weights": {"annotation": 0.5, "experts": 1.0, "quality": 0.2}, "skewness": (-5, 5), "feedback_weight": 0.7},
        {"skewness": (-1.0, 3.0)},
    ],
)
def test_the_score_is_the_formula_and_shards_change_no_bit(broad: Any) -> None:
    table = make_pool(900, 2)
    conditions = {"match": 1.5, "quality": 0.7}
    options = RankingSettings.model_validate({"weights": WEIGHTS, "conditions": conditions, "broad": broad})
    whole = rank_shards(Tables([table]), COLUMNS, options, Budget(fraction=1.0))
    rows = [row for row in table.to_pylist() if row["error"] is None]
    found, skewness = naive(rows, options)
    exact = dict(zip((row["pair_id"] for row in rows), found, strict=True))
    scores = dict(zip(whole.chosen["pair_id"].to_pylist(), whole.chosen["score"].to_pylist(), strict=True))
    assert scores.keys() == exact.keys()
    # How broad it is, is read from a histogram of the scores.
    np.testing.assert_allclose([scores[name] for name in exact], list(exact.values()), atol=1e-4 if not broad else 2e-3)
    assert whole.chosen["score"].to_pylist() == sorted(scores.values(), reverse=True)
    topic = whole.summary["topic"]
    if broad:
        assert topic["skewness"] == pytest.approx(skewness, abs=1e-2)
        assert 0 < topic["breadth"] < 1
    else:
        assert (topic["breadth"], topic["skewness"]) == (0, None)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(900)))
    for shards in (*(split(table, parts) for parts in SHARDS), split(shuffled, 7)):
        other = rank_shards(shards, COLUMNS, options, Budget(fraction=1.0))
        assert other.chosen.equals(whole.chosen)
        assert other.summary == whole.summary
    best = rank_shards(split(table, 7), COLUMNS, options, Budget(count=40))
    assert best.chosen["pair_id"].to_pylist() == whole.chosen["pair_id"].to_pylist()[:40]
    known = sum(row["modality"] != "video" for row in rows)
    assert whole.summary["conditions"] == {
        "match": {"strength": 1.5, "known": known},
        "quality": {"strength": 0.7, "known": sum(row["given__quality"] is not None for row in rows)},
    }
    for row in best.chosen.to_pylist():
        of = "not known" if row["modality"] == "video" else f"{row['chance_match']:.0%}".replace("%", " %")
        assert f"; match {of}; quality " in row["reason"]


def test_what_a_score_is_made_of_adds_up_to_it() -> None:
    table = make_pool(400, 3)
    for broad in (None, {"skewness": (-5, 5)}):
        options = RankingSettings.model_validate({"weights": WEIGHTS, "broad": broad, "conditions": {}})
        scoring = Scoring.fit(Tables([table]), COLUMNS, options)
        live = table.filter(pa.compute.is_null(table["error"]))
        columns = scoring.columns(live)
        parts = scoring.topic.contributions(*columns)
        assert parts.keys() == {"annotation", "experts", "quality"}
        total = np.sum(list(parts.values()), axis=0)
        np.testing.assert_allclose(total - total.mean(), scoring.scores(live, {}), atol=1e-4)
        assert scoring.topic.weight("quality") > 0
        assert scoring.topic.weight("fused") == 0


def test_match_keeps_wrong_pairs_out_and_is_off_where_it_is_to_be() -> None:
    table = make_pool(900, 4)
    truth = dict(zip(table["pair_id"].to_pylist(), table["clean"].to_pylist(), strict=True))

    def clean(options: RankingSettings, columns: list[str]) -> float:
        found = rank_shards(Tables([table]), columns, options, Budget(count=90))
        assert ("chance_match" in found.chosen.column_names) == bool(MATCH in columns and options.conditions)
        assert (MATCH in found.summary["columns"]) == ("chance_match" in found.chosen.column_names)
        return float(np.mean([truth[name] for name in found.chosen["pair_id"].to_pylist()]))

    default, off = RankingSettings(weights={"experts": 1.0}), RankingSettings(weights={"experts": 1.0}, conditions={})
    without, there = COLUMNS[:2], [*COLUMNS[:2], MATCH]
    assert clean(default, there) > 0.95
    assert clean(off, there) < 0.75
    assert clean(default, without) == clean(off, without) == clean(off, there)
    # Where nothing can be told all chances are 1, and nothing changes.
    place = table.column_names.index(MATCH)
    table = table.set_column(place, MATCH, pa.array(np.ones(900)))
    assert clean(default, there) == clean(off, without)


def test_means_of_the_best(tmp_path: Path) -> None:
    table = make_pool(60, 5)
    vectors = table["emb_data__words"].to_pylist()
    vectors[3] = None
    column = pa.array(vectors, pa.list_(pa.float32()))
    table = table.set_column(table.column_names.index("emb_data__words"), "emb_data__words", column)
    spaces = {"cosine__words": "emb_data__words", "cosine__annotation": "emb_annotation__text"}
    places = np.array([[2, 1], [0, 3], [1, 4]])  # the second has no vector among the words
    shards = split(table, 3)
    means = means_of(places, shards, spaces)
    units = [np.array(vectors[row]) / np.linalg.norm(vectors[row]) for row in (41, 24)]
    expected = sum(units) / np.linalg.norm(sum(units))
    np.testing.assert_allclose(means["emb_data__words"].numpy(), expected, atol=1e-6)
    Scoring(Topic(Mixture({}, {})), means=means).save(tmp_path / "scoring.json")
    again = Scoring.load(tmp_path / "scoring.json").means
    assert {name: mean.tolist() for name, mean in again.items()} == {k: v.tolist() for k, v in means.items()}
    step = FeedbackStep(spaces, again)
    done = step(frames.from_table(shards.read(0).drop_columns(["feedback__words"])))
    found = frames.array(done, "feedback__words").to_pylist()
    assert found[3] is None
    cosine = np.dot(vectors[5], expected) / np.linalg.norm(vectors[5])
    assert found[5] == pytest.approx(cosine, abs=1e-6)
    assert list(step.provides) == ["feedback__words", "feedback__annotation"]
    # A space in which the best have nothing is left out.
    alone = means_of(np.array([[0, 3]]), shards, spaces)
    assert list(alone) == ["emb_annotation__text"]
    assert list(FeedbackStep(spaces, alone).provides) == ["feedback__annotation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Result]:
    """A run on texts and code, a third of which have changed annotations with each other."""
    folder = tmp_path_factory.mktemp("conditions")
    rows: list[dict[str, Any]] = []
    for number in range(60):
        random = Random(number)
        for modality, pair in (
            ("text", words.text(random, number % 2 == 0, number // 2)),
            ("code", words.code(random, number)),
        ):
            rows.append({"modality": modality, "data": pair[0], "annotation": pair[1]})
    for place, row in enumerate(rows):
        row["pair_id"] = f"{row['modality']}-{place:03d}"
    for modality in ("text", "code"):
        wrong = [row for row in rows if row["modality"] == modality][::3]
        taken = [row["annotation"] for row in wrong]
        for row, annotation in zip(wrong, [*taken[1:], taken[0]], strict=True):
            row["annotation"] = annotation
    pool = folder / "pool.jsonl"
    pool.write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = settings(pool, folder / "run-1", shards=1, budget="100%", sns={"mode": "off"})
    return config, curate(config=config, progress=False)


@pytest.mark.slow
def test_a_run_is_the_same_from_any_shards(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    assert result.manifest["ranking"]["conditions"]["match"]["known"] == 120
    assert result.blend["chance_match"].between(LEAST_CHANCE, 1).all()
    assert sorted(result.manifest["matching"]) == ["code", "text"]
    for parts in SHARDS[1:]:
        other = {**config, "output": config["output"][:-1] + str(parts), "shards": parts}
        assert digests(curate(config=other, progress=False).folder) == digests(result.folder)


def test_a_new_pair_is_scored_as_the_run_scores_its_own(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    broad = rank(result.folder, config["queries"], ranking={"broad": BROAD})
    finished = FinishedRun.load(result.folder)
    folder = RunFolder.at(result.folder)
    table = State.load(folder).open(folder).read(0)
    step = QueryStep(finished.config, finished.models, finished.scoring)
    assert finished.scoring.topic.breadth == 1
    assert list(finished.scoring.feedback) == ["cosine__annotation", "cosine__fused", "cosine__words"]
    done = step(frames.from_table(table.slice(30, 25)))
    scores = dict(zip(frames.strings(done, "pair_id"), done["score"].tolist(), strict=True))
    blend = broad.blend.set_index("pair_id")["score"]
    assert scores == {name: blend[str(name)] for name in scores}
    assert list(step.meta(frames.from_table(table.slice(0, 0))).columns) == list(done.columns)
    plain = QueryStep(finished.config, finished.models)
    assert MATCH not in plain.requires
    fewer = plain(frames.from_table(table.drop_columns([MATCH]).slice(30, 25)))
    assert "score" not in fewer.columns


def test_feedback_is_made_for_broad_objectives_only(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    made = result.folder / "steps"

    def done(**ranking: Any) -> list[int]:
        rank(result.folder, config["queries"], ranking=ranking)
        return [file.stat().st_ino for file in sorted(made.glob("feedback-*/*.parquet"))]

    first = done(broad=BROAD)
    assert len(first) == 1
    assert done(broad=BROAD) == first
    assert done(broad=BROAD, conditions={}) != first  # other pairs are the best
    assert len(done(broad={**BROAD, "feedback": 3})) == 1
    for ranking in (
        {"broad": "off"},
        {"broad": {**BROAD, "feedback": 0}},
        {"broad": {**BROAD, "feedback_weight": 0}},
        {"broad": {"skewness": (-60, -50)}},
        {"weights": {"annotation": 1.0}},
    ):
        assert done(**ranking) == []
    assert len(done(weights={"annotation": 1.0}, broad=BROAD)) == 1


def test_a_run_explains_both(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    first = rank(result.folder, config["queries"], ranking={"broad": BROAD}).blend.iloc[0]
    told = explain(result.folder, first["pair_id"])
    chance = f"{first['chance_match']:.0%}".replace("%", " %")
    assert f"; match {chance}" in told
    assert f"  match        {chance} likely x weight 3 of its logarithm" in told
    assert "  the annotation as a whole belongs to the data: " in told
    assert "  none of its sentences belongs to another pair: " in told
    assert "  much of the pool fits the objective: closeness to the best pairs counts for 100 %" in told
    assert "with the best pairs (pool" in told
    rank(result.folder, config["queries"], ranking={"conditions": {}, "broad": "off"})
    plain = explain(result.folder, first["pair_id"])
    assert "match" not in plain
    assert "own" not in plain
    assert "best pairs" not in plain

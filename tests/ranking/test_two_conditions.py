"""On topic and in agreement: the score, its words, and that no division into shards changes a bit of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from nemo_mm_rank.ranking.agreement import FLOOR, Agreement
from nemo_mm_rank.run.agreement import fit_agreement

from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.demo import words
from nemo_mm_rank.ranking import rank as rank_shards
from nemo_mm_rank.ranking.feedback import FeedbackStep, load_means, means_of, save_means
from nemo_mm_rank.ranking.score import AGREES, Sides
from nemo_mm_rank.run.curation import Result, explain
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.queries import QueryStep
from nemo_mm_rank.run.state import State
from tests.integration.runs import digests, settings

SHARDS = (1, 7, 50)
COLUMNS = ["cosine__annotation", "cosine__words", "feedback__words", "given__quality"]


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
    """Pairs whose two sides lie near each other, but for the wrong ones; some columns are null for some."""
    rng = np.random.default_rng(seed)
    clean = rng.random(n) >= wrong
    annotation = rng.normal(size=(n, dim))
    data = np.where(clean[:, None], annotation, rng.normal(size=(n, dim))) + 0.7 * rng.normal(size=(n, dim))
    quality = np.where(rng.random(n) < 0.2, np.nan, rng.random(n))
    return pa.table(
        {
            "pair_id": [f"p{i:05d}" for i in rng.permutation(n)],
            "pool": ["demo"] * n,
            "modality": rng.choice(["image", "audio", "video"], n, p=[0.6, 0.38, 0.02]),
            "annotation": [f"text {i}" for i in rng.integers(0, n, n)],
            "error": pa.array(["x: Y: z" if bad else None for bad in rng.random(n) < 0.05], pa.string()),
            "clean": clean,
            "emb_data__words": pa.array(data.tolist(), pa.list_(pa.float32())),
            "emb_annotation__text": pa.array(annotation.tolist(), pa.list_(pa.float32())),
            "cosine__words": pa.array(rng.normal(0.2, 0.1, n), pa.float32()),
            "cosine__annotation": pa.array(rng.normal(0.3, 0.1, n), pa.float32()),
            "feedback__words": pa.array(rng.normal(0.5, 0.1, n), pa.float32()),
            "given__quality": pa.array(quality, pa.float64(), from_pandas=True),
            AGREES + "words": pa.array(
                (data * annotation).sum(1) / np.linalg.norm(data, axis=1) / np.linalg.norm(annotation, axis=1),
                pa.float32(),
            ),
        }
    )


WORDS = [Sides(AGREES + "words", "emb_data__words", "emb_annotation__text")]


def test_what_judges_is_learnt_the_same_from_any_shards(tmp_path: Path) -> None:
    table = make_pool(900, 0)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(900)))
    found = [
        fit_agreement(split(rows, parts), WORDS, 3, tmp_path / f"{parts}-{place}.json")
        for place, rows in enumerate((table, shuffled))
        for parts in SHARDS
    ]
    assert all(agreement == found[0] for agreement in found)
    assert sorted(found[0].judges) == ["audio", "image"]  # of the films there are too few
    # What is kept is what was found, and it is taken from there.
    kept = tmp_path / "1-0.json"
    assert Agreement.of_json(json.loads(kept.read_text())) == found[0]
    assert fit_agreement(Tables([]), WORDS, 3, kept) == found[0]
    live = table.filter(pa.compute.is_null(table["error"]))
    of = {name: np.flatnonzero(np.array(live["modality"].to_pylist()) == name) for name in ("image", "audio", "video")}
    chances = found[0].chances({AGREES + "words": live[AGREES + "words"].to_numpy()}, of, live.num_rows)
    clean = live["clean"].to_numpy()
    for name, judge in found[0].judges.items():
        assert judge.wrong == pytest.approx((~clean[of[name]]).mean(), abs=0.08)
    assert np.nanmean(chances[clean]) > 0.9
    assert np.nanmean(chances[~clean]) < 0.2
    assert np.isnan(chances).sum() == len(of["video"])


def test_a_sentence_that_agrees_least_is_judged_in_place_of_its_annotation(tmp_path: Path) -> None:
    table = make_pool(900, 0)
    vectors = np.array(table["emb_annotation__text"].to_pylist(), dtype=np.float32)
    other = np.random.default_rng(5).standard_normal(vectors.shape).astype(np.float32)
    there = np.arange(len(vectors)) % 3 == 0
    weakest = pa.array([row if own else None for row, own in zip(list(other), there, strict=True)])
    place = table.column_names.index("emb_annotation__text")
    instead = pa.array(list(np.where(there[:, None], other, vectors)))
    sides = [replace(WORDS[0], weakest="emb_weakest__text")]
    found = fit_agreement(Tables([table.append_column("emb_weakest__text", weakest)]), sides, 3, tmp_path / "a.json")
    swapped = Tables([table.set_column(place, "emb_annotation__text", instead)])
    assert found == fit_agreement(swapped, WORDS, 3, tmp_path / "b.json")
    assert found != fit_agreement(Tables([table]), WORDS, 3, tmp_path / "c.json")


def naive(rows: list[dict[str, Any]], agreement: Agreement, options: RankingSettings) -> np.ndarray:
    """Return scores by the formula, row by row."""

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    def standard(values: np.ndarray) -> np.ndarray:
        standardised: np.ndarray = np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values))
        return standardised

    near = column("cosine__words") + options.feedback_weight * column("feedback__words")
    spreads = {"annotation": np.std(column("cosine__annotation")), "experts": np.std(near)}
    weights = {
        name: w * (spreads[name] / max(spreads.values())) ** options.spread
        for name, w in (("annotation", 1.0), ("experts", 2.0))
    }
    weights["quality"] = options.weights["quality"]
    total: np.ndarray = weights["annotation"] * standard(column("cosine__annotation")) + weights["experts"] * standard(
        near
    )
    total += weights["quality"] * standard(column("given__quality"))
    chances = np.full(len(rows), np.nan)
    for place, row in enumerate(rows):
        if judge := agreement.judges.get(row["modality"]):
            chances[place] = judge({AGREES + "words": np.array([row[AGREES + "words"]])})[0]
    for name, values in (("agreement", chances), ("quality", np.maximum(column("given__quality"), FLOOR))):
        logs = np.log(values)
        cost = options.conditions[name] * sum(map(abs, weights.values()))
        total += cost * np.where(np.isnan(logs), np.nanmean(logs), logs)
    return total


def test_the_score_is_the_formula_and_shards_change_no_bit(tmp_path: Path) -> None:
    table = make_pool(900, 2)
    agreement = fit_agreement(Tables([table]), WORDS, 0, tmp_path / "judges.json")
    options = RankingSettings(
        weights={"annotation": 1.0, "experts": 2.0, "quality": 0.5},
        conditions={"agreement": 1.5, "quality": 0.7},
        spread=1.0,
    )
    whole = rank_shards(Tables([table]), COLUMNS, options, Budget(fraction=1.0), agreement)
    rows = [row for row in table.to_pylist() if row["error"] is None]
    exact = dict(zip((row["pair_id"] for row in rows), naive(rows, agreement, options), strict=True))
    scores = dict(zip(whole.chosen["pair_id"].to_pylist(), whole.chosen["score"].to_pylist(), strict=True))
    assert scores.keys() == exact.keys()
    np.testing.assert_allclose([scores[name] for name in exact], list(exact.values()), atol=1e-4)
    assert whole.chosen["score"].to_pylist() == sorted(scores.values(), reverse=True)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(900)))
    for shards in (*(split(table, parts) for parts in SHARDS), split(shuffled, 7)):
        other = rank_shards(shards, COLUMNS, options, Budget(fraction=1.0), agreement)
        assert other.chosen.equals(whole.chosen)
        assert other.summary == whole.summary
    best = rank_shards(split(table, 7), COLUMNS, options, Budget(count=40), agreement)
    assert best.chosen["pair_id"].to_pylist() == whole.chosen["pair_id"].to_pylist()[:40]
    known = sum(row["modality"] != "video" for row in rows)
    assert whole.summary["conditions"] == {
        "agreement": {"strength": 1.5, "known": known},
        "quality": {"strength": 0.7, "known": sum(row["given__quality"] is not None for row in rows)},
    }
    for row in best.chosen.to_pylist():
        of = "not known" if row["modality"] == "video" else f"{row['chance_agreement']:.0%}".replace("%", " %")
        assert f"; agreement {of}; quality " in row["reason"]


def test_agreement_keeps_wrong_pairs_out_and_is_off_where_it_is_to_be(tmp_path: Path) -> None:
    table = make_pool(900, 4)
    agreement = fit_agreement(Tables([table]), WORDS, 0, tmp_path / "judges.json")
    truth = dict(zip(table["pair_id"].to_pylist(), table["clean"].to_pylist(), strict=True))

    def clean(options: RankingSettings, judges: Agreement | None) -> float:
        found = rank_shards(Tables([table]), COLUMNS[:3], options, Budget(count=90), judges)
        assert ("chance_agreement" in found.chosen.column_names) == bool(
            judges and judges.judges and options.conditions
        )
        return float(np.mean([truth[name] for name in found.chosen["pair_id"].to_pylist()]))

    default, off = RankingSettings(weights={"experts": 1.0}), RankingSettings(weights={"experts": 1.0}, conditions={})
    assert clean(default, agreement) > 0.95
    assert clean(off, agreement) < 0.75
    assert clean(default, None) == clean(off, None) == clean(off, agreement)
    assert clean(default, Agreement({})) == clean(off, None)


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
    save_means(means, tmp_path / "means.safetensors")
    again = load_means(tmp_path / "means.safetensors")
    assert {name: mean.tolist() for name, mean in again.items()} == {k: v.tolist() for k, v in means.items()}
    step = FeedbackStep(spaces, again)
    done = step(frames.from_table(shards.read(0, list(step.requires))))
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


def test_a_run_is_the_same_from_any_shards(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    assert result.manifest["ranking"]["conditions"]["agreement"]["known"] == 120
    assert result.blend["chance_agreement"].between(FLOOR, 1).all()
    for parts in SHARDS[1:]:
        other = {**config, "output": config["output"][:-1] + str(parts), "shards": parts}
        assert digests(curate(config=other, progress=False).folder) == digests(result.folder)


def test_a_new_pair_is_scored_as_the_run_scores_its_own(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    rank(result.folder, config["queries"])
    finished = FinishedRun.load(result.folder)
    folder = RunFolder.at(result.folder)
    table = State.load(folder).open(folder).read(0)
    step = QueryStep(finished.config, finished.models, finished.scoring)
    assert list(finished.scoring.feedback) == ["cosine__annotation", "cosine__fused", "cosine__words"]
    done = step(frames.from_table(table.slice(30, 25)))
    scores = dict(zip(frames.strings(done, "pair_id"), done["score"].tolist(), strict=True))
    blend = result.blend.set_index("pair_id")["score"]
    assert scores == {name: blend[str(name)] for name in scores}
    assert list(step.meta(frames.from_table(table.slice(0, 0))).columns) == list(done.columns)
    plain = QueryStep(finished.config, finished.models)
    fewer = plain(frames.from_table(table.slice(30, 25)))
    assert [name for name in fewer.columns if name.startswith(AGREES)] == []


def test_a_run_explains_both(run: tuple[dict[str, Any], Result]) -> None:
    config, result = run
    rank(result.folder, config["queries"])
    first = result.blend.iloc[0]
    told = explain(result.folder, first["pair_id"])
    chance = f"{first['chance_agreement']:.0%}".replace("%", " %")
    assert f"; agreement {chance}" in told
    assert f"  agreement    {chance} likely x weight" in told
    assert "with the best pairs (pool" in told
    assert "  cosine of data and annotation, fused: " in told
    rank(result.folder, config["queries"], ranking={"conditions": {}, "feedback": 0})
    plain = explain(result.folder, first["pair_id"])
    assert "agreement" not in plain
    assert "best pairs" not in plain

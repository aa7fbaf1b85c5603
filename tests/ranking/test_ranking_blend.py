"""The blend against a naive one that sorts everything, over any division into shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.errors import ConfigError, MissingColumnError, UserError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.ranking import Files, Ranking, attach_rows, quota_counts, rank
from nemo_mm_rank.ranking.select import REST

COSINES = ["cosine__annotation", "cosine__clip__a", "cosine__clip__b", "cosine__fused", "cosine__words"]


@dataclass(frozen=True)
class Tables:
    tables: list[pa.Table]

    @property
    def count(self) -> int:
        return len(self.tables)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        table = self.tables[part]
        return table if columns is None else table.select([name for name in columns if name in table.column_names])


def make_pool(n: int, seed: int, levels: int = 40) -> pa.Table:
    """Cosines on a coarse grid (many ties), null for some rows; some rows quarantined; vectors in few directions."""
    rng = np.random.default_rng(seed)
    modality = rng.choice(["image", "text", "audio"], n, p=[0.5, 0.4, 0.1])
    clip = rng.integers(-levels, levels, (n, 2)) / levels
    clip[np.arange(n), rng.integers(0, 2, n)] = np.nan
    clip[modality == "text"] = np.nan
    angle = rng.integers(0, 50, n) / 8
    return pa.table(
        {
            "pair_id": [f"p{i:04d}" for i in rng.permutation(n)],
            "pool": rng.choice(["a", "b"], n),
            "modality": modality,
            "error": pa.array(["sns: TextError: no" if bad else None for bad in rng.random(n) < 0.1], pa.string()),
            "cosine__fused": pa.array(rng.integers(-levels, levels, n) / levels, pa.float32()),
            "cosine__annotation": pa.array(rng.integers(0, levels, n) / levels, pa.float32()),
            "cosine__words": pa.array(rng.integers(0, levels, n) / levels, pa.float32()),
            "cosine__clip__a": pa.array(clip[:, 0], pa.float32(), from_pandas=True),
            "cosine__clip__b": pa.array(clip[:, 1], pa.float32(), from_pandas=True),
            "emb_fused": pa.array(np.stack([np.cos(angle), np.sin(angle)], 1).tolist(), pa.list_(pa.float32())),
            "mine": pa.array([f"row {i}" for i in range(n)]),
        }
    )


def split(table: pa.Table, parts: int) -> Tables:
    cuts = np.linspace(0, table.num_rows, parts + 1).astype(int)
    return Tables([table.slice(a, b - a) for a, b in pairwise(cuts)])


def naive_scores(rows: list[dict[str, Any]], options: RankingSettings) -> np.ndarray:
    def column(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    def standard(values: np.ndarray) -> np.ndarray:
        there = values[~np.isnan(values)]
        if not len(there) or there.std() < 1e-6:
            return values * 0
        out: np.ndarray = (values - there.mean()) / there.std()
        return out

    # Each row has at most one of the two.
    clips = np.stack([standard(column(f"cosine__clip__{model}")) for model in "ab"])
    has_clip = ~np.isnan(clips).all(0)
    clip = np.nansum(clips, axis=0)
    words = standard(column("cosine__words"))
    values = {
        "fused": standard(column("cosine__fused")),
        "annotation": standard(column("cosine__annotation")),
        "words": words,
        "clip": np.where(has_clip, clip, 0.0),
        "experts": np.where(has_clip, (clip + words) / 2, words),
    }
    columns = {
        "fused": ["cosine__fused"],
        "annotation": ["cosine__annotation"],
        "words": ["cosine__words"],
        "clip": ["cosine__clip__a", "cosine__clip__b"],
        "experts": ["cosine__words", "cosine__clip__a", "cosine__clip__b"],
    }

    def spread(name: str) -> float:
        there = [column(one)[~np.isnan(column(one))] for one in columns[name]]
        return float(np.mean([np.std(values) if len(values) else 0.0 for values in there]))

    widest = max(spread(name) for name in options.weights)
    power = {name: (spread(name) / widest) ** options.spread if widest > 1e-6 else 1.0 for name in options.weights}
    total: np.ndarray = standard(
        np.sum([weight * power[name] * values[name] for name, weight in options.weights.items()], axis=0)
    )
    if options.calibration == "zscore":
        modality = np.array([row["modality"] for row in rows])
        for name in set(modality.tolist()):
            total[modality == name] = standard(total[modality == name])
    return total


def naive_blend(
    rows: list[dict[str, Any]], scores: dict[str, float], options: RankingSettings, total: int
) -> tuple[list[str], dict[str, str]]:
    """Go down the whole ranking; compare every candidate with every chosen one."""
    ranking = sorted(rows, key=lambda row: (-scores[row["pair_id"]], row["pair_id"]))
    place = {row["pair_id"]: position for position, row in enumerate(ranking)}
    vectors = {row["pair_id"]: np.array(row["emb_fused"], dtype=np.float32).astype(np.float64) for row in rows}
    room = Counter(quota_counts(total, options.quotas))
    chosen: list[str] = []
    passed: dict[str, str] = {}

    def is_free(row: dict[str, Any]) -> bool:
        if row["pair_id"] in passed:
            return False
        if options.collapse_duplicates:
            vector = vectors[row["pair_id"]]
            for other in chosen:
                kept = vectors[other]
                if vector @ kept / np.sqrt((vector @ vector) * (kept @ kept)) >= options.duplicate_similarity:
                    passed[row["pair_id"]] = other
                    return False
        return True

    for row in ranking:
        group = row[options.quota_by] if options.quota_by and row[options.quota_by] in options.quotas else REST
        if room[group] and is_free(row):
            chosen.append(row["pair_id"])
            room[group] -= 1
    if options.quotas and options.shortage == "fill":
        for row in ranking:
            if len(chosen) < total and row["pair_id"] not in chosen and is_free(row):
                chosen.append(row["pair_id"])
    return sorted(chosen, key=place.__getitem__), passed


@given(
    n=st.integers(1, 120),
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    weights=st.dictionaries(
        st.sampled_from(["fused", "annotation", "experts", "words", "clip"]),
        st.sampled_from([1.0, 0.5, -1.0]),
        min_size=1,
    ),
    quotas=st.sampled_from(
        [(None, {}), ("modality", {"image": 0.2, "audio": 0.5}), ("modality", {"audio": 1.0}), ("pool", {"a": 0.3})]
    ),
    shortage=st.sampled_from(["fill", "leave"]),
    collapse=st.booleans(),
    calibration=st.sampled_from(["off", "zscore"]),
    spread=st.sampled_from([0.0, 1.0, 2.0]),
    parts=st.integers(1, 9),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_naive_blend(
    n: int,
    seed: int,
    count: int,
    weights: dict[str, float],
    quotas: tuple[Any, dict[str, float]],
    shortage: Any,
    collapse: bool,
    calibration: Any,
    spread: float,
    parts: int,
) -> None:
    table = make_pool(n, seed)
    rows = [row for row in table.to_pylist() if row["error"] is None]
    options = RankingSettings(
        weights=weights,
        quota_by=quotas[0],
        quotas={table["pool"][0].as_py(): 0.3} if quotas[0] == "pool" else quotas[1],
        shortage=shortage,
        collapse_duplicates=collapse,
        calibration=calibration,
        spread=spread,
    )
    found = rank(split(table, parts), COSINES, options, Budget(count=count))
    scores = dict(zip(found.chosen["pair_id"].to_pylist(), found.chosen["score"].to_pylist(), strict=True))
    everything = rank(Tables([table]), COSINES, options.model_copy(update=PLAIN), Budget(fraction=1.0)).chosen
    exact = dict(zip(everything["pair_id"].to_pylist(), everything["score"].to_pylist(), strict=True))
    if rows:
        given_scores = [exact[row["pair_id"]] for row in rows]
        np.testing.assert_allclose(given_scores, naive_scores(rows, options), atol=2e-3)
    # From here on the scores' own bits decide, ties among them.
    expected, passed = naive_blend(rows, exact, options, min(count, len(rows)))
    assert found.chosen["pair_id"].to_pylist() == expected
    assert scores == {name: exact[name] for name in expected}
    assert found.chosen["rank"].to_pylist() == list(range(1, len(expected) + 1))
    order = everything["pair_id"].to_pylist()
    assert found.chosen["pool_rank"].to_pylist() == [order.index(name) + 1 for name in expected]
    doubles = dict(zip(found.duplicates["pair_id"].to_pylist(), found.duplicates["kept"].to_pylist(), strict=True))
    assert doubles.keys() <= passed.keys()
    vectors = {row["pair_id"]: np.array(row["emb_fused"]) for row in rows}
    for double, kept in doubles.items():
        assert kept in expected
        assert vectors[double] @ vectors[kept] >= options.duplicate_similarity - 1e-6
    assert found.summary["ranked"] == len(rows)


PLAIN: dict[str, Any] = {"quota_by": None, "quotas": {}, "collapse_duplicates": False}


@pytest.mark.parametrize("calibration", ["off", "zscore", "quantile"])
@pytest.mark.parametrize("quotas", [{}, {"audio": 0.5, "image": 0.25}])
def test_shards_and_their_order_change_no_bit(calibration: Any, quotas: dict[str, float]) -> None:
    table = make_pool(1500, 3, levels=10_000)
    options = RankingSettings(
        calibration=calibration,
        quota_by="modality" if quotas else None,
        quotas=quotas,
        collapse_duplicates=True,
        duplicate_similarity=1.0,
    )
    whole = rank(Tables([table]), COSINES, options, Budget(count=40))
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(1500)))
    for shards in (split(table, 7), split(table, 50), split(shuffled, 7), Tables(split(table, 7).tables[::-1])):
        other = rank(shards, COSINES, options, Budget(count=40))
        assert other.chosen.equals(whole.chosen)
        assert other.duplicates.equals(whole.duplicates)
        assert other.summary == whole.summary


def test_quantile_calibration_gives_every_modality_its_share() -> None:
    table = make_pool(3000, 5, levels=100_000)
    ranked = [row["modality"] for row in table.to_pylist() if row["error"] is None]
    options = RankingSettings(calibration="quantile")
    found = Counter(rank(split(table, 4), COSINES, options, Budget(fraction=0.2)).chosen["modality"].to_pylist())
    for modality, n in Counter(ranked).items():
        assert abs(found[modality] - 0.2 * n) < 3


def test_reasons_and_cuts() -> None:
    table = make_pool(400, 7)
    options = RankingSettings(quota_by="modality", quotas={"image": 0.5, "audio": 0.4})
    found = rank(split(table, 3), COSINES, options, Budget(count=200))
    rows = found.chosen.to_pylist()
    audio = sum(row["modality"] == "audio" and row["error"] is None for row in table.to_pylist())
    groups = {entry["group"]: entry for entry in found.summary["groups"]}
    assert (groups["audio"]["quota"], groups["audio"]["chosen"]) == (80, audio)
    assert (groups["image"]["quota"], groups["image"]["chosen"]) == (100, 100)
    assert (groups[REST]["quota"], groups[REST]["chosen"]) == (20, 20)
    assert found.summary["filling"]["chosen"] == 80 - audio
    assert found.summary["chosen"] == len(rows) == 200
    hundredth = next(row for row in rows if "quota image 100/100" in row["reason"])
    assert groups["image"]["cut"] == {"score": hundredth["score"], "pair_id": hundredth["pair_id"]}
    first = rows[0]
    assert first["reason"] == (
        f"rank 1 of {found.summary['ranked']}: annotation {first['score_annotation']:+.1f}, "
        f"experts {first['score_experts']:+.1f}, fused {first['score_fused']:+.1f}; quota {first['modality']} 1/"
        f"{groups[first['modality'] if first['modality'] != 'text' else REST]['quota']}"
    ).replace("quota text", "quota others")
    assert sum("fills a place that another quota left empty" in row["reason"] for row in rows) == 80 - audio


def test_a_threshold_takes_all_that_reach_it() -> None:
    table = make_pool(300, 1)
    everything = rank(Tables([table]), COSINES, RankingSettings(), Budget(fraction=1.0)).chosen.to_pylist()
    least = everything[20]["score"]
    found = rank(split(table, 3), COSINES, RankingSettings(), Budget(threshold=least)).chosen
    assert found["pair_id"].to_pylist() == [row["pair_id"] for row in everything if row["score"] >= least]
    options = RankingSettings(quota_by="modality", quotas={"image": 0.5}, shortage="leave")
    half = rank(split(table, 3), COSINES, options, Budget(threshold=least)).chosen
    assert min(half["score"].to_pylist()) >= least
    assert half["modality"].to_pylist().count("image") <= (len(found) + 1) // 2


def test_shortage_fails_where_it_is_to() -> None:
    options = RankingSettings(quota_by="modality", quotas={"audio": 1.0}, shortage="fail")
    with pytest.raises(UserError, match=r"audio has .* of 100"):
        rank(Tables([make_pool(200, 0)]), COSINES, options, Budget(count=100))


def test_nothing_to_rank() -> None:
    table = make_pool(5, 0).drop_columns(["error"]).append_column("error", pa.array(["pool: BadRow: no"] * 5))
    for shards in (Tables([table]), Tables([table.slice(0, 0)]), Tables([])):
        for options in (
            RankingSettings(),
            RankingSettings(quota_by="modality", quotas={"audio": 1.0}, collapse_duplicates=True),
        ):
            for budget in (Budget(count=3), Budget(fraction=0.5), Budget(threshold=0.0)):
                found = rank(shards, COSINES, options, budget)
                assert found.chosen.num_rows == 0
                assert "reason" in found.chosen.column_names
                assert (found.summary["ranked"], found.summary["chosen"]) == (0, 0)


def test_a_pool_quarantined_to_the_last_pair_is_only_short() -> None:
    table = make_pool(100, 0)
    error = [row["error"] if row["pool"] == "a" else "pool: BadRow: no" for row in table.to_pylist()]
    table = table.drop_columns(["error"]).append_column("error", pa.array(error, pa.string()))
    options = RankingSettings(quota_by="pool", quotas={"b": 0.5})
    found = rank(split(table, 2), COSINES, options, Budget(count=10)).chosen
    assert found["pool"].to_pylist() == ["a"] * 10


def test_settings_that_do_not_fit_the_pool() -> None:
    shards = Tables([make_pool(50, 0)])
    for options, message in (
        ({"weights": {"fuse": 1.0}}, "this run has no score 'fuse'; did you mean 'fused'"),
        ({"weights": {"match": 1.0}}, "this run has no score 'match'"),
        ({"weights": {"fused": 0.0}}, "has a weight"),
        ({"quota_by": "pool", "quotas": {"c": 0.5}}, "no pool 'c'"),
    ):
        with pytest.raises(ConfigError, match=message):
            rank(shards, COSINES, RankingSettings(**options), Budget(count=5))
    with pytest.raises(MissingColumnError, match="shard 0 lacks 'cosine__other'"):
        rank(shards, [*COSINES, "cosine__other"], RankingSettings(), Budget(count=5))


def test_experts_without_a_space_with_text_count_nothing() -> None:
    shards = Tables([make_pool(50, 0)])
    plain, both = ({"fused": 1.0}, {"fused": 1.0, "experts": 1.0})
    expected = rank(shards, ["cosine__fused"], RankingSettings(weights=plain), Budget(count=5)).chosen
    assert rank(shards, ["cosine__fused"], RankingSettings(weights=both), Budget(count=5)).chosen.equals(expected)


def test_own_columns_come_back_for_the_chosen(tmp_path: Path) -> None:
    table = make_pool(500, 2)
    parts = []
    for number, shard in enumerate(split(table, 6).tables):
        paths = (tmp_path / f"pool-{number}.parquet", tmp_path / f"scores-{number}.parquet")
        write_table(paths[0], shard.select(["pair_id", "pool", "modality", "mine", "emb_fused"]))
        write_table(paths[1], shard.select(["error", *COSINES]))
        parts.append(paths)
    shards = Files(tuple(parts))
    found = rank(shards, COSINES, RankingSettings(), Budget(count=77))
    assert found.chosen.equals(rank(Tables([table]), COSINES, RankingSettings(), Budget(count=77)).chosen)
    full = attach_rows(found.chosen, found.places, shards, ["mine", "emb_fused"])
    by_id = {row["pair_id"]: row for row in table.to_pylist()}
    assert full.column_names == [*found.chosen.column_names, "mine", "emb_fused"]
    for row in full.to_pylist():
        assert (row["mine"], row["emb_fused"]) == (by_id[row["pair_id"]]["mine"], by_id[row["pair_id"]]["emb_fused"])


def test_own_columns_are_there_though_nothing_is_chosen() -> None:
    table = make_pool(20, 2)
    found = rank(split(table, 2), COSINES, RankingSettings(), Budget(threshold=1e6))
    full = attach_rows(found.chosen, found.places, split(table, 2), ["mine"])
    assert (full.num_rows, full.column_names) == (0, [*found.chosen.column_names, "mine"])


def test_a_ranking_is_saved_and_read_back(tmp_path: Path) -> None:
    found = rank(split(make_pool(200, 2), 3), COSINES, RankingSettings(collapse_duplicates=True), Budget(count=20))
    assert found.duplicates.num_rows > 0
    found.save(tmp_path / "ranking")
    read = Ranking.load(tmp_path / "ranking")
    assert read.chosen.equals(found.chosen)
    assert read.duplicates.equals(found.duplicates)
    assert read.summary == found.summary
    assert np.array_equal(read.places, found.places)
    with pytest.raises(UserError, match="no pair has been ranked"):
        Ranking.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"ranking\.json: missing, damaged or edited; "):
        Ranking.load(tmp_path)

"""More than the top: budget and quotas exact, the same whatever the shards, the formulas by hand, and what is said."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from nemo_mm_rank import curate, rank
from nemo_mm_rank.config import Budget, RankingSettings, parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.ranking import Ranking
from nemo_mm_rank.ranking import rank as choose
from nemo_mm_rank.ranking.variety import Entries, cluster_scores
from nemo_mm_rank.run.curation import explain
from tests.command_line import CommandLine
from tests.integration.runs import digests, many_texts, settings
from tests.ranking.test_ranking_blend import Tables

pytest.importorskip("sklearn", reason="needs the extra 'select'")

COSINES = ["cosine__annotation", "cosine__fused"]
WAYS = ["clusters", "soft-cap", "balanced", "diverse", "coverage"]
KINDS = ["sea", "sea", "sea", "sea", "sea", "wood", "wood", "town", "town", "moon"]


def pool(n: int = 400) -> pa.Table:
    """Ten groups in four directions; what is of the sea ranks highest."""
    rng = np.random.default_rng(0)
    kind = np.arange(n) % len(KINDS)
    direction = np.array([sorted(set(KINDS)).index(KINDS[one]) for one in kind])
    vectors = np.eye(8)[direction] + rng.normal(0, 0.15, (n, 8))
    score = np.where(direction == 1, 1.0, 0.3) + rng.normal(0, 0.1, n)
    return pa.table(
        {
            "pair_id": [f"p{i:04d}" for i in rng.permutation(n)],
            "pool": rng.choice(["a", "b"], n),
            "modality": rng.choice(["image", "text"], n),
            "annotation": [f"A {KINDS[one]} and a thing {number % 3}." for number, one in enumerate(kind)],
            "error": pa.nulls(n, pa.string()),
            "cosine__annotation": pa.array(score, pa.float32()),
            "cosine__fused": pa.array(score, pa.float32()),
            "emb_fused": pa.array(vectors.tolist(), pa.list_(pa.float32())),
        }
    )


def chosen(table: pa.Table, select: dict[str, Any], budget: int = 60, cut: int = 1, **more: Any) -> Ranking:
    bounds = np.linspace(0, table.num_rows, cut + 1).astype(int)
    parts = [table.slice(a, b - a) for a, b in pairwise(bounds)]
    ranking = parse(RankingSettings, {"conditions": {}, "broad": None, "select": select, **more})
    ranking = ranking.model_copy(update={"weights": {"annotation": 1.0}})
    return choose(Tables(parts), COSINES, ranking, Budget(count=budget))


def kinds(ranking: Ranking, table: pa.Table) -> Counter[str]:
    said = dict(zip(table["pair_id"].to_pylist(), table["annotation"].to_pylist(), strict=True))
    return Counter(said[pair_id].split()[1] for pair_id in ranking.chosen["pair_id"].to_pylist())


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("more", [{}, {"quota_by": "pool", "quotas": {"a": 0.25}}, {"collapse_duplicates": True}])
def test_budget_and_quotas_hold_whatever_the_shards(how: str, more: dict[str, Any]) -> None:
    table = pool()
    more = {**more, "duplicate_similarity": 0.99} if "collapse_duplicates" in more else more
    one = chosen(table, {"how": how, "over": 4}, **more)
    assert one.chosen.num_rows == len(set(one.chosen["pair_id"].to_pylist())) == 60
    if "quotas" in more:
        assert Counter(one.chosen["pool"].to_pylist())["a"] == 15
    scores = one.chosen["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert (np.diff(one.chosen["pool_rank"].to_numpy()) > 0).all()
    other = chosen(table, {"how": how, "over": 4}, cut=7, **more)
    assert other.chosen.equals(one.chosen)
    assert other.passed.equals(one.passed)
    assert other.summary == one.summary
    assert not set(one.passed["pair_id"].to_pylist()) & set(one.chosen["pair_id"].to_pylist())


@pytest.mark.parametrize("how", WAYS)
def test_there_is_more_than_the_top(how: str) -> None:
    table = pool()
    top = kinds(chosen(table, {}), table)
    assert top == {"sea": 60}
    found = kinds(chosen(table, {"how": how, "over": 6, "penalty": 5.0}), table)
    assert set(found) == set(KINDS)


def test_the_whole_pool_or_no_candidates_beyond_the_budget_is_the_top() -> None:
    table = pool()
    top = chosen(table, {})
    for how in WAYS:
        assert chosen(table, {"how": how, "over": 1}).chosen["pair_id"].equals(top.chosen["pair_id"])
        assert chosen(table, {"how": how}, budget=400).chosen.num_rows == 400


def test_cluster_scores_by_hand() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    centroids = np.array([[1, 0], [0.3, 0.9], [1, 0.01]], dtype=np.float32)
    found = cluster_scores(vectors, np.array([0, 0, 1, 1]), centroids)
    cosine = 0.3 / np.hypot(0.3, 0.9)
    # The third is so near to the first that it does not count; the kernel is exp(-|x - y|^2 / 2).
    density = (2 + 2 * np.exp(-(0.6**2 + 0.2**2) / 2)) / 4
    assert found[0] == pytest.approx(cosine / 1.0)
    other = (0.3 + 0.009) / np.hypot(0.3, 0.9) / np.hypot(1, 0.01)
    assert found[1] == pytest.approx((cosine + other) / 2 / density)


def test_counts_of_entries_add_over_shards(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("Sea\n\nthing 1\nthe sea\nA   moon\n", encoding="utf-8")
    select = parse(RankingSettings, {"select": {"how": "balanced", "entries": str(tmp_path / "entries.txt")}}).select
    table = pool(90)
    shards = [Tables([table]), Tables([table.slice(0, 31), table.slice(31)])]
    entries = Entries.of(select, shards[0])
    assert entries.names == ["a moon", "sea", "the sea", "thing 1"]
    assert [entries.counts(one).tolist() for one in shards] == [[9, 45, 0, 30]] * 2
    said = chosen(pool(), {"how": "balanced", "over": 6, "entries": str(tmp_path / "entries.txt")})
    assert all("; entry '" in reason or "none of the entries" in reason for reason in said.chosen["reason"].to_pylist())
    assert said.summary["select"]["matched"] == 3


def test_coverage_by_hand() -> None:
    said = ["red dog", "red dog", "dog runs", "a b c", "a b c d", "red a b", "e", "dog"]
    table = pool(len(said)).drop_columns(["pair_id", "annotation", "cosine__annotation", "modality"])
    table = table.append_column("pair_id", pa.array([f"p{n}" for n in range(len(said))]))
    table = table.append_column("annotation", pa.array(said)).append_column("modality", pa.array(["image"] * len(said)))
    table = table.append_column("cosine__annotation", pa.array(np.linspace(1, 0, len(said)), pa.float32()))
    found = chosen(table, {"how": "coverage", "over": 4, "tail": 0.75}, budget=4)
    # By rank p0, with "red dog"; then p4 with four new words, p2 and p6 with one, of which p2 ranks higher.
    why = [reason.rpartition("; ")[2] for reason in found.chosen["reason"].to_pylist()]
    assert dict(zip(found.chosen["pair_id"].to_pylist(), why, strict=True)) == {
        "p0": "by rank",
        "p2": "new words: 1",
        "p4": "new words: 4",
        "p6": "new words: 1",
    }
    assert found.summary["select"] == {"candidates": 8, "words": 8, "of": 8}
    assert set(found.passed["why"].to_pylist()) == {"new words it would add: 0"}
    silent = table.set_column(table.column_names.index("annotation"), "annotation", pa.array(["..."] * len(said)))
    found = chosen(silent, {"how": "coverage", "over": 2}, budget=4)
    assert found.chosen["pair_id"].to_pylist() == ["p0", "p1", "p2", "p3"]


def test_the_seed_draws_anew() -> None:
    table = pool()
    for how in ("soft-cap", "balanced"):
        drawn = [
            chosen(table, {"how": how, "over": 6, "seed": seed}).chosen["pair_id"].to_pylist() for seed in (0, 0, 1)
        ]
        assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("how", WAYS)
def test_near_duplicates_are_no_reason_to_choose_from_more(how: str) -> None:
    table, settings = pool(), {"how": how, "over": 1.5}
    plain = chosen(table, settings)
    # Nothing is nearly equal to anything: collapsing changes nothing, though more candidates are held in reserve.
    found = chosen(table, settings, collapse_duplicates=True, duplicate_similarity=1.0)
    assert found.chosen["pair_id"].equals(plain.chosen["pair_id"])
    assert found.summary["select"] == plain.summary["select"]
    assert found.passed.equals(plain.passed)
    # All pairs twice: the reserve fills what the candidates lack, by rank.
    twice = pa.concat_tables([table, table.set_column(0, "pair_id", pa.array([f"q{n}" for n in range(400)]))])
    found = chosen(twice, settings, collapse_duplicates=True, duplicate_similarity=1.0)
    assert found.summary["select"]["candidates"] == 90
    assert found.chosen.num_rows == 60
    ids = {name: n % 400 for n, name in enumerate(twice["pair_id"].to_pylist())}
    assert len({ids[name] for name in found.chosen["pair_id"].to_pylist()}) == 60
    why = [reason.rpartition("; ")[2] for reason in found.chosen["reason"].to_pylist()]
    assert why.count("takes the place of a near-duplicate") == 15


@pytest.mark.parametrize("how", WAYS)
def test_a_little_more_than_the_budget_is_enough_to_choose_from(how: str) -> None:
    table = pool()
    found = chosen(table, {"how": how, "over": 1.25}, budget=61)
    assert found.chosen.num_rows == 61
    assert found.summary["select"]["candidates"] == 77  # 76.25, rounded up
    assert chosen(table, {"how": how, "over": 1}).chosen["pair_id"] == chosen(table, {}).chosen["pair_id"]


def test_the_radius_keeps_pairs_apart() -> None:
    table = pool()
    found = chosen(table, {"how": "diverse", "over": 6})
    limit = found.summary["select"]["similarity"]
    ids = table["pair_id"].to_pylist()
    vectors = np.array(table["emb_fused"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mine = vectors[[ids.index(pair_id) for pair_id in found.chosen["pair_id"].to_pylist()]]
    assert np.triu(mine @ mine.T, 1).max() < limit + 1e-6
    assert limit < 0.95


@pytest.mark.parametrize(
    ("select", "kind", "message"),
    [
        ({"how": "clusters", "clusters": 500, "over": 2}, UserError, "500 clusters of 120 candidates"),
        ({"how": "balanced", "entries": "ENTRIES"}, UserError, "none of the 2 entries of .* occurs in an annotation"),
        ({"how": "balanced", "entries": "none.txt"}, ConfigError, "none.txt cannot be read"),
        ({"how": "balanced", "entries": "EMPTY"}, ConfigError, "contains no entry"),
    ],
)
def test_what_is_refused(select: dict[str, Any], kind: type[UserError], message: str, tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("volcano\nice cream\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    files = {"ENTRIES": str(tmp_path / "entries.txt"), "EMPTY": str(tmp_path / "empty.txt")}
    select = {name: files.get(value, value) if isinstance(value, str) else value for name, value in select.items()}
    with pytest.raises(kind, match=message) as raised:
        chosen(pool(), select)
    assert "\n" not in str(raised.value)
    if select["how"] == "clusters":
        with pytest.raises(ConfigError, match="lack 'emb_fused'"):
            chosen(pool().drop_columns(["emb_fused"]), select)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variety")
    values = settings(many_texts(folder / "pool.jsonl"), folder / "run", shards=3, sns={"mode": "off"})
    return curate(config={**values, "ranking": {"select": "clusters"}}, progress=False).folder


@pytest.mark.parametrize("how", WAYS)
def test_a_run_says_why(run: Path, how: str) -> None:
    result = rank(run, ranking={"select": {"how": how, "seed": 3}})
    first = digests(run)
    assert result.manifest["config"]["ranking"]["select"]["how"] == how
    ranking = Ranking.load(run / "ranking")
    passed = ranking.passed.to_pylist()
    assert len(passed) + len(result.blend) == ranking.summary["select"]["candidates"] == 36
    assert f"of 36 candidates, chosen by {how}: {passed[0]['why']}" in explain(run, passed[0]["pair_id"])
    assert (
        result.blend["reason"]
        .str.contains(r"; (?:cluster \d+: |entry '|no more similar than|none of|by rank|new words: )")
        .all()
    )
    known = {*result.blend["pair_id"], *(one["pair_id"] for one in passed)}
    other = next(f"p{number:03d}" for number in range(120) if f"p{number:03d}" not in known)
    assert f"not one of 36 candidates, chosen by {how}" in explain(run, other)
    rank(run, ranking={"select": {"how": how, "seed": 3}})
    assert digests(run) == first


def test_the_command_line_says_it_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = CommandLine(capsys, monkeypatch)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "entries.txt").write_text("volcano\nice cream\n", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    for select, line in (
        (
            {"how": "clusters", "clusters": 500},
            "ranking.select: 500 clusters of 36 candidates; ask for fewer, or for more candidates (over)",
        ),
        (
            {"how": "balanced", "entries": str(tmp_path / "entries.txt")},
            f"ranking.select: none of the 2 entries of {tmp_path / 'entries.txt'} occurs in an annotation",
        ),
    ):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "ranking": {"select": select}}), encoding="utf-8")
        status, said = command("curate", "--config", tmp_path / "c.yaml")
        assert (status, _errors(said)) == (2, [f"error: {line}"])
    status, said = command("rank", run, "--like", tmp_path / "broken")
    [line] = _errors(said)
    assert status == 2
    assert line.startswith("error: queries: none of the 1 examples of 'like broken' can be embedded: experts: ")


def _errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error")]

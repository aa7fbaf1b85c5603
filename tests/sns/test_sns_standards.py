"""Cut scores of a pool: what is planted is cut, what is own stays, and where neither can be told nothing happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec, SNSSettings, parse
from nemo_mm_rank.media.spans import kept_text
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, SNS_REASON
from nemo_mm_rank.sns.fitting import fit_standards
from nemo_mm_rank.sns.parts import Parts, Scored, across, best_match, leaders, mean_match
from nemo_mm_rank.sns.standards import FEWEST, Standard, Standards, spoil
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import columns_added
from nemo_mm_rank.text.split import split_sentences
from tests.sns.pairs import planted, rows_of

MODELS = {"text": parse(ModelSpec, {"class": "hashed-text", "dim": 512})}
EXPERT = ExpertSpec(name="sense", kind="end-to-end", encoder="text")


def step(**settings: Any) -> SNSStep:
    values = {"mode": "bidirectional", "select": "pool", "gate_ratio": 0.0, **settings}
    return SNSStep(parse(SNSSettings, values), EXPERT, MODELS, MediaSettings())


def fitted(rows: list[dict[str, Any]], path: Path, **settings: Any) -> SNSStep:
    sns = step(**settings)
    fit_standards(pa.Table.from_pylist(rows), sns, 0).save(path)
    return replace(sns, settings=sns.settings.model_copy(update={"cuts": str(path)}))


def trim(sns: SNSStep, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    added: list[dict[str, Any]] = columns_added(sns, pa.Table.from_pylist(rows)).to_pylist()
    assert all(row[ERROR] is None for row in added)
    return added


def left(text: str, spans: Any) -> list[str]:
    return split_sentences(text if spans is None else kept_text(text, spans, " ", len(text)))


@pytest.fixture(scope="module")
def of_pool(tmp_path_factory: pytest.TempPathFactory) -> SNSStep:
    return fitted(rows_of(150, 0), tmp_path_factory.mktemp("cuts") / "cuts.safetensors")


@pytest.mark.parametrize(("side", "spans"), [("annotation", ANNOTATION_SPANS), ("data", DATA_SPANS)])
def test_of_other_pairs_what_is_planted_goes_and_what_is_own_stays(of_pool: SNSStep, side: str, spans: str) -> None:
    mode = "backward" if side == "annotation" else "forward"
    sns = replace(of_pool, settings=of_pool.settings.model_copy(update={"mode": mode}))
    rows = rows_of(100, 1, first=1000)
    own = [set(split_sentences(row[side])) for row in rows]
    clean = [left(row[side], cut[spans]) for row, cut in zip(rows, trim(sns, rows), strict=True)]
    lost = 1 - sum(map(len, clean)) / sum(len(split_sentences(row[side])) for row in rows)
    assert lost <= 0.05  # at most .02 of the sample that the cut was chosen on
    spoilt = planted(rows, side)
    kept = [left(row[side], cut[spans]) for row, cut in zip(spoilt, trim(sns, spoilt), strict=True)]
    foreign = sum(one not in mine for found, mine in zip(kept, own, strict=True) for one in found)
    there = sum(one not in mine for row, mine in zip(spoilt, own, strict=True) for one in split_sentences(row[side]))
    assert foreign <= 0.15 * there
    assert sum(one in mine for found, mine in zip(kept, own, strict=True) for one in found) >= 0.9 * sum(map(len, own))


def test_what_it_expects_is_what_it_does_to_the_sample(of_pool: SNSStep) -> None:
    found = Standards.load(Path(str(of_pool.settings.cuts))).standards
    assert sorted(found) == ["text/annotation", "text/data"]
    for one in found.values():
        assert (one.pairs, one.foreign) == (150, 0)
        assert one.told > 0.95
        assert one.lost <= 0.02
        assert one.caught > 0.8
    assert [one.blocks for _, one in sorted(found.items())] == [False, True]


def test_too_few_pairs_say_nothing(tmp_path: Path) -> None:
    rows = rows_of(FEWEST - 1, 0)
    sns = fitted(rows, tmp_path / "cuts.safetensors")
    assert all(
        one.line is None and np.isnan(one.told)
        for one in Standards.load(tmp_path / "cuts.safetensors").standards.values()
    )
    found = trim(sns, planted(rows, "annotation"))
    assert {row[SNS_REASON] for row in found} == {"untrimmed: every segment is relevant"}


def test_where_nothing_can_be_told_nothing_is_cut(tmp_path: Path) -> None:
    rows = rows_of(120, 0)
    for row, other in zip(rows, rows_of(120, 5), strict=True):  # annotations of no pair of the pool
        row["annotation"] = other["annotation"]
    sns = fitted(rows, tmp_path / "cuts.safetensors", mode="forward")
    (one,) = Standards.load(tmp_path / "cuts.safetensors").standards.values()
    assert one.line is None
    assert all(row[DATA_SPANS] is None for row in trim(sns, rows))


def test_foreign_sentences_of_the_pool_are_no_own_ones(tmp_path: Path) -> None:
    rows = rows_of(200, 0)
    rows[::2] = planted(rows, "annotation")[::2]
    fitted(rows, tmp_path / "cuts.safetensors", mode="backward")
    (one,) = Standards.load(tmp_path / "cuts.safetensors").standards.values()
    assert one.foreign == pytest.approx(100 / 700, abs=0.06)
    assert one.lost <= 0.03
    assert one.caught > 0.7


def test_the_same_sample_gives_the_same_bytes(of_pool: SNSStep, tmp_path: Path) -> None:
    path = Path(str(of_pool.settings.cuts))
    fitted(rows_of(150, 0), tmp_path / "again.safetensors")
    Standards.load(path).save(tmp_path / "read.safetensors")
    assert (
        path.read_bytes()
        == (tmp_path / "again.safetensors").read_bytes()
        == (tmp_path / "read.safetensors").read_bytes()
    )


def test_a_pair_does_not_depend_on_its_neighbours(of_pool: SNSStep) -> None:
    rows = planted(rows_of(40, 3), "data")
    together = trim(of_pool, rows)
    assert together[::3] == trim(of_pool, rows[::3])
    assert together[5:6] == trim(of_pool, rows[5:6])


def test_rows_that_fail_are_left_out_of_the_sample(of_pool: SNSStep, tmp_path: Path) -> None:
    rows = rows_of(150, 0)
    broken = {**rows[0], "pair_id": "broken", "annotation": "!!! ???"}
    fitted([broken, *rows[:70], {**broken, "pair_id": "too"}, *rows[70:]], tmp_path / "cuts.safetensors")
    assert (tmp_path / "cuts.safetensors").read_bytes() == Path(str(of_pool.settings.cuts)).read_bytes()


def test_another_file_is_another_step(of_pool: SNSStep, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere.safetensors"
    copied.write_bytes(Path(str(of_pool.settings.cuts)).read_bytes())
    elsewhere = replace(of_pool, settings=of_pool.settings.model_copy(update={"cuts": str(copied)}))
    assert elsewhere.identity() == of_pool.identity()
    Standards({}, {}, {}).save(copied)
    assert elsewhere.identity() != of_pool.identity()


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, "nucleus"),
        ({"nucleus": 0.8}, "nucleus"),
        ({"tau_backward": 0.2}, "threshold"),
        ({"tau": {"image": 0.2}}, "threshold"),
        ({"select": "nucleus", "tau_forward": 0.1}, "nucleus"),
        ({"cuts": "a.safetensors"}, "pool"),
        ({"select": "pool"}, "nucleus"),  # there is no pool yet
    ],
)
def test_what_is_set_by_hand_counts(settings: dict[str, Any], how: str) -> None:
    read = parse(SNSSettings, settings)
    assert read.chosen_by == how
    assert parse(SNSSettings, read.model_dump(mode="json")).chosen_by == how
    assert parse(SNSSettings, read.model_dump(mode="json", exclude_defaults=True)).chosen_by == how


def test_leaders_by_hand() -> None:
    values, owner = np.array([0.1, 0.3, 0.3, np.nan, 0.2]), np.array([0, 0, 0, 2, 2])
    assert leaders(values, owner).tolist() == [1, 1, 1, 4, 4]
    assert leaders(np.zeros(0), np.zeros(0, dtype=np.int64)).tolist() == []


def test_features_by_hand() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    scored = Scored(np.array([0.5, 0.9, 0.3]), np.array([0, 0, 0]), np.array([[0.1, 0.3]] * 3), vectors)
    found = scored.features(blocks=True)
    assert found[:, 0].tolist() == [0.5, 0.9, 0.3]
    assert found[:, 1:4] == pytest.approx(np.array([[0.2, 0.1, 0.2]] * 3))
    assert found[:, 4] == pytest.approx([-0.4, 0.0, -0.6])
    assert found[:, 5].tolist() == [1, 1, 0]
    weights = np.exp(np.array([-4.0, 0.0, -6.0]))
    total = np.array([weights[0] + weights[1], weights[2]])
    assert found[:, 6] == pytest.approx(total[[0, 0, 1]] / np.linalg.norm(total))
    assert found[:, 7].tolist() == [1, 0.5, 1]
    assert np.isnan(scored.features(blocks=False)[:, 7:]).all()


def test_across_is_the_match_with_each_of_the_bank() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(13, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts, bank = Parts(vectors[:7], np.array([7])), Parts(vectors[7:], np.array([1, 3, 2]))
    expected = [best_match(parts, Parts(bank.vectors[a:b], np.array([b - a]))) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert across(parts, bank, mean=False) == pytest.approx(np.stack(expected, axis=1), abs=1e-6)
    expected = [mean_match(parts, Parts(bank.vectors[a:b], np.array([b - a]))) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert across(parts, bank, mean=True) == pytest.approx(np.stack(expected, axis=1), abs=1e-6)
    assert across(parts, None, mean=True).shape == (7, 0)


def test_spoilt_pairs_hold_their_own_parts_and_others() -> None:
    owner = np.array([0, 0, 1, 2, 2, 2])
    scored = Scored(np.arange(6) / 10, owner, np.arange(12).reshape(6, 2) / 100 + 0.5)
    made, foreign, places = spoil(scored, blocks=False, seed=0)
    assert set(places) <= {0, 1}
    for one in np.unique(made.owner):
        mine, place = (made.owner == one) & ~foreign, places[made.owner == one][0]
        assert made.relevance[mine].tolist() == scored.relevance[owner == place].tolist()
        (planted,) = made.relevance[(made.owner == one) & foreign]
        assert planted in scored.across[owner != place, place]


def test_a_standard_without_a_line_keeps_all() -> None:
    assert Standard().keep(Scored(np.array([np.nan, -1.0]), np.array([0, 0]), np.zeros((2, 0)))).all()

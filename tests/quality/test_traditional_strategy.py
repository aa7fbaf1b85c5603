"""The strategy: exactly the budget, the same from any number of shards, duplicates once, reasons in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from nemo_mm_rank import frames
from nemo_mm_rank.config import Budget, parse
from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.quality.text_filters import TraditionalSettings, TraditionalStep, passed_column, score_column
from nemo_mm_rank.quality.traditional import Choice, choose, curator_stages
from nemo_mm_rank.ranking import Files
from tests.quality.annotations import FAULTS, OTHER, PARAGRAPH

pytest.importorskip("nemo_curator")

NEAR = PARAGRAPH.replace("old sailor", "young sailor")
NEARER_END = PARAGRAPH.replace("black cat", "white cat")
POOL = {
    **{name: text for name, (text, _) in FAULTS.items()},
    "again": PARAGRAPH,
    "almost": NEAR,
    "also": NEARER_END,
    "caption-2": FAULTS["caption"][0],
}
EVERYTHING = parse(Budget, {"fraction": 1.0})


def frame(pool: dict[str, str]) -> pd.DataFrame:
    modalities = ["image" if row % 2 else "audio" for row in range(len(pool))]
    return pd.DataFrame({"pair_id": list(pool), "pool": "p", "modality": modalities, "annotation": list(pool.values())})


def shards(folder: Path, pool: pd.DataFrame, count: int, settings: TraditionalSettings) -> Files:
    """Write the judged pool as ``count`` shards of about equal size."""
    step = TraditionalStep(settings)
    files = []
    for part in range(count):
        rows = pool.iloc[len(pool) * part // count : len(pool) * (part + 1) // count]
        files.append((folder / f"{count}-{part}.parquet",))
        write_table(files[-1][0], frames.to_table(step(rows)))
    return Files(tuple(files))


def chosen(folder: Path, pool: pd.DataFrame, count: int = 2, settings: TraditionalSettings | None = None) -> Choice:
    settings = settings or TraditionalSettings()
    return choose(shards(folder, pool, count, settings), settings, EVERYTHING)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return shards(tmp_path_factory.mktemp("judged"), frame(POOL), 2, TraditionalSettings())


@pytest.fixture(scope="module")
def everything(judged: Files) -> Choice:
    return choose(judged, TraditionalSettings(), EVERYTHING)


def test_pairs_are_ranked_by_filters_passed_then_margin_then_id(everything: Choice) -> None:
    table = everything.chosen.to_pydict()
    # All that hold most of the paragraph are near-duplicates, of which `almost` passes most and has the best margin.
    assert dict(zip(table["pair_id"], table["filters_passed"], strict=True)) == {
        "almost": 30,
        "other": 30,
        "also": 29,
        "again": 29,
        "german": 29,
        "good": 28,  # the same as `again`, and after it by name
        "numbers": 28,
        "bullets": 28,
        "urls": 28,
        "lines": 28,
        "brackets": 27,
        "caption": 27,
        "paragraphs": 27,
        "caption-2": 25,
        "stutter": 23,
    }
    columns = [table[name] for name in ("filters_passed", "score", "pair_id")]
    keys = [(-passed, -score, pair_id) for passed, score, pair_id in zip(*columns, strict=True)]
    assert keys == sorted(keys)
    assert all(0 <= score - passed < 1 for passed, score, _ in zip(*columns, strict=True))
    assert table["rank"] == list(range(1, len(POOL) + 1))


@pytest.mark.parametrize(("budget", "pairs"), [(1, 1), (5, 5), (15, 15), (99, 15), ("40%", 6)])
def test_the_budget_is_filled_exactly(judged: Files, everything: Choice, budget: int | str, pairs: int) -> None:
    choice = choose(judged, TraditionalSettings(), parse(Budget, budget))
    assert choice.chosen.equals(everything.chosen.slice(0, pairs))


def test_a_threshold_keeps_what_reaches_it(judged: Files, everything: Choice) -> None:
    above = choose(judged, TraditionalSettings(), parse(Budget, {"threshold": 29.0})).chosen
    assert above.equals(everything.chosen.slice(0, 5))


@pytest.mark.parametrize("count", [3, 7])
def test_any_number_of_shards_gives_the_same(tmp_path: Path, everything: Choice, count: int) -> None:
    one, many = everything, chosen(tmp_path, frame(POOL), count)
    assert many.chosen.equals(one.chosen)
    assert many.duplicates.equals(one.duplicates)
    assert many.counts == one.counts
    assert many.places.tolist() != one.places.tolist()


def test_planted_duplicates_are_found_and_one_of_each_stays(tmp_path: Path) -> None:
    pool = {"b": PARAGRAPH, "a": PARAGRAPH, "c": NEAR, "o": OTHER, "d2": "two dogs", "d1": "two dogs"}
    choice = chosen(tmp_path, frame(pool), 3)
    rows = {row["pair_id"]: row for row in choice.chosen.to_pylist()}
    kept = {name for name, row in rows.items() if row[passed_column("near_duplicate")]}
    assert {name for name, row in rows.items() if row[passed_column("exact_duplicate")]} == {"a", "c", "o", "d1"}
    near = "a" if rows["a"]["filters_passed"] == 30 else "c"
    assert kept == {near, "o", "d1"}
    exact = [("exact_duplicate", "b", "a"), ("exact_duplicate", "d2", "d1")]
    others = [("near_duplicate", name, near) for name in ("b", "a", "c") if name != near]
    found = [tuple(row.values()) for row in choice.duplicates.to_pylist()]
    assert found == [*exact, *others, ("near_duplicate", "d2", "d1")]
    assert rows["d2"]["reason"].endswith("exact_duplicate of d1, near_duplicate of d1")


def test_the_better_of_two_duplicates_stays(tmp_path: Path) -> None:
    # The same text but for its last mark: without it the line does not end, and `punctuation` fails.
    pool = {"a-worse": OTHER.rstrip("."), "b-better": OTHER}
    choice = chosen(tmp_path, frame(pool))
    assert choice.chosen["pair_id"].to_pylist() == ["b-better", "a-worse"]
    assert choice.duplicates.to_pylist() == [{"filter": "near_duplicate", "pair_id": "a-worse", "kept": "b-better"}]


def test_reasons_say_what_failed_and_by_how_much(everything: Choice) -> None:
    table = everything.chosen.to_pydict()
    reasons = dict(zip(table["pair_id"], table["reason"], strict=True))
    assert reasons["other"] == "30 of 30 filters passed"
    assert reasons["lines"] == (
        "28 of 30 filters passed; failed: repeated_lines 0.6 (at least 0.7), near_duplicate of almost"
    )
    assert reasons["caption"] == (
        "27 of 30 filters passed; failed: word_count 10 (from 50 to 100,000), "
        "repeating_top_3grams 0.286 (at most 0.18), repeating_top_4grams 0.405 (at most 0.16)"
    )


def test_counts_are_by_filter_and_modality(judged: Files, everything: Choice) -> None:
    choice = choose(judged, TraditionalSettings(), parse(Budget, 3))
    pool, rows = frame(POOL), everything.chosen.to_pandas()
    assert list(choice.counts) == ["audio", "image"]
    for modality, counts in choice.counts.items():
        mine = rows[rows["modality"] == modality]
        assert counts["pairs"] == (pool["modality"] == modality).sum() == len(mine)
        assert counts["passed_all"] == (mine["filters_passed"] == 30).sum()
        assert list(counts["passed"])[-2:] == ["exact_duplicate", "near_duplicate"]
        for name, passed in counts["passed"].items():
            assert passed == mine[passed_column(name)].sum(), name


def test_pairs_with_an_error_are_not_ranked_and_make_nobody_a_duplicate(tmp_path: Path) -> None:
    pool = frame({"bad": PARAGRAPH, "good": PARAGRAPH, "empty": " ", "empty-2": " "})
    pool["error"] = pd.Series(["sns: MediaError: torn", None, None, None])
    choice = chosen(tmp_path, pool)
    assert choice.chosen["pair_id"].to_pylist() == ["good"]
    assert choice.chosen["filters_passed"].to_pylist() == [30]
    assert choice.duplicates.num_rows == 0


def test_where_nothing_can_be_judged_the_blend_is_empty_and_has_its_columns(tmp_path: Path, everything: Choice) -> None:
    empty = chosen(tmp_path, frame({"a": " ", "b": "\n"})).chosen
    assert empty.num_rows == 0
    assert empty.schema == everything.chosen.schema


def test_what_is_off_does_not_count(tmp_path: Path) -> None:
    settings = parse(TraditionalSettings, {"exact_duplicates": False, "near_duplicates": "off"})
    pool = {"a": OTHER, "b": OTHER}
    choice = chosen(tmp_path, frame(pool), settings=settings)
    assert choice.chosen["reason"].to_pylist() == ["28 of 28 filters passed"] * 2
    assert choice.duplicates.num_rows == 0


def test_the_pipeline_and_the_strategy_agree_on_who_passes_everything(tmp_path: Path, everything: Choice) -> None:
    from nemo_curator.tasks import DocumentBatch

    write_table(tmp_path / "duplicates.parquet", everything.duplicates)
    batch = DocumentBatch(dataset_name="test", data=frame(POOL))
    stages = curator_stages(TraditionalSettings(), duplicates=tmp_path / "duplicates.parquet")
    for stage in stages:
        stage.setup()
        batch = stage.process(batch)
    left = batch.to_pandas()
    rows = everything.chosen.to_pandas()
    assert sorted(left["pair_id"]) == sorted(rows.loc[rows["filters_passed"] == 30, "pair_id"]) == ["almost", "other"]
    assert score_column("word_count") in left.columns


def test_shards_that_were_not_judged_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "part.parquet", pa.table({"pair_id": ["a"], "pool": ["p"], "modality": ["image"]}))
    with pytest.raises(MissingColumnError, match="traditional: shard 0 lacks 'traditional__exact_key'"):
        choose(Files(((tmp_path / "part.parquet",),)), TraditionalSettings(), EVERYTHING)

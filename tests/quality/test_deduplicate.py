"""Who stays: the best agreement, whatever the order of rows and the number of shards; every loser is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.quality.duplicates import Duplicates, DuplicateSettings, deduplicate
from nemo_mm_rank.quality.operators import ANNOTATION_KEY, DATA_KEY
from nemo_mm_rank.ranking import Files

Row = dict[str, Any]


def shards(folder: Path, rows: list[Row], count: int) -> Files:
    """Write rows as ``count`` shards."""
    files = []
    for part in range(count):
        mine = rows[len(rows) * part // count : len(rows) * (part + 1) // count]
        table = pa.Table.from_pylist(mine, SCHEMA)
        files.append((folder / f"{count}-{part}.parquet",))
        write_table(files[-1][0], table)
    return Files(tuple(files))


SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("modality", pa.string()),
        (DATA_KEY, pa.uint64()),
        (ANNOTATION_KEY, pa.uint64()),
        ("quality__clip", pa.float32()),
        ("quality__clap", pa.float32()),
        ("error", pa.string()),
    ]
)


def row(pair_id: str, key: int, clip: float | None = None, **more: Any) -> Row:
    given: Row = {"pair_id": pair_id, "modality": "image", DATA_KEY: key, ANNOTATION_KEY: 0, "quality__clip": clip}
    return {**given, "quality__clap": None, "error": None, **more}


def chosen(folder: Path, rows: list[Row], count: int = 2, **changes: Any) -> Duplicates:
    settings = parse(DuplicateSettings, {"by": ["quality__clip", "quality__clap"], **changes})
    return deduplicate(shards(folder, rows, count), settings)


def kept(found: Duplicates) -> list[bool]:
    return [bool(one) for part in found.kept for one in part]


def test_the_best_agreement_stays_and_ties_go_to_the_least_id(tmp_path: Path) -> None:
    rows = [
        row("c", 7, 0.3),
        row("a", 7, 0.2),
        row("e", 8, 0.5),
        row("d", 8, 0.5),
        row("f", 9, None),
        row("g", 9, -0.2),
        row("h", 10, None),
        row("i", 9, float("nan")),
        row("k", 11, None, error="experts: MediaError: broken"),
    ]
    rows[-1][DATA_KEY] = None
    found = chosen(tmp_path, rows)
    assert kept(found) == [True, False, False, True, False, True, True, False]
    table = found.groups.to_pylist()
    assert sorted(one["pair_id"] for one in table if not one["kept"]) == ["a", "e", "f", "i"]
    assert [(one["group"], one["pair_id"], one["kept"]) for one in table] == [
        ("c", "c", True),
        ("c", "a", False),
        ("d", "d", True),
        ("d", "e", False),
        ("g", "g", True),
        ("g", "f", False),
        ("g", "i", False),
    ]
    assert [one["reason"] for one in table[:4]] == [
        "best agreement of 2: 0.3",
        "0 bits from c: agreement 0.2 against 0.3",
        "best agreement of 2: 0.5",
        "0 bits from d: agreement 0.5 against 0.5",
    ]
    assert table[5]["reason"] == "0 bits from g: agreement none against -0.2"
    assert table[5]["agreement"] is None


def test_pairs_of_two_modalities_are_no_duplicates(tmp_path: Path) -> None:
    rows = [row("a", 7, 0.3), row("b", 7, modality="audio", quality__clap=0.1), row("c", 7, modality="text")]
    assert kept(chosen(tmp_path, rows, radius=3)) == [True] * 3


def test_data_of_several_parts_has_exact_duplicates(tmp_path: Path) -> None:
    rows = [row(name, key, modality="text+image", quality__clip=0.1) for name, key in (("a", 4), ("b", 5), ("c", 5))]
    assert kept(chosen(tmp_path, rows, radius=8)) == [True, True, False]


def test_each_modality_has_its_own_agreement(tmp_path: Path) -> None:
    rows = [row("a", 7, modality="audio", quality__clap=0.1), row("b", 7, modality="audio", quality__clap=0.4)]
    assert kept(chosen(tmp_path, rows)) == [False, True]


def test_the_annotation_may_count_too(tmp_path: Path) -> None:
    rows = [row("a", 7, 0.1), row("b", 7, 0.2, **{ANNOTATION_KEY: 5}), row("c", 7, 0.3, **{ANNOTATION_KEY: 5})]
    assert kept(chosen(tmp_path, rows)) == [False, False, True]
    assert kept(chosen(tmp_path, rows, text=True)) == [True, False, True]
    assert kept(chosen(tmp_path, rows, text=True, radius=2)) == [True, False, True]


TWICE = {"question": (5, 6), "same": (5, 5)}
"""What the annotations' keys of two pairs of the same data are."""


@pytest.mark.parametrize(
    ("modality", "by_default"),
    [("text", False), ("code", False), ("image", True), ("audio", True), ("video", True), ("text+image", True)],
)
def test_a_passage_may_be_asked_several_things_and_of_media_the_data_alone_counts(
    tmp_path: Path, modality: str, by_default: bool
) -> None:
    def gone(annotations: str, **changes: Any) -> bool:
        rows = [
            row(name, 7, agreement, modality=modality, **{ANNOTATION_KEY: key})
            for name, agreement, key in zip("ab", (0.1, 0.2), TWICE[annotations], strict=True)
        ]
        found = kept(chosen(tmp_path, rows, **changes))
        assert found in ([True, True], [False, True])
        return not found[0]

    assert gone("question") is by_default
    assert gone("question", text=False)
    assert not gone("question", text=True)
    assert all(gone("same", **changes) for changes in ({}, {"text": False}, {"text": True}))


def test_only_what_is_compared_by_its_annotation_needs_a_key_of_it(tmp_path: Path) -> None:
    def whole(**changes: Any) -> Files:
        path = tmp_path / f"{changes}.parquet"
        rows = [row("a", 7, 0.1, **changes), row("b", 7, 0.2, **changes)]
        write_table(path, pa.Table.from_pylist(rows, SCHEMA).drop_columns([ANNOTATION_KEY]))
        return Files(((path,),))

    by = DuplicateSettings(by=("quality__clip",))
    assert kept(deduplicate(whole(), by)) == [False, True]
    assert kept(deduplicate(whole(modality="code"), by.model_copy(update={"text": False}))) == [False, True]
    for files, wanted in ((whole(modality="code"), by), (whole(), by.model_copy(update={"text": True}))):
        with pytest.raises(MissingColumnError, match=f"duplicates: shard 0 lacks '{ANNOTATION_KEY}'"):
            deduplicate(files, wanted)


def test_a_radius_chains_and_the_distance_is_written_down(tmp_path: Path) -> None:
    rows = [row("a", 0b0000, 0.9), row("b", 0b0011, 0.1), row("c", 0b1111, 0.2), row("d", 0b1111 << 32, 0.1)]
    assert kept(chosen(tmp_path, rows)) == [True] * 4
    found = chosen(tmp_path, rows, radius=2)
    assert kept(found) == [True, False, False, True]
    assert {one["pair_id"]: one["bits"] for one in found.groups.to_pylist()} == {"a": 0, "b": 2, "c": 4}


def test_keys_of_texts_have_no_neighbours(tmp_path: Path) -> None:
    rows = [row(name, key, modality="text", quality__clip=0.1) for name, key in (("a", 4), ("b", 5), ("c", 5))]
    assert kept(chosen(tmp_path, rows, radius=8)) == [True, True, False]
    assert chosen(tmp_path, rows).groups["bits"].to_pylist() == [None, None]


made = st.lists(
    st.tuples(st.sampled_from([0, 1, 3, 7, 0xFF00, 0xFF01]), st.sampled_from([None, 0.1, 0.2]), st.booleans()),
    max_size=14,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made, st.integers(0, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_and_shards_change_nothing(
    tmp_path: Path, made: list[tuple[int, float | None, bool]], radius: int, count: int, random: Any
) -> None:
    rows = [
        row(f"p{number:02d}", key, clip, modality="image" if is_image else "video")
        for number, (key, clip, is_image) in enumerate(made)
    ]
    whole = chosen(tmp_path, rows, 1, radius=radius)
    shuffled = random.sample(rows, len(rows))
    parts = chosen(tmp_path, shuffled, count, radius=radius)
    assert parts.groups.equals(whole.groups)
    stays = {one["pair_id"] for one, stay in zip(shuffled, kept(parts), strict=True) if stay}
    assert stays == {one["pair_id"] for one, stay in zip(rows, kept(whole), strict=True) if stay}
    assert stays == by_hand(rows, radius)


def by_hand(rows: list[Row], radius: int) -> set[str]:
    """Take pairs in the order of preference, and drop all that hang together with one taken before."""
    left = sorted(rows, key=lambda one: (-(one["quality__clip"] or -9), one["pair_id"]))
    stays: set[str] = set()
    while left:
        group, waiting = [], [left[0]]
        while waiting:
            one = waiting.pop()
            if one in group:
                continue
            group.append(one)
            waiting += [
                other
                for other in left
                if other["modality"] == one["modality"] and (other[DATA_KEY] ^ one[DATA_KEY]).bit_count() <= radius
            ]
        stays.add(left[0]["pair_id"])
        left = [one for one in left if one not in group]
    return stays


def test_no_rows_at_all(tmp_path: Path) -> None:
    found = chosen(tmp_path, [], 1)
    assert found.groups.num_rows == 0
    assert kept(found) == []


@pytest.mark.parametrize("column", [DATA_KEY, "quality__clip"])
def test_what_is_missing_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, pa.Table.from_pylist([row("a", 1, 0.1)], SCHEMA).drop_columns([column, "quality__clap"]))
    with pytest.raises(MissingColumnError, match=f"shard 0 .*{column}"):
        deduplicate(Files(((path,),)), DuplicateSettings(by=("quality__clip",)))


def test_many_pairs_are_no_all_pairs_step(tmp_path: Path) -> None:
    n = 60_000
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**64, n // 2, dtype=np.uint64)
    table = pa.table(
        {
            "pair_id": [f"p{number:07d}" for number in range(n)],
            "modality": pa.array(["image"] * n),
            DATA_KEY: np.concatenate([codes, codes ^ np.uint64(0b101)]),
            "quality__clip": random.random(n).astype(np.float32),
        }
    )
    write_table(tmp_path / "part.parquet", table)
    found = deduplicate(Files(((tmp_path / "part.parquet",),)), DuplicateSettings(by=("quality__clip",), radius=4))
    assert int(found.kept[0].sum()) == n // 2
    clip = table["quality__clip"].to_numpy()
    better = np.maximum(clip[: n // 2], clip[n // 2 :])
    assert np.array_equal(np.sort(clip[found.kept[0]]), np.sort(better))

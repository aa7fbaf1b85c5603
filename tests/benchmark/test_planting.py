"""Planted noise: exact counts, nothing that stays as it was, and a truth that the files bear out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.benchmark.planting import Kind, Plan, Planted, PlantSettings, make_plan, plant
from nemo_mm_rank.benchmark.planting.donors import (
    NONE,
    derange,
    nearly_text,
    numbered,
    rarity,
    with_sentence,
    with_word,
    without_key,
)
from nemo_mm_rank.benchmark.planting.plan import ALL, PRESETS
from nemo_mm_rank.benchmark.planting.plant import cropped, padded
from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import MediaError, UserError
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.text.split import split_sentences

PER_MODALITY = 50


def rows_of(pool: PoolSource) -> dict[str, dict[str, Any]]:
    """Read a pool's good rows by id."""
    found = {}
    for batch in read_pools([pool]):
        columns = {**batch.pairs, **batch.extras}
        values = [column if isinstance(column, list) else column.to_pylist() for column in columns.values()]
        found.update({row[0]: dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)})
    return found


def planted_of(planted: Planted) -> dict[str, tuple[str | None, str | None]]:
    """Return what was planted in each pair, and where it is from."""
    return {
        row["pair_id"]: (row["kinds"][0] if row["kinds"] else None, row["donor"]) for row in planted.truth.to_pylist()
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PoolSource:
    return PoolSource(path=str(make_demo_pool(tmp_path_factory.mktemp("demo"), PER_MODALITY)))


@pytest.fixture(scope="module")
def planted(pool: PoolSource, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(pool, tmp_path_factory.mktemp("planted"), seed=3)


def test_counts_are_exact_in_every_modality(pool: PoolSource, planted: Planted) -> None:
    before, truth = rows_of(pool), planted_of(planted)
    assert list(truth) == list(before)
    assert Path(planted.pool.path).exists()
    spoilt = Counter(before[pair]["modality"] for pair, (kind, _) in truth.items() if kind)
    # 50 pairs of each, and a corrupt picture of the demo's own among the images: 40 % of 50 is 20, of 51 is 20.4.
    assert spoilt == dict.fromkeys(["text", "code", "image", "audio", "video"], 20)
    assert planted.truth["clean"].to_pylist() == [kind is None for kind, _ in truth.values()]
    kinds = Counter(kind for kind, _ in truth.values() if kind)
    assert set(kinds) == set(ALL)
    assert kinds[Kind.CORRUPT] >= 3
    assert planted.counts() == {kind: kinds[kind] for kind in ALL}
    assert planted.short == ()


def test_the_pool_bears_out_the_truth(pool: PoolSource, planted: Planted) -> None:
    before, after = rows_of(pool), rows_of(planted.pool)
    assert list(after) == list(before)
    opener = Opener(MediaSettings(), str(Path(planted.pool.path).parent))
    modality = {pair: row["modality"] for pair, row in before.items()}
    for pair, (kind, donor) in planted_of(planted).items():
        was, now = before[pair], after[pair]
        assert now["modality"] == was["modality"]
        media = was["modality"] in ("image", "audio", "video")
        same_data = (
            bytes_of(pool, was["data"]) == bytes_of(planted.pool, now["data"]) if media else was["data"] == now["data"]
        )
        same_annotation = was["annotation"] == now["annotation"]
        match kind:
            case None:
                assert same_data
                assert same_annotation
                assert now["on_topic"] == was["on_topic"]
                continue
            case Kind.SWAP_WITHIN | Kind.SWAP_ACROSS:
                assert same_data
                assert donor is not None
                assert not same_annotation
                assert now["annotation"] == before[donor]["annotation"]
                assert (modality[donor] == modality[pair]) == (kind == Kind.SWAP_WITHIN)
            case Kind.FOREIGN_SENTENCE:
                assert donor is not None
                own, others = split_sentences(was["annotation"]), split_sentences(before[donor]["annotation"])
                assert same_data
                assert len(split_sentences(now["annotation"])) == len(own) + 1
                assert set(split_sentences(now["annotation"])) <= {*own, *others}
            case Kind.KEY_SENTENCE:
                assert not media
                assert same_annotation
                assert len(now["data"]) < len(was["data"])
            case Kind.NEAR_DUPLICATE:
                assert donor is not None
                assert planted_of(planted)[donor] == (None, None)
                assert now["annotation"] == before[donor]["annotation"]
                assert now["on_topic"] == before[donor]["on_topic"]
                assert after[donor]["data"] != now["data"]
            case Kind.CORRUPT:
                assert same_annotation
                if pair != "bad-corrupt":
                    assert not same_data
                with pytest.raises(MediaError):
                    opener.open(now["data"], now["modality"])
            case Kind.CROPPED | Kind.PADDED:
                assert same_annotation
                assert not same_data
            case Kind.OFF_TOPIC:
                assert not same_data
                assert not same_annotation
        if media and kind != Kind.CORRUPT and pair != "bad-corrupt":
            opener.open(now["data"], now["modality"])


def bytes_of(pool: PoolSource, ref: str) -> bytes:
    return (Path(pool.path).parent / ref).read_bytes()


def test_the_same_seed_gives_the_same_files_and_another_another(
    pool: PoolSource, planted: Planted, tmp_path: Path
) -> None:
    again = plant(pool, tmp_path / "again", seed=3)
    other = plant(pool, tmp_path / "other", seed=4)
    assert again.truth.equals(planted.truth)
    assert not other.truth.equals(planted.truth)
    first, second = Path(planted.pool.path).parent, tmp_path / "again"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_folder_that_has_it_is_left_and_another_pool_is_refused(pool: PoolSource, tmp_path: Path) -> None:
    settings = PlantSettings.model_validate({"kinds": "swaps"})
    first = plant(pool, tmp_path, settings)
    manifest = tmp_path / "pool.jsonl"
    written = manifest.stat().st_mtime_ns
    assert plant(pool, tmp_path, settings).truth.equals(first.truth)
    assert manifest.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds another planted pool"):
        plant(pool, tmp_path, settings, seed=1)


def test_swaps_alone(pool: PoolSource, tmp_path: Path) -> None:
    settings = PlantSettings(kinds={Kind.SWAP_WITHIN: 1}, total=0.5)
    planted = plant(pool, tmp_path, settings)
    before = rows_of(pool)
    swapped = {pair: donor for pair, (kind, donor) in planted_of(planted).items() if kind}
    # Half of 50, and of the 51 pictures, that is 25.5, which is rounded to the even 26.
    assert Counter(before[pair]["modality"] for pair in swapped) == {
        **dict.fromkeys(["text", "code", "audio", "video"], 25),
        "image": 26,
    }
    assert sorted(swapped) == sorted(str(donor) for donor in swapped.values())


def test_a_small_pool_of_one_modality(tmp_path: Path) -> None:
    rows = [
        {
            "pair_id": f"t{n}",
            "modality": "text",
            "data": f"Passage {n}. It has two sentences.",
            "annotation": f"Of {n}.",
        }
        for n in range(5)
    ]
    manifest = tmp_path / "few.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = plant(manifest, tmp_path / "planted")
    kinds = [kind for kind, _ in planted_of(planted).values() if kind]
    assert len(kinds) == 2  # 40 % of 5
    assert Kind.SWAP_ACROSS not in kinds


def test_data_of_several_parts_keeps_its_parts(pool: PoolSource, tmp_path: Path) -> None:
    rows = [
        {
            "pair_id": f"p{n}",
            "data": [{"modality": "text", "data": f"A recipe, number {n}."}, {"modality": "image", "data": ref}],
            "annotation": f"How is dish {n} made?",
        }
        for n, ref in enumerate(sorted(f"image/image-{k:03d}.jpg" for k in range(10)))
    ]
    manifest = tmp_path / "parts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PoolSource(path=str(manifest), root=str(Path(pool.path).parent))
    planted = plant(source, tmp_path / "planted")
    before, after = rows_of(source), rows_of(planted.pool)
    assert {kind for kind, _ in planted_of(planted).values()} <= {None, Kind.SWAP_WITHIN, Kind.FOREIGN_SENTENCE}
    assert sum(kind is not None for kind, _ in planted_of(planted).values()) == 4
    for pair, row in after.items():
        text, picture = row["data_parts"]
        assert text == before[pair]["data_parts"][0]
        assert bytes_of(planted.pool, picture["data"]) == bytes_of(
            PoolSource(path=pool.path), before[pair]["data_parts"][1]["data"]
        )


def test_equal_annotations_are_left_and_it_is_said(tmp_path: Path) -> None:
    rows = [{"pair_id": f"t{n}", "modality": "text", "data": f"Passage {n}.", "annotation": "Same."} for n in range(10)]
    manifest = tmp_path / "same.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = plant(manifest, tmp_path / "planted", PlantSettings(kinds={Kind.SWAP_WITHIN: 1}))
    assert planted.truth["clean"].to_pylist() == [True] * 10
    assert list(map(str, planted.short)) == [
        "text: swap-within was planted in 0 pairs of 4 asked for, because it needs another pair of the same modality "
        "with another annotation, which 0 of 10 pairs have."
    ]
    again = plant(manifest, tmp_path / "planted", PlantSettings(kinds={Kind.SWAP_WITHIN: 1}))
    assert again.short == planted.short
    # In a mix the others take what cannot be swapped.
    mixed = plant(manifest, tmp_path / "mixed", PlantSettings(kinds={Kind.SWAP_WITHIN: 1, Kind.OFF_TOPIC: 1}))
    assert mixed.counts() == {Kind.OFF_TOPIC: 4}
    assert [(one.kind, one.wanted, one.planted) for one in mixed.short] == [(Kind.SWAP_WITHIN, 2, 0)]


def test_media_that_do_not_open_stop_nothing(tmp_path: Path) -> None:
    rows = [
        {"pair_id": f"i{n}", "modality": "image", "data": f"{n}.jpg", "annotation": f"Picture {n}."} for n in range(5)
    ]
    for n in range(5):
        (tmp_path / f"{n}.jpg").write_text("no picture")
    (tmp_path / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("media", "near-duplicate", "swap-within"):
        planted = plant(tmp_path / "broken.jsonl", tmp_path / kind, PlantSettings.model_validate({"kinds": kind}))
        assert list(rows_of(planted.pool)) == [f"i{n}" for n in range(5)]
        assert planted.counts() == {"swap-within" if kind == "swap-within" else "corrupt": 2}


@pytest.mark.parametrize("kind", ["all", *Kind])
@pytest.mark.parametrize("total", [0.1, 0.4])
def test_five_pairs_of_every_modality(tmp_path_factory: pytest.TempPathFactory, kind: str, total: float) -> None:
    demo = make_demo_pool(tmp_path_factory.mktemp("few"), 5)
    settings = PlantSettings.model_validate({"kinds": kind, "total": total})
    planted = plant(str(demo), tmp_path_factory.mktemp("planted"), settings)
    before, after = rows_of(PoolSource(path=str(demo))), rows_of(planted.pool)
    assert list(after) == list(before)
    spoilt = {pair: row for pair, row in planted_of(planted).items() if row[0]}
    # 26 pairs; what is missing is said, of what only some modalities or annotations of several sentences can have.
    assert len(spoilt) + sum(one.wanted - one.planted for one in planted.short) >= round(total * 26)
    assert {found for found, _ in spoilt.values()} <= {*PRESETS[kind], Kind.CORRUPT}
    for pair in spoilt:
        assert after[pair] != before[pair] or pair == "bad-corrupt" or spoilt[pair][0] in PRESETS["media"]


def test_settings_name_their_presets() -> None:
    assert PlantSettings.model_validate({"kinds": "swaps"}).kinds == {Kind.SWAP_WITHIN: 1.0}
    assert PlantSettings.model_validate({"kinds": "removed-sentence"}).kinds == {Kind.REMOVED_SENTENCE: 1.0}
    assert set(PlantSettings.model_validate({"kinds": "media"}).kinds) == {Kind.CROPPED, Kind.PADDED, Kind.CORRUPT}
    assert PlantSettings().kinds == ALL == PlantSettings.model_validate({"kinds": "all"}).kinds
    for wrong in ({"kinds": "sawps"}, {"kinds": {"cropped": 0}}, {"kinds": {"croped": 1}}, {"total": 1.5}):
        with pytest.raises(ValueError, match=r"kinds|total"):
            PlantSettings.model_validate(wrong)


# Plans, in memory.


def planned(modality: list[str], annotation: list[str], kinds: Any, total: float = 0.4, seed: int = 0) -> Plan:
    return make_plan(modality, annotation, PlantSettings.model_validate({"kinds": kinds, "total": total}), seed)


def test_a_modality_that_is_most_of_the_pool_gets_across_what_others_give_twice() -> None:
    modality = ["text"] * 90 + ["code"] * 10
    found = planned(modality, [f"Annotation {n}." for n in range(100)], "swap-across")
    assert Counter(modality[row] for row in found.rows(Kind.SWAP_ACROSS)) == {"text": 36, "code": 4}
    assert found.short == ()
    assert all(modality[found.donor[row]] != modality[row] for row in found.rows(Kind.SWAP_ACROSS))


def test_annotations_that_are_few_go_round_and_the_rest_comes_from_elsewhere() -> None:
    # 48 sounds with ten different annotations, most of them the same: whatever is drawn, each gets another one.
    annotation = ["A dog."] * 39 + [f"Sound {n}." for n in range(9)]
    for seed in range(20):
        found = planned(["audio"] * 48, annotation, "swap-within", 0.4, seed)
        rows = found.rows(Kind.SWAP_WITHIN)
        assert len(rows) == 19
        assert found.short == ()
        for row in rows:
            assert found.annotation[row] == annotation[found.donor[row]] != annotation[row]


def test_case_and_white_space_make_no_other_annotation() -> None:
    found = planned(["text"] * 4, ["A dog.", "a  dog.", "A DOG. ", "A\ndog."], "swap-within", 0.5)
    assert found.clean.all()
    assert [(one.wanted, one.planted, one.able) for one in found.short] == [(2, 0, 0)]


_SENTENCES = st.sampled_from(["A dog runs.", "a dog runs.", "It rains!", "Two cats", "Why?", "One. Two.", "A dog"])
_ROW = st.tuples(
    st.sampled_from(["text", "code", "image", "audio", "text+image"]),
    st.lists(_SENTENCES, min_size=1, max_size=3).map(" ".join),
    st.integers(0, 3),
)


@given(
    st.lists(_ROW, max_size=40),
    st.one_of(st.sampled_from(sorted(PRESETS)), st.dictionaries(st.sampled_from(Kind), st.floats(0.1, 9), min_size=1)),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_whatever_the_pool_nothing_is_planted_twice_and_what_is_missing_is_said(
    rows: list[tuple[str, str, int]], kinds: Any, total: float, seed: int
) -> None:
    settings = PlantSettings.model_validate({"kinds": kinds, "total": total})
    modality, annotation, data = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    divisible = np.array([name in ("text", "code") and value > 1 for name, _, value in rows], dtype=bool)
    found = make_plan(modality, annotation, settings, seed, data, divisible)
    n = len(rows)
    assert len(found.kind) == len(found.donor) == len(found.annotation) == n
    wanted = max(int(total * n + 0.5), int(total > 0)) if n else 0
    got = sum(kind is not None for kind in found.kind)
    assert got <= wanted
    by_modality = Counter(name for name, kind in zip(modality, found.kind, strict=True) if kind)
    for name, count in by_modality.items():
        assert abs(count - total * modality.count(name)) < 1 or count < total * modality.count(name) or n * total < 1
    if got < wanted:
        assert sum(one.wanted - one.planted for one in found.short) >= wanted - got
    for one in found.short:
        assert one.planted < one.wanted
        assert one.planted == sum(
            kind == one.kind and name == one.modality for kind, name in zip(found.kind, modality, strict=True)
        )
    for row, (kind, donor, now) in enumerate(zip(found.kind, found.donor.tolist(), found.annotation, strict=True)):
        was = annotation[row]
        if kind is None:
            assert (now, donor) == (was, NONE)
            continue
        assert settings.weights[kind] > 0
        if donor != NONE:
            assert donor != row
        if kind in (Kind.SWAP_WITHIN, Kind.SWAP_ACROSS):
            assert now == annotation[donor]
            assert now.casefold().split() != was.casefold().split()
            assert (modality[row] == modality[donor]) == (kind == Kind.SWAP_WITHIN)
        elif kind in (Kind.FOREIGN_SENTENCE, Kind.REPLACED_SENTENCE, Kind.REMOVED_SENTENCE):
            own = len(split_sentences(was))
            change = {Kind.FOREIGN_SENTENCE: 1, Kind.REPLACED_SENTENCE: 0, Kind.REMOVED_SENTENCE: -1}[kind]
            assert len(split_sentences(now)) == own + change
            assert now.casefold().split() != was.casefold().split()
        elif kind == Kind.EXCHANGED_WORD:
            assert len(now.split()) == len(was.split())
            assert now.casefold() != was.casefold()
        elif kind == Kind.NEAR_DUPLICATE:
            assert found.kind[donor] is None
            assert modality[donor] == modality[row]
            assert now == annotation[donor]
            assert (data[donor], annotation[donor]) != (data[row], was)
        elif kind == Kind.PADDED:
            assert modality[donor] == modality[row]
            assert data[donor] != data[row]
        elif kind == Kind.KEY_SENTENCE:
            assert divisible[row]
        if kind in PRESETS["media"]:
            assert modality[row] in ("image", "audio")
    again = make_plan(modality, annotation, settings, seed, data, divisible)
    assert (again.kind, again.donor.tolist(), again.annotation) == (found.kind, found.donor.tolist(), found.annotation)


def test_a_file_is_spoilt_as_planned_in_memory(pool: PoolSource, tmp_path: Path) -> None:
    before = rows_of(pool)
    settings = PlantSettings.model_validate({"kinds": "foreign-sentence"})
    planted = plant(pool, tmp_path, settings, seed=5)
    modality, annotation = ([str(row[name]) for row in before.values()] for name in ("modality", "annotation"))
    found = make_plan(modality, annotation, settings, 5)
    assert [row["annotation"] for row in rows_of(planted.pool).values()] == list(found.annotation)
    assert planted.truth["clean"].to_pylist() == found.clean.tolist()


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(0, 2**32 - 1))
def test_nobody_keeps_a_label_of_its_own(labels: list[str], seed: int) -> None:
    codes = numbered(labels)
    source = derange(codes, codes, np.random.default_rng(seed)).tolist()
    assert all(given == NONE or labels[given] != own for given, own in zip(source, labels, strict=True))
    given_by = [given for given in source if given != NONE]
    assert len(set(given_by)) == len(given_by)
    most = max(Counter(labels).values(), default=0)
    assert source.count(NONE) == max(0, 2 * most - len(labels))


def test_what_two_modalities_have_in_common_is_traded_away() -> None:
    label = numbered(["audio"] * 6 + ["video"] * 6)
    also = numbered([f"caption {n % 6}" for n in range(12)])
    for seed in range(50):
        source = derange(label, also, np.random.default_rng(seed))
        assert sorted(source.tolist()) == list(range(12))
        for row, given_by in enumerate(source.tolist()):
            assert label[row] != label[given_by]
            assert also[row] != also[given_by]


def test_key_sentences() -> None:
    passage = "Paris is a city. The tower was built in 1889. It is tall."
    asked = "When was the tower built?"
    rare = rarity([asked, "When was it?", "Is it tall?", "Is a city tall?"])
    assert without_key("text", passage, asked, rare) == "Paris is a city. It is tall."
    code = "def area(r):\n    return r * r\n\n\ndef open_file(path):\n    return open(path)\n"
    assert without_key("code", code, "Open a file by its path.", rarity(["Open a file by its path.", "An area."])) == (
        "def area(r):\n    return r * r"
    )


def test_foreign_sentences_stand_anywhere() -> None:
    found = {with_sentence(["One.", "Two"], "Three.", np.random.default_rng(seed)) for seed in range(60)}
    assert found == {"Three. One. Two.", "One. Three. Two.", "One. Two. Three."}


def test_words_are_exchanged_in_their_case() -> None:
    assert with_word("Dogs run. Two dogs, doggedly.", "dogs", "cats") == "Cats run. Two cats, doggedly."


def test_near_duplicates_of_texts() -> None:
    assert nearly_text("code", "x = 1", np.random.default_rng(0)) == "\nx = 1\n"
    words = "one two three four five"
    changed = nearly_text("text", words, np.random.default_rng(0)).split()
    assert len(changed) == 4
    assert set(changed) < set(words.split())


def test_media_are_cropped_and_padded_to_size(pool: PoolSource, tmp_path: Path) -> None:
    opener = Opener(MediaSettings(), str(Path(pool.path).parent), frames=16)
    rng = np.random.default_rng(0)
    picture, sound, film = (
        cast(Any, opener.open(ref, modality))
        for ref, modality in (
            ("image/image-000.jpg", "image"),
            ("audio/audio-000.wav", "audio"),
            ("video/video-000.mp4", "video"),
        )
    )

    def reopened(content: tuple[bytes, str], modality: str) -> Any:
        (tmp_path / f"x{content[1]}").write_bytes(content[0])
        return Opener(MediaSettings(), str(tmp_path), frames=16).open(f"x{content[1]}", modality)

    assert reopened(cropped(picture, 0.25, rng), "image").pixels.size == (40, 30)
    assert reopened(padded(picture, picture), "image").pixels.size == (320, 120)
    assert reopened(cropped(sound, 0.25, rng), "audio").duration == pytest.approx(0.25 * sound.duration, abs=1e-3)
    assert reopened(padded(sound, sound), "audio").duration == pytest.approx(2 * sound.duration, abs=1e-3)
    assert reopened(padded(film, film), "video").duration == pytest.approx(2 * film.duration, rel=0.1)
    assert reopened(cropped(film, 0.25, rng), "video").duration < 0.5 * film.duration
    with pytest.raises(TypeError, match="Image cannot be padded with Audio"):
        padded(picture, sound)

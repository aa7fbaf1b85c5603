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

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import MediaError, UserError
from nemo_mm_rank.evaluation.planting import Kind, Planted, PlantSettings, plant
from nemo_mm_rank.evaluation.planting import media as spoil
from nemo_mm_rank.evaluation.planting.plan import counts_of
from nemo_mm_rank.evaluation.planting.swaps import derange
from nemo_mm_rank.evaluation.planting.texts import nearly, rarity, with_sentence, without_key
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.sns.split import split_sentences

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
    assert set(kinds) == set(Kind)
    assert kinds[Kind.CORRUPT] >= 3


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


def test_equal_annotations_cannot_be_swapped(tmp_path: Path) -> None:
    rows = [{"pair_id": f"t{n}", "modality": "text", "data": f"Passage {n}.", "annotation": "Same."} for n in range(10)]
    manifest = tmp_path / "same.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="4 of 4 are alike"):
        plant(manifest, tmp_path / "planted", PlantSettings(kinds={Kind.SWAP_WITHIN: 1}))


def test_settings_name_their_presets() -> None:
    assert PlantSettings.model_validate({"kinds": "swaps"}).kinds == {Kind.SWAP_WITHIN: 1.0}
    assert set(PlantSettings().kinds) == set(Kind)
    for wrong in ({"kinds": "sawps"}, {"kinds": {"cropped": 0}}, {"kinds": {"croped": 1}}, {"total": 1.5}):
        with pytest.raises(ValueError, match=r"kinds|total"):
            PlantSettings.model_validate(wrong)


def test_a_modality_that_is_most_of_the_pool_can_swap_across_only_so_often() -> None:
    modality = ["text"] * 90 + ["code"] * 10
    counts = counts_of(modality, np.zeros(100, bool), PlantSettings(kinds={Kind.SWAP_ACROSS: 1, Kind.SWAP_WITHIN: 1}))
    assert counts["code"] == {Kind.SWAP_WITHIN: 2, Kind.SWAP_ACROSS: 2}
    assert counts["text"] == {Kind.SWAP_WITHIN: 34, Kind.SWAP_ACROSS: 2}


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(0, 2**32 - 1))
def test_nobody_keeps_a_label_of_its_own(labels: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    most = max(Counter(labels).values(), default=0)
    if 2 * most > len(labels):
        with pytest.raises(UserError, match=f"{most} of {len(labels)} are alike"):
            derange(labels, labels, rng)
    else:
        source = derange(labels, labels, rng)
        assert sorted(source.tolist()) == list(range(len(labels)))
        assert all(labels[given] != own for given, own in zip(source.tolist(), labels, strict=True))


def test_what_two_modalities_have_in_common_is_traded_away() -> None:
    label = ["audio"] * 6 + ["video"] * 6
    also = [f"caption {n % 6}" for n in range(12)]
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
    found = {with_sentence("One. Two", "Three. Four.", np.random.default_rng(seed)) for seed in range(60)}
    assert found == {
        *("Three. One. Two.", "One. Three. Two.", "One. Two. Three."),
        *("Four. One. Two.", "One. Four. Two.", "One. Two. Four."),
    }


def test_near_duplicates_of_texts() -> None:
    assert nearly("code", "x = 1", np.random.default_rng(0)) == "\nx = 1\n"
    words = "one two three four five"
    changed = nearly("text", words, np.random.default_rng(0)).split()
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

    assert reopened(spoil.cropped(picture, 0.25, rng), "image").pixels.size == (40, 30)
    assert reopened(spoil.padded(picture, picture), "image").pixels.size == (320, 120)
    assert reopened(spoil.cropped(sound, 0.25, rng), "audio").duration == pytest.approx(0.25 * sound.duration, abs=1e-3)
    assert reopened(spoil.padded(sound, sound), "audio").duration == pytest.approx(2 * sound.duration, abs=1e-3)
    assert reopened(spoil.padded(film, film), "video").duration == pytest.approx(2 * film.duration, rel=0.1)
    assert reopened(spoil.cropped(film, 0.25, rng), "video").duration < 0.5 * film.duration
    with pytest.raises(TypeError, match="Image cannot be padded with Audio"):
        spoil.padded(picture, sound)

"""Operators as steps: columns by modality, each text once, failures quarantined, nothing computed twice."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from nemo_mm_rank import frames
from nemo_mm_rank.config import ExpertSpec, ModelSpec, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError, MissingColumnError, ModelError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.media.fingerprint import phash
from nemo_mm_rank.models import loader
from nemo_mm_rank.quality.operators import (
    ANNOTATION_KEY,
    DATA_KEY,
    DATACOMP,
    LANGUAGE_LABEL,
    OperatorSettings,
    agreements,
    column,
    columns,
    shared_experts,
    steps,
)
from nemo_mm_rank.quality.operators.settings import IMAGE_SCORES, TEXTS
from nemo_mm_rank.schema import DATA_PARTS, ERROR, PARTS, SOURCE_MEDIA
from tests.media_files import write_video, write_wav

LID = Path(__file__).parents[4] / "shared" / "models" / "lid.176.ftz"
HERE = "tests.quality.operators.operator_models"
MODELS = {
    "colours": parse(ModelSpec, {"class": f"{HERE}:Colours"}),
    "boxes": parse(ModelSpec, {"class": f"{HERE}:WordBoxes"}),
    "lengths": parse(ModelSpec, {"class": f"{HERE}:Lengths"}),
    "column": parse(ModelSpec, {"class": f"{HERE}:Lengths", "shape": 2}),
}
PLAIN: dict[str, Any] = {"images": [], "texts": [], "fingerprints": False}


@pytest.fixture(autouse=True)
def _fresh_models() -> Iterator[None]:
    yield
    loader.release(MODELS)


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Left half red, right half blue; the lower half green where that is said."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0], pixels[:, 30:, 2] = 250, 250
    Image.fromarray(pixels).save(tmp_path / "red-blue.png")
    pixels[20:] = (0, 250, 0)
    Image.fromarray(pixels).save(tmp_path / "over-green.png")
    Image.new("RGB", (60, 40), (9, 9, 9)).save(tmp_path / "grey.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    write_video(tmp_path, "clip.mp4", count=12, pictures=np.full((12, 48, 64, 3), (200, 0, 0), np.uint8))
    write_wav(tmp_path, (np.sin(np.arange(8000) / 5) * 9000).astype(np.int16))
    pairs = [
        ("a", "image", "red-blue.png", "A red thing."),
        ("b", "image", "over-green.png", "A red thing."),
        ("c", "image", "broken.png", "Nothing."),
        ("d", "text", "The sea is blue.", "What is blue?"),
        ("e", "video", "clip.mp4", "A film in red, red, red."),
        ("f", "audio", "a.wav", "A tone."),
        ("g", "image", "red-blue.png", " "),
        ("h", "smell", "rose", "No modality."),
        ("i", "code", "x = 1", "Assign blue to x."),
        ("j", "image", "red-blue.png", "Something blue."),
    ]
    frame = pd.DataFrame(pairs, columns=["pair_id", "modality", "data", "annotation"], index=range(5, 15))
    return frame.assign(pool="p", media_root=str(tmp_path))


def run(frame: Frame, settings: dict[str, Any], models: dict[str, ModelSpec] | None = None) -> pd.DataFrame:
    for step in steps(parse(OperatorSettings, settings), MODELS if models is None else models):
        frame = pickle.loads(pickle.dumps(step))(frame)
    out: pd.DataFrame = frame
    return out


def values(frame: pd.DataFrame, name: str) -> list[Any]:
    found: list[Any] = frames.array(frame, column(name)).to_pylist()
    return found


def live(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame["pair_id"][frame[ERROR].isna()]]


def test_what_needs_no_model_is_there_by_default(rows: pd.DataFrame) -> None:
    out = run(rows, {})
    names = [column(name) for name in (*TEXTS, *IMAGE_SCORES)]
    assert columns(steps(OperatorSettings())) == names
    assert [*rows.columns, *names[: len(TEXTS)], ERROR, *names[len(TEXTS) :], DATA_KEY, ANNOTATION_KEY] == list(
        out.columns
    )
    assert all(frames.array(out, name).type == pa.float32() for name in names)
    assert out.index.tolist() == rows.index.tolist()
    assert live(out) == ["a", "b", "d", "e", "f", "i", "j"]
    errors = out[ERROR].tolist()
    assert errors[2].startswith("quality-media: MediaError: 'broken.png': is not an image")
    assert errors[6].startswith("quality-texts: TextError")
    assert errors[7] == "quality-media: EmbeddingError: modality 'smell' is not one of text, code, image, audio, video"
    assert values(out, "words") == [3, 3, 1, 3, 6, 2, None, 2, 4, 2]
    for name in IMAGE_SCORES:
        there = [value is not None for value in values(out, name)]
        films = name != "resolution"
        assert there == [True, True, False, False, films, False, False, False, False, True], name
    assert values(out, "resolution")[:2] == [40.0, 40.0]
    assert values(out, "geometric")[0] == pytest.approx(2 / 3)


def test_fingerprints_are_of_the_data_whatever_its_annotation(rows: pd.DataFrame) -> None:
    out = run(rows, {})
    keys, texts = frames.array(out, DATA_KEY).to_pylist(), frames.array(out, ANNOTATION_KEY).to_pylist()
    assert [key is None for key in keys] == [name not in live(out) for name in out["pair_id"]]
    picture = Image.open(Path(rows["media_root"].iloc[0]) / "red-blue.png")
    assert keys[0] == keys[9] == int(phash(picture))
    assert keys[0] != keys[1]
    assert texts[0] == texts[1] != texts[9]


def test_keys_of_texts_are_of_their_words_whatever_the_white_space() -> None:
    codes = ["def f(x):\n    return  x\n", "def f(x):\n\treturn x", " def f(x): return x\r\n", "def f(x): returnx"]
    frame = pd.DataFrame({"pair_id": list("abcd"), "pool": "p", "modality": "code", "data": codes})
    out = run(frame.assign(annotation=["Says x.", " Says  x.\n", "Says\u00a0x.", "Says X."]), {})
    keys, texts = (frames.array(out, name).to_pylist() for name in (DATA_KEY, ANNOTATION_KEY))
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_agreement_mirrored_and_upside_down_with_each_text_once(rows: pd.DataFrame) -> None:
    out = run(rows, {**PLAIN, "agreement": {"clip": {"model": "colours", "mirrored": True}}})
    assert values(out, "clip")[:2] == pytest.approx([1, 1])
    assert values(out, "clip_h")[:2] == pytest.approx([0, 0])
    assert values(out, "clip_v")[:2] == pytest.approx([1, 0])
    assert (values(out, "clip")[9], values(out, "clip_h")[9]) == pytest.approx((0, 1))
    assert values(out, "clip")[4] == pytest.approx(1, abs=1e-2)
    # Nothing is said of modalities that the encoder does not take, nor of texts unless that is asked for.
    assert [value is None for value in values(out, "clip")] == [name not in "abej" for name in out["pair_id"]]
    model = loader.load("colours", MODELS["colours"].class_, {})
    assert sorted(model.texts) == ["A film in red, red, red.", "A red thing.", "Something blue."]
    assert model.pictures == 3 * 3  # two pictures and a film


def test_modalities_may_be_named(rows: pd.DataFrame) -> None:
    settings = {"agreement": {"clip": {"model": "colours", "modalities": ["text"]}}}
    out = run(rows, {**PLAIN, **settings})
    assert values(out, "clip") == [None] * 3 + [1.0] + [None] * 6
    wrong = {"agreement": {"clip": {"model": "colours", "modalities": ["audio"]}}}
    with pytest.raises(ConfigError, match="operator 'clip': model 'colours' takes image, text, video, not audio"):
        run(rows, {**PLAIN, **wrong})


def test_what_a_model_fails_on_is_quarantined(rows: pd.DataFrame) -> None:
    black = rows.assign(data=["black.png" if data == "over-green.png" else data for data in rows["data"]])
    out = run(black, {**PLAIN, "agreement": {"clip": {"model": "colours"}}})
    assert out[ERROR].iloc[1] == "quality-media: EmbeddingError: no colour"
    assert values(out, "clip")[1] is None


def test_finds_are_counted_against_the_operators_own_threshold(rows: pd.DataFrame) -> None:
    said = {
        "red-blue.png": "The red wall, the dark night, a red car.",
        "over-green.png": "The sky.",
        "grey.png": "A red wall.",
    }
    frame = rows.iloc[:3].assign(data=list(said), annotation=list(said.values()))
    out = run(frame, {**PLAIN, "grounding": {"dino": {"model": "boxes", "threshold": 0.5}}})
    assert values(out, "dino_count") == [1, 0, None]
    assert values(out, "dino_mean")[:2] == pytest.approx([250 / 255, 0])
    assert values(out, "dino_best")[:2] == pytest.approx([250 / 255, 0])
    assert values(out, "dino_coverage")[:2] == pytest.approx([2 / 3, 0])
    assert out[ERROR].iloc[2] == "quality-media: EmbeddingError: grey all over"
    out = run(frame, {**PLAIN, "grounding": {"dino": {"model": "boxes", "threshold": 0.99, "phrases": "whole"}}})
    assert values(out, "dino_count")[0] == 0
    assert values(out, "dino_best")[0] == pytest.approx(250 / 255)


def test_each_distinct_annotation_is_judged_once(rows: pd.DataFrame) -> None:
    out = run(rows, {**PLAIN, "concreteness": {"model": "lengths"}})
    assert values(out, "icc") == [float(len(text)) if text.strip() else None for text in rows["annotation"]]
    model = loader.load("lengths", MODELS["lengths"].class_, {})
    assert len(model.seen) == len(set(model.seen)) == 8
    with pytest.raises(ModelError, match=r"column returned scores of shape \(8, 1\) for 8 texts"):
        run(rows, {**PLAIN, "concreteness": {"model": "column"}})


@pytest.mark.skipif(not LID.is_file(), reason="the folder of small models is not beside the project")
def test_language(rows: pd.DataFrame) -> None:
    pytest.importorskip("fasttext", reason="needs the extra 'curator'")
    texts = ["A dog runs over the grass.", "Ein Hund läuft über das Gras.", "Un chien court dans l'herbe."]
    frame = rows.iloc[[3, 4, 5]].assign(annotation=texts)
    out = run(frame, {**PLAIN, "language": {"model": str(LID), "languages": ["en", "fr"]}})
    assert frames.strings(out, LANGUAGE_LABEL) == ["en", "de", "fr"]
    english, german, french = values(out, "language")
    assert english > 0.7
    assert german == 0
    assert french > 0.7
    # Labels are no scores.
    assert columns(steps(OperatorSettings(**PLAIN, language={"model": str(LID)}))) == [column("language")]


def test_scores_that_are_there_are_taken(rows: pd.DataFrame) -> None:
    frame = rows.assign(clip_b32_similarity_score=np.linspace(0, 0.9, 10), mine=range(10))
    frame.loc[5, "clip_b32_similarity_score"] = None
    settings = {
        **PLAIN,
        "images": ["resolution"],
        "agreement": {"clip_b32": {"model": "colours", "mirrored": True}},
        "given": {"clip_b32": DATACOMP["clip_b32"], "resolution": "mine"},
    }
    out = run(frame, settings)
    expected = np.linspace(0, 0.9, 10).astype(np.float32).tolist()
    alive = [name in live(out) and name != "a" for name in out["pair_id"]]
    assert values(out, "clip_b32") == [one if is_there else None for one, is_there in zip(expected, alive, strict=True)]
    assert values(out, "resolution")[9] == 9
    model = loader.load("colours", MODELS["colours"].class_, {})
    assert model.pictures == 3 * 2  # mirrored and upside down only
    with pytest.raises(ConfigError, match="'annotation' holds no numbers"):
        run(rows, {**PLAIN, "given": {"x": "annotation"}})
    with pytest.raises(MissingColumnError, match="quality-columns: the frame has no column 'clip'"):
        run(rows, {**PLAIN, "given": {"x": "clip"}})


def test_agreement_of_embeddings_that_are_there(rows: pd.DataFrame) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    there = torch.arange(10) != 4
    frame = frames.attach(rows, {"emb_data__words": Vectors(data, there), "emb_annotation__text": Vectors.full(texts)})
    spec = {"name": "words", "kind": "text-based", "encoder": "text", "describers": {}}
    fusion = {"name": "features", "kind": "fusion", "encoders": {"text": "text"}}
    experts = shared_experts([parse(ExpertSpec, spec), parse(ExpertSpec, fusion)])
    assert list(experts) == ["agreement_words"]
    out = run(frame, {**PLAIN, "experts": experts})
    expected = (data * texts).sum(dim=1).tolist()
    found = values(out, "agreement_words")
    assert found[4] is None
    assert [one for row, one in enumerate(found) if row != 4] == pytest.approx(
        [one for row, one in enumerate(expected) if row != 4], abs=1e-6
    )


def test_data_of_several_parts_is_judged_part_by_part(rows: pd.DataFrame) -> None:
    whole = [{"modality": "text", "data": "The sea is blue."}, {"modality": "image", "data": "red-blue.png"}]
    broken = [whole[0], {"modality": "image", "data": "broken.png"}]
    frame = rows.iloc[[0, 1, 2]].assign(modality=["text+image", "text+image", "image"], annotation="A red thing.")
    frame = frame.assign(data=["The sea is blue.\nred-blue.png", "The sea is blue.\nbroken.png", "red-blue.png"])
    frame = frames.attach(frame, {DATA_PARTS: pa.array([whole, broken, None], PARTS)})
    judge = {"model": "colours", "modalities": ["text", "image"]}
    out = run(frame, {"texts": [], "agreement": {"clip": judge}})
    assert out[ERROR].iloc[1].startswith("quality-media: MediaError: image part: 'broken.png'")
    assert values(out, "clip") == pytest.approx([0.5, None, 1.0])  # of the text it is 0
    for name in IMAGE_SCORES:
        assert values(out, name)[0] == values(out, name)[2]
    keys = frames.array(out, DATA_KEY).to_pylist()
    assert keys[0] != keys[2]
    assert keys[1] is None
    again = run(frame.iloc[[0]].assign(annotation="Another."), {"texts": []})
    assert frames.array(again, DATA_KEY).to_pylist() == keys[:1]


def test_norms_of_words_and_what_their_file_holds(rows: pd.DataFrame, tmp_path: Path) -> None:
    norms = tmp_path / "norms.csv"
    norms.write_text("word,rating\nthing,4\nblue,2\n", encoding="utf-8")
    settings = {**PLAIN, "concreteness": {"norms": str(norms)}}
    assert values(run(rows, settings), "concreteness")[:4] == [4, 4, None, 2]
    (step,) = steps(parse(OperatorSettings, settings))
    before = step.identity()
    norms.write_text("word,rating\nthing,1\n", encoding="utf-8")
    assert step.identity() != before


def test_meta_is_what_comes_out(rows: pd.DataFrame) -> None:
    settings = parse(OperatorSettings, {"agreement": {"clip": {"model": "colours"}}})
    frame = rows
    for step in steps(settings, MODELS):
        meta, frame = step.meta(frame), step(frame)
        assert meta.dtypes.to_dict() == frame.dtypes.to_dict()


def test_columns_that_decide_between_duplicates_in_their_order() -> None:
    settings = {
        "agreement": {"clip": {"model": "colours", "mirrored": True}},
        "given": {"agreement_score": "agreement_score", "mine": "mine", "clip_l14": DATACOMP["clip_l14"]},
        "experts": {"agreement_words": {"expert": "words", "model": "text"}},
    }
    names = ["agreement_score", "clip_l14", "clip", "agreement_words"]
    assert agreements(parse(OperatorSettings, settings)) == [column(name) for name in names]


def test_a_model_that_is_not_there_is_named() -> None:
    settings = parse(OperatorSettings, {"agreement": {"clip": {"model": "colour"}}})
    with pytest.raises(ConfigError, match="operators: 'clip': there is no model 'colour'; did you mean 'colours'"):
        steps(settings, MODELS)
    with pytest.raises(ConfigError, match="images"):
        parse(OperatorSettings, {"images": ["blury"]})


def test_fingerprints_of_steps_follow_settings_and_models() -> None:
    def identity(**changes: Any) -> str:
        return json.dumps([step.identity() for step in steps(parse(OperatorSettings, changes), MODELS)])

    seen = {
        identity(),
        identity(images=["blurry"]),
        identity(texts=["words"]),
        identity(agreement={"clip": {"model": "colours"}}),
        identity(agreement={"clip": {"model": "colours", "mirrored": True}}),
        identity(grounding={"dino": {"model": "boxes"}}),
        identity(grounding={"dino": {"model": "boxes", "threshold": 0.2}}),
        identity(concreteness={"model": "lengths"}),
        identity(given={"clip": "clip_b32_similarity_score"}),
        identity(fingerprints=False),
    }
    assert len(seen) == 10
    assert identity() == identity()


def test_the_demo_pool_whole_and_in_parts(tmp_path: Path) -> None:
    manifest = make_demo_pool(tmp_path, pairs_per_modality=4)
    pool = pd.read_json(manifest, lines=True).assign(media_root=str(tmp_path))
    whole = run(pool, {})
    parts = pd.concat([run(pool.iloc[start::3], {}) for start in range(3)]).sort_index()
    for name in [*columns(steps(OperatorSettings())), DATA_KEY, ERROR]:
        assert frames.array(whole, name).to_pylist() == frames.array(parts, name).to_pylist(), name
    failed = whole[whole[ERROR].notna()]
    assert sorted(failed["pair_id"]) == ["bad-corrupt", "bad-empty", "bad-missing"]
    again = whole["pair_id"].duplicated(keep=False)
    assert whole.loc[again, DATA_KEY].nunique() == 1


RED = {"class": f"{HERE}:Redness"}
RAISED = "operator 'red' failed with ValueError: no word for blue"


def test_an_operator_of_one_s_own(rows: pd.DataFrame) -> None:
    settings: dict[str, Any] = {**PLAIN, "own": {"red": RED, "twice": {**RED, "times": 2}}}
    out = run(rows, settings, {})
    red = values(out, "red")
    assert [None if one is None else round(one, 2) for one in red] == [0.5, 0.25, *[None] * 2, 0.8, *[None] * 5]
    assert values(out, "twice") == [None if one is None else pytest.approx(2 * one) for one in red]
    assert out[ERROR].tolist()[2].startswith("quality-media: MediaError")
    assert columns(steps(parse(OperatorSettings, settings))) == [column("red"), column("twice")]
    whole = frames.to_table(out[[column("red")]])
    for place in range(len(rows)):
        assert frames.to_table(run(rows.iloc[[place]], settings, {})[[column("red")]]).equals(whole.slice(place, 1))
    (step,) = steps(parse(OperatorSettings, {**PLAIN, "own": {"red": RED}}))
    (other,) = steps(parse(OperatorSettings, {**PLAIN, "own": {"red": {**RED, "revision": "2"}}}))
    assert step.identity() != other.identity()
    (given,) = steps(parse(OperatorSettings, {**PLAIN, "own": {"red": RED}, "given": {"red": "r"}}))
    assert given.name != step.name


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({**RED, "shape": 2}, r"operator 'red' returned scores of shape \(\d, 1\) for \d items"),
        ({**RED, "tims": 2}, "takes no 'tims'; did you mean 'times'"),
        ({**RED, "times": "much"}, "operator 'red' failed with TypeError: can't multiply sequence"),
        ({"class": f"{HERE}:Lengths"}, "cannot be used as pairscorer: it lacks modalities"),
        ({"class": f"{HERE}:Blueness"}, "has no class 'Blueness'"),
    ],
)
def test_what_is_no_operator(rows: pd.DataFrame, spec: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=said):
        run(rows, {**PLAIN, "own": {"red": spec}}, {})


def test_what_an_operator_raises_for_one_pair_is_the_reason_of_that_pair(rows: pd.DataFrame) -> None:
    out = run(rows, {**PLAIN, "own": {"red": {"class": f"{HERE}:Brittle"}}}, {})
    assert out["pair_id"][[RAISED in str(error) for error in out[ERROR]]].tolist() == ["j"]
    red = values(out, "red")
    assert [None if one is None else round(one, 2) for one in red] == [0.5, 0.25, *[None] * 2, 0.8, *[None] * 5]


def test_an_operator_of_one_s_own_has_a_name_of_its_own() -> None:
    with pytest.raises(ConfigError, match="own: 'dark' is the name of another operator"):
        parse(OperatorSettings, {"own": {"dark": RED}})


def test_several_pictures_are_all_judged(rows: pd.DataFrame) -> None:
    """Scores are the mean of those beside each picture; keys tell pairs by all of them."""
    same = rows.iloc[[0, 0, 0, 0, 1, 0]].assign(pair_id=list("uvwxyz")).reset_index(drop=True)
    names = [
        ["red-blue", "over-green"],
        ["over-green", "red-blue"],
        ["red-blue"] * 2,
        ["red-blue", "broken"],
        None,
        None,
    ]
    listed = [[{"modality": "image", "data": f"{name}.png"} for name in own] if own else None for own in names]
    out = run(frames.attach(same, {SOURCE_MEDIA: pa.array(listed, PARTS)}), {})
    assert live(out) == ["u", "v", "w", "y", "z"]
    assert "'broken.png': is not an image" in out[ERROR][3]
    for name in IMAGE_SCORES:
        both, other, twice, _, green, red = values(out, name)
        assert both == other == pytest.approx((green + red) / 2, abs=1e-6)
        assert twice == pytest.approx(red, abs=1e-6)
    keys = frames.array(out, DATA_KEY).to_pylist()
    assert len({*keys[:3], *keys[4:]}) == 5

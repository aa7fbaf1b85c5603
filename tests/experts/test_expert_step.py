from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from nemo_mm_rank import frames
from nemo_mm_rank.config import ExpertSpec, ModelSpec, parse
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.experts import ExpertStep, build
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.expert import has_text, sources
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, SPANS

MODELS = {
    "text": parse(ModelSpec, {"class": "hashed-text", "dim": 64}),
    "words": parse(ModelSpec, {"class": "plain-words"}),
    "image": parse(ModelSpec, {"class": "image-features"}),
    "broken": parse(ModelSpec, {"class": "tests.experts.models:NaNForRed"}),
}
WORDS = parse(ExpertSpec, {"name": "words", "kind": "text-based", "encoder": "text", "describers": {"image": "words"}})
FEATURES = parse(ExpertSpec, {"name": "features", "kind": "fusion", "encoders": {"text": "text", "image": "image"}})


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    Image.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "red.png")
    Image.new("RGB", (64, 48), (30, 60, 230)).save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pairs = [
        ("a", "text", "The sea is blue.", "What is blue?"),
        ("b", "image", "red.png", "A red square."),
        ("c", "image", "broken.png", "Nothing."),
        ("d", "image", "blue.png", "A blue square."),
        ("e", "video", "x.mp4", "No expert takes it."),
        ("f", "image", "red.png", "Red again."),
        ("g", "smell", "rose", "No modality."),
    ]
    frame = pd.DataFrame(pairs, columns=["pair_id", "modality", "data", "annotation"])
    return frame.assign(pool="p", media_root=str(tmp_path))


def step(*experts: ExpertSpec) -> ExpertStep:
    return ExpertStep(experts, MODELS, anchor="text")


def test_columns_by_expert_and_model() -> None:
    assert list(step(WORDS, FEATURES).provides) == [
        "emb_data__words",
        "emb_data__features__text",
        "emb_data__features__image",
        "emb_annotation__text",
        "description__words",
    ]


def test_every_pair_is_embedded_or_says_why_not(rows: pd.DataFrame) -> None:
    out = step(WORDS, FEATURES)(rows)
    assert frames.strings(out, ERROR) == [
        None,
        None,
        "experts: MediaError: 'broken.png': is not an image in a known format "
        "(JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, JPEG2000, PPM, QOI)",
        None,
        "experts: EmbeddingError: no expert takes video",
        None,
        "experts: EmbeddingError: modality 'smell' is not one of text, code, image, audio, video",
    ]
    valid = {name: frames.vectors(out, name).valid.tolist() for name in out.columns if name.startswith("emb_")}
    assert valid == {
        "emb_data__words": [True, True, False, True, False, True, False],
        "emb_data__features__text": [True, False, False, False, False, False, False],
        "emb_data__features__image": [False, True, False, True, False, True, False],
        "emb_annotation__text": [True, True, False, True, False, True, False],
    }
    described = frames.strings(out, "description__words")
    assert described[0] is None
    assert described[1] == described[5]
    assert "red" in str(described[1])
    assert "blue" in str(described[3])


def test_vectors_do_not_depend_on_the_rows_beside_them(rows: pd.DataFrame) -> None:
    together = step(WORDS, FEATURES)(rows)
    loader.release()
    for row in (0, 1, 3):
        alone = step(WORDS, FEATURES)(rows.iloc[[row]])
        for name in ("emb_data__words", "emb_data__features__image", "emb_annotation__text"):
            one, all_ = frames.vectors(alone, name), frames.vectors(together, name)
            assert one.valid.tolist() == [all_.valid[row].item()]
            if one.valid.item():
                assert torch.equal(one.values[0], all_.values[row])


def test_only_what_was_kept_is_embedded(rows: pd.DataFrame) -> None:
    import pyarrow as pa

    texts = rows.iloc[[0]].assign(data="The sea is blue. Buy now!", annotation="What is blue? Call us!")
    spans: dict[str, Any] = {
        DATA_SPANS: pa.array([[[0.0, 16.0]]], SPANS),
        ANNOTATION_SPANS: pa.array([[[0.0, 13.0]]], SPANS),
    }
    trimmed = step(WORDS)(frames.attach(texts, spans))
    original = step(WORDS)(rows.iloc[[0]])
    for name in ("emb_data__words", "emb_annotation__text"):
        assert torch.equal(frames.vectors(trimmed, name).values, frames.vectors(original, name).values)


def test_nan_from_a_model_quarantines_the_pair_alone(rows: pd.DataFrame) -> None:
    spec = parse(ExpertSpec, {"name": "broken", "kind": "end-to-end", "encoder": "broken"})
    out = step(spec)(rows.iloc[[1, 3]])
    assert frames.strings(out, ERROR) == [
        "experts: EmbeddingError: broken gave a vector that is not finite, or zero",
        None,
    ]
    assert frames.vectors(out, "emb_data__broken").valid.tolist() == [False, True]


def test_an_expert_knows_its_text_space() -> None:
    words, features = build(WORDS, MODELS), build(FEATURES, MODELS)
    assert words.text_encoder is not None
    assert features.text_encoder is None
    assert words.encoder("video") is None
    assert features.column("image") == "emb_data__features__image"
    assert [source.model for source in sources(FEATURES)] == ["text", "image"]
    assert has_text("text", MODELS)
    assert not has_text("image", MODELS)


def test_a_model_that_does_not_take_the_modality_is_refused() -> None:
    wrong = parse(ExpertSpec, {"name": "x", "kind": "fusion", "encoders": {"audio": "image"}})
    with pytest.raises(ConfigError, match="expert 'x': model 'image' takes image, not 'audio'"):
        build(wrong, MODELS)


def test_empty_frames_pass(rows: pd.DataFrame) -> None:
    out: Frame = step(WORDS)(rows.iloc[:0])
    assert len(out) == 0
    assert list(out.columns)[-2:] == ["description__words", ERROR]

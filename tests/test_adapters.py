"""Small real models by import path, as a user names their own, on real pictures, sounds and videos."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import told, usable

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODELS, POOL = SHARED / "models", SHARED / "data" / "real_pool"

pytestmark = pytest.mark.skipif(
    not (MODELS.is_dir() and POOL.is_dir()), reason="needs the real models and data in ../shared"
)


@lru_cache
def rows(modality: str) -> list[dict[str, str]]:
    with (POOL / "pool.jsonl").open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["modality"] == modality]


@lru_cache
def opened(modality: str, n: int) -> list[Item]:
    return [Opener(root=str(POOL)).open(row["data"], modality) for row in rows(modality)[:n]]


def load(name: str) -> Any:
    return loader.load(name, f"tests.adapters:{name}", {"folder": str(MODELS)})


def test_pictures_get_labels_that_fit() -> None:
    model = loader.as_describer("words", load("MobileNetWords"))
    items = opened("image", 3)
    described = told(model.describe(items, "image"), model.name, 3)
    assert not described.errors
    assert all(text is not None and text.count(",") == 4 for text in described.texts)
    assert model.describe(items[::-1], "image").texts == described.texts[::-1]


def test_sounds_get_the_word_of_their_label() -> None:
    model = loader.as_describer("words", load("YamnetWords"))
    esc50 = [i for i, row in enumerate(rows("audio")) if row["pool"] == "esc50"][:20]
    labels = [rows("audio")[i]["annotation"].removeprefix("The sound of ").strip(".").split()[-1][:4] for i in esc50]
    texts = model.describe([opened("audio", 40)[i] for i in esc50], "audio").texts
    assert sum(label in (text or "").lower() for label, text in zip(labels, texts, strict=True)) >= 12


@pytest.mark.parametrize(
    ("name", "modality", "dim"),
    [("MobileNetFeatures", "image", 1024), ("MobileNetFeatures", "video", 1024), ("YamnetFeatures", "audio", 521)],
)
def test_features_are_the_same_bytes_in_every_batch(name: str, modality: str, dim: int) -> None:
    model = loader.as_encoder(name, load(name))
    items = opened(modality, 3)
    encoded = usable(model.encode(items, modality), model, 3)
    assert not encoded.errors
    assert encoded.vectors.shape == (3, dim)
    assert torch.equal(model.encode(items[2:], modality).vectors[0], encoded.vectors[2])
    assert model.encode([], modality).vectors.shape == (0, dim)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        loader.load("m", "tests.adapters:MobileNetWords", {"folder": str(tmp_path)})
    with pytest.raises(ModelError, match="16000 samples per second, not 8000"):
        load("YamnetWords").describe([Audio("a", np.ones(9, np.float32), 8000)], "audio")
    short = load("YamnetWords").describe([Audio("a", np.ones(9, np.float32), 16000)], "audio")
    assert short.texts[0]

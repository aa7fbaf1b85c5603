"""DataComp's baselines, each bound on both of its sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from nemo_mm_rank import frames
from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.quality.operators import DataCompStep, OperatorSettings, datacomp
from nemo_mm_rank.quality.operators.datacomp import read_centroids
from nemo_mm_rank.quality.operators.settings import DataCompSettings

CAPTION = "a small dog"


def kept(language: str = "en", text: str = CAPTION, width: int = 640, height: int = 480) -> bool:
    return bool(datacomp.basic([language], [text], np.array([width]), np.array([height]))[0])


def test_basic() -> None:
    assert kept()
    assert not kept(language="de")
    assert not kept(text="two words")
    assert not kept(text="a b c")  # five characters
    assert kept(text="a b cd")
    assert kept(width=200, height=200)
    assert not kept(width=199, height=400)
    assert kept(width=600, height=200)
    assert not kept(width=601, height=200)
    assert not kept(width=200, height=601)


def test_a_clip_score_at_the_threshold_is_kept_and_none_is_not() -> None:
    scores = np.array([0.1, 0.5, 0.3, 0.3, 0.2, np.nan, 0.4, 0.0, 0.25, 0.35])
    assert datacomp.clip_score(scores, 0.3).sum() == 5
    assert not datacomp.clip_score(scores, -1.0)[5]


def test_laion2b() -> None:
    scores = np.array([0.28, 0.2799, 0.9, np.nan])
    assert datacomp.laion2b(["en", "en", "fr", "en"], scores).tolist() == [True, False, False, False]


def test_image_based_asks_for_the_nearest_centroid() -> None:
    centroids = torch.eye(3)
    features = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.3], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    texts = [CAPTION, CAPTION, CAPTION, "onewordonly", CAPTION]
    languages = ["en", "en", "en", "en", None]
    found = datacomp.image_based(languages, texts, features, centroids, np.array([0, 2]))
    assert found.tolist() == [True, False, True, False, False]


def test_nearest_centroids_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    features, centroids = torch.randn(9000, 8, generator=generator), torch.randn(50, 8, generator=generator)
    expected = (features.double() @ centroids.double().T).argmax(dim=1).numpy()
    assert (datacomp.nearest_centroids(features, centroids) == expected).mean() > 0.999
    assert datacomp.nearest_centroids(features[:0], centroids).shape == (0,)


def test_words_are_those_of_fasttext() -> None:
    # A line end is a word of its own there, and spaces of other scripts part nothing.
    assert datacomp.fasttext_words(["a b", "one\ntwo\n", "", "x\u2003y"]).tolist() == [2, 4, 0, 1]


def test_as_operators(tmp_path: Path) -> None:
    save_file({"centroids": torch.eye(3), "targets": torch.tensor([0, 2])}, tmp_path / "centroids.safetensors")
    settings = {
        "basic": True,
        "clip_score": {"operator": "clip_l14", "threshold": 0.3},
        "laion2b": "clip_b32",
        "image_based": {"centroids": str(tmp_path / "centroids.safetensors"), "features": "emb_data__clip"},
    }
    step = DataCompStep(parse(DataCompSettings, settings))
    features = torch.nn.functional.normalize(torch.tensor([[3.0, 1, 0], [0, 1, 0], [0, 1, 3], [0, 0, 1.0]]), dim=1)
    rows = pd.DataFrame(
        {
            "modality": ["image", "image", "image", "video"],
            "annotation": [CAPTION, CAPTION, "Hund", CAPTION],
            "quality__language_label": ["en", "en", "de", "en"],
            "quality__clip_b32": pd.array([0.28, 0.3, 0.4, None], dtype="Float32"),
            "quality__clip_l14": [0.3, 0.29, 0.9, 0.9],
            "quality__resolution": [200.0, 200.0, 200.0, None],
            "quality__geometric": np.array([200 / 600, 200 / 601, 1, 1], dtype=np.float32),
        }
    )
    with_features = frames.attach(rows, {"emb_data__clip": Vectors(features, torch.tensor([True, True, True, False]))})
    out = step(with_features)
    found = {name: frames.array(out, name).to_pylist() for name in step.provides}
    assert found == {
        "quality__datacomp_basic": [1, 0, 0, None],
        "quality__datacomp_clip_score": [1, 0, 1, None],
        "quality__datacomp_laion2b": [1, 1, 0, None],
        "quality__datacomp_image_based": [1, 0, 0, None],
    }
    # The sizes of the original pictures count where a table has them.
    sized = step(with_features.assign(original_width=[800, 640, 640, 640], original_height=[200, 480, 480, 480]))
    assert frames.array(sized, "quality__datacomp_basic").to_pylist() == [0, 1, 0, None]
    with pytest.raises(ConfigError, match=r"basic: needs original_width .* or the operators resolution and geometric"):
        step(with_features.drop(columns="quality__resolution"))


def test_what_they_need_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ask for English"):
        parse(OperatorSettings, {"datacomp": {"basic": True}})
    (tmp_path / "no.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no\.safetensors"):
        read_centroids(str(tmp_path / "no.safetensors"))

"""How much an annotation needs its data, against the library's own loss, by a tiny model of a real class."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.media.segment import Image
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.dependency import VisualDependency
from nemo_mm_rank.quality.operators.media import OwnOperator
from tests.models import tiny_writers

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

ASKED = "What is here?"


def picture(seed: int, size: int = 56) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image(str(seed), PILImage.fromarray(pixels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> VisualDependency:
    found: VisualDependency = loader.load("needs", "visual-dependency", {"path": str(folder), "prompt": ASKED})
    return found


def by_library(folder: Path, item: Image | None, text: str) -> float:
    """Return the model's own loss of an answer."""
    model = importlib.import_module("transformers").AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    shown = [] if item is None else [{"type": "image", "image": item.pixels}]
    asked = [{"role": "user", "content": [*shown, {"type": "text", "text": ASKED}]}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = dict(processor.apply_chat_template(asked, **options))
    answer = torch.tensor([processor.tokenizer(text, add_special_tokens=False)["input_ids"]])
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], dim=1)
    for name, value in (("input_ids", answer), ("attention_mask", torch.ones_like(answer))):
        inputs[name] = torch.cat([inputs[name], value], dim=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, answer.shape[1]))
    with torch.inference_mode():
        return float(model(**inputs, labels=labels).loss)


def test_it_is_the_loss_that_the_data_saves(folder: Path, scorer: VisualDependency) -> None:
    items, texts = [picture(0), picture(1, 84), picture(2)], ["A red dog.", "Nothing at all", ""]
    found = scorer.score(items, texts, "image")
    assert np.isnan(found).tolist() == [False, False, True]
    for row in range(2):
        expected = by_library(folder, None, texts[row]) - by_library(folder, items[row], texts[row])
        assert found[row] == pytest.approx(expected, abs=1e-4)
        assert abs(found[row]) > 1e-3
    alone = [scorer.score([item], [text], "image")[0] for item, text in zip(items, texts, strict=True)]
    np.testing.assert_array_equal(alone, found)


def test_another_picture_is_another_score(scorer: VisualDependency) -> None:
    one, other = scorer.score([picture(3), picture(4)], ["A red dog."] * 2, "image")
    assert one != other


def test_it_is_an_operator(folder: Path, scorer: VisualDependency) -> None:
    spec = ModelSpec.model_validate({"class": "visual-dependency", "path": str(folder), "prompt": ASKED})
    operator = OwnOperator("needs", spec)
    operator.setup("cpu")
    assert operator.takes("image")
    assert not operator.takes("audio")
    judged = operator.judge([picture(0)], ["A red dog."], "image").columns["quality__needs"]
    assert judged.to_pylist() == scorer.score([picture(0)], ["A red dog."], "image").tolist()


def test_what_is_refused(folder: Path, scorer: VisualDependency) -> None:
    with pytest.raises(ModelError, match="longest is at least 1"):
        VisualDependency(str(folder), longest=0)
    with pytest.raises(ModelError, match="text"):
        scorer.score([picture(0)], ["x"], "text")

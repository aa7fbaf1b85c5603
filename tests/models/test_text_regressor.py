"""A rating of texts by a tiny model of the real class, against the library's own pass over each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.text_regressor import TextRegressor
from tests.models.tiny_library import library, make_tokenizer
from tests.models.tiny_writers import decided

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

TEXTS = ["a cat", "", "dog", "a cat and a dog and a car " * 12, "a cat and a dog", "a"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "and", "car"]


def regressor(folder: Path, outputs: int = 1) -> Path:
    models = library()
    tokenizer = make_tokenizer("BertTokenizer", {word: row for row, word in enumerate(WORDS)})
    tokenizer.model_max_length = 48
    config = models.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        num_labels=outputs,
    )
    decided(models.BertForSequenceClassification(config), std=0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regressor(tmp_path_factory.mktemp("icc"))


def test_ratings_are_the_librarys_whatever_stands_beside(folder: Path) -> None:
    loaded: TextRegressor = loader.load("icc", "text-regressor", {"path": str(folder)})
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            features = tokenizer([text], truncation=True, max_length=48, return_tensors="pt")
            expected.append(float(model(**features).logits[0, 0]))
    together = loaded.score(TEXTS)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    assert np.ptp(together) > 0.1
    assert together.tolist() == [loaded.score([text])[0] for text in TEXTS]
    assert loaded.score([]).shape == (0,)
    assert loaded.name == "icc"
    assert loaded.revision == TextRegressor.revision_of(str(folder))


def test_a_model_of_several_outputs_rates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 2 outputs, and a rating needs exactly one"):
        TextRegressor(str(regressor(tmp_path, outputs=2)))

"""The weakest sentence: the least cosine of any, each sentence by itself, null without an embedding."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nemo_mm_rank.config import CLASSICAL_MODELS, ModelSpec, parse
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.quality.operators import OperatorSettings, SentenceStep, steps
from nemo_mm_rank.schema import Modality

TEXT: dict[str, ModelSpec] = {"text": CLASSICAL_MODELS["text"]}
SETTINGS = parse(OperatorSettings, {"weakest": {"weakest_words": {"expert": "words", "model": "text"}}})

DATA = "A dog runs over the beach beside the sea."
ANNOTATIONS = [
    "A dog runs on the beach.",
    "A dog runs on the beach. The invoice is due at the end of the month.",
    "The invoice is due at the end of the month.",
    "A dog runs on the beach. A dog runs on the beach.",
    "A dog.",
]


def embed(texts: list[str]) -> np.ndarray:
    vectors: np.ndarray = load_encoder("text", TEXT).encode(texts, Modality.TEXT).vectors.numpy()
    return vectors


def frame(annotations: list[str | None]) -> pd.DataFrame:
    vectors: list[list[float] | None] = [embed([DATA])[0].tolist()] * len(annotations)
    vectors[-1] = None
    column = pd.arrays.ArrowExtensionArray(pa.chunked_array([pa.array(vectors, pa.list_(pa.float32()))]))
    return pd.DataFrame({"annotation": annotations, "emb_data__words": column})


def step() -> SentenceStep:
    [found] = [one for one in steps(SETTINGS, TEXT) if isinstance(one, SentenceStep)]
    return found


def test_it_is_the_least_cosine_of_any_sentence() -> None:
    scores = step()(frame([*ANNOTATIONS]))["quality__weakest_words"].to_numpy(dtype=float, na_value=np.nan)
    data, dog, invoice = embed([DATA, "A dog runs on the beach.", "The invoice is due at the end of the month."])
    expected = [data @ dog, min(data @ dog, data @ invoice), data @ invoice, data @ dog, np.nan]
    np.testing.assert_allclose(scores, np.array(expected), atol=1e-6)
    assert scores[1] == scores[2] < scores[0]


def test_neighbours_change_nothing() -> None:
    whole = step()(frame([*ANNOTATIONS, "x"]))["quality__weakest_words"].tolist()
    alone = [step()(frame([one, "x"]))["quality__weakest_words"].tolist()[0] for one in ANNOTATIONS]
    assert whole[: len(alone)] == alone


def test_a_pair_without_a_text_is_told() -> None:
    found = step()(frame(["A dog.", None, "x"]))
    assert found["error"].tolist()[1].startswith("quality-sentences: TextError")
    assert found["quality__weakest_words"].isna().tolist() == [False, True, True]


def test_it_travels_and_is_known_by_its_model() -> None:
    used = step()
    used.setup()
    other = pickle.loads(pickle.dumps(used))
    assert other.identity() == used.identity()
    assert set(used.identity()["models"]) == {"text"}
    with pytest.raises(ConfigError, match="'weakest_words': there is no model 'text'"):
        steps(SETTINGS, {})

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from nemo_mm_rank.errors import ConfigError, EmbeddingError, ModelError
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Described, Encoded, Encoder, support, told, usable
from tests.models.own_models import LetterCounts, NotQuite

OWN = "tests.models.own_models:"


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    loader.release()


def test_a_users_own_class_loads_by_import_path_with_its_arguments_once() -> None:
    model = loader.load("mine", OWN + "LetterCounts", {"alphabet": "xyz"})
    assert (type(model).__name__, model.name, model.dim) == ("LetterCounts", "mine", 3)
    assert loader.load("mine", OWN + "LetterCounts", {"alphabet": "xyz"}) is model
    assert loader.load("mine", OWN + "LetterCounts", {"alphabet": "xy"}) is not model
    encoder: Encoder = loader.as_encoder("mine", model)
    assert encoder.encode(["xx"], "text").vectors.tolist() == [[1.0, 0.0, 0.0]]


def test_a_model_in_two_roles_is_wrapped_for_each_of_them_and_loaded_once() -> None:
    def listed(name: str, model: Any) -> list[Any]:
        return [name, model]

    def paired(name: str, model: Any) -> tuple[str, Any]:
        return name, model

    load = partial(loader.load, "mine", OWN + "LetterCounts", {})
    first, second = load(wrap=listed), load(wrap=paired)
    assert first == ["mine", load()]
    assert second == ("mine", load())
    assert load(wrap=listed) is first
    assert load(wrap=paired) is second


@pytest.mark.parametrize("short", sorted(loader.SHORT_NAMES))
def test_every_short_name_leads_to_a_class_that_says_what_it_takes(short: str) -> None:
    found = loader.find_class(short)
    assert isinstance(found.modalities, frozenset)
    assert found.modalities


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("hashed-txt", {}, "did you mean 'hashed-text'"),
        ("nowhere.at.all:Thing", {}, "cannot import 'nowhere.at.all'"),
        (OWN + "LetterCount", {}, "did you mean 'LetterCounts'"),
        (OWN + "LetterCounts", {"alphabets": "x"}, "takes no 'alphabets'; did you mean 'alphabet'"),
        ("sentence-transformers", {}, "needs 'path'"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loader.load("m", name, arguments)


def test_what_a_class_itself_raises_is_one_model_error() -> None:
    with pytest.raises(
        ModelError,
        match=r"^model 'm' \(tests.models.own_models:NotQuite\) cannot be loaded: too "
        r"strong$",
    ):
        loader.load("m", OWN + "NotQuite", {"strength": 10})


def test_what_a_model_lacks_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"'m' \(NotQuite\) cannot be used as encoder: it lacks revision, modalities, encode\(\)"
    ):
        loader.as_encoder("m", NotQuite())
    with pytest.raises(ModelError, match=r"cannot be used as describer: it lacks describe\(\)$"):
        loader.as_describer("m", LetterCounts())
    with pytest.raises(ModelError, match=r"cannot be used as grounder: it lacks ground\(\)$"):
        loader.as_grounder("m", LetterCounts())
    with pytest.raises(ModelError, match="letters takes code, text, not image"):
        support(LetterCounts(), "image")


def test_a_vector_that_is_not_finite_or_zero_fails_alone() -> None:
    vectors = torch.tensor([[1.0, 0, 0], [math.nan, 0, 0], [math.inf, 0, 0], [0, 0, 0], [0, 0.6, 0.8]])
    checked = usable(Encoded(vectors), LetterCounts(alphabet="abc"), 5)
    assert sorted(checked.errors) == [1, 2, 3]
    assert all(isinstance(error, EmbeddingError) for error in checked.errors.values())
    assert checked.vectors[[1, 2, 3]].isnan().all()
    assert torch.equal(checked.vectors[[0, 4]], vectors[[0, 4]])


def test_the_models_own_reason_stands() -> None:
    own = EmbeddingError("mine")
    checked = usable(Encoded(torch.tensor([[math.nan] * 3]), {0: own}), LetterCounts(alphabet="abc"), 1)
    assert checked.errors == {0: own}


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (Encoded(torch.eye(3)[:2]), r"returned \(2, 3\) for 3 items, not \(3, 3\)"),
        (Encoded(torch.eye(4)[:3]), r"returned \(3, 4\) for 3 items"),
        (Encoded(torch.ones(3)), r"returned \(3,\)"),
        (Encoded(torch.eye(3, dtype=torch.float64)), "torch.float64, not torch.float32"),
        (Encoded(2 * torch.eye(3)), "a vector of length 2"),
        (Encoded(torch.eye(3), texts=["a"]), "1 texts for 3 items"),
        (Encoded(torch.eye(3), {3: EmbeddingError("x")}), r"errors for rows \[3\] of 3 items"),
    ],
)
def test_what_is_wrong_with_a_batch_is_wrong_with_the_model(encoded: Encoded, said: str) -> None:
    with pytest.raises(ModelError, match=f"letters .*{said}"):
        usable(encoded, LetterCounts(alphabet="abc"), 3)


def test_descriptions_are_checked_too() -> None:
    checked = told(Described(["a dog", " ", None]), "d", 3)
    assert sorted(checked.errors) == [1, 2]
    with pytest.raises(ModelError, match="d returned 1 texts for 2 items"):
        told(Described(["a dog"]), "d", 2)

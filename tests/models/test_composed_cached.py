from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Image, Item
from nemo_mm_rank.models.base import Described, Encoded, encode_queries
from nemo_mm_rank.models.expert import CachedDescriber, CachedEncoder, DescribedEncoder, item_key
from tests.models.own_models import LetterCounts, SizeWords


def image(width: int) -> Image:
    return Image(f"picture {width}", PILImage.new("RGB", (width, 1)))


class Asking(LetterCounts):
    """Embeds queries in another way."""

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        return self.encode([f"query {text}" for text in texts], "text")


def test_media_are_described_and_the_words_embedded() -> None:
    letters = LetterCounts()
    composed = DescribedEncoder({"image": SizeWords()}, letters)
    encoded = composed.encode([image(2), image(1), image(3)], "image")
    assert encoded.texts == ["tiny", None, "small"]
    assert list(encoded.errors) == [1]
    assert isinstance(encoded.errors[1], EmbeddingError)
    assert encoded.vectors[1].isnan().all()
    assert torch.equal(encoded.vectors[[0, 2]], letters.encode(["tiny", "small"], "text").vectors)
    assert composed.modalities == {"text", "code", "image"}
    assert (composed.name, composed.revision, composed.dim) == ("sizes+letters", "sizes@7 letters@1", 26)


def test_text_passes_through_as_the_same_bytes() -> None:
    composed = DescribedEncoder({"image": SizeWords()}, LetterCounts(), name="mine")
    assert torch.equal(composed.encode(["a b"], "code").vectors, LetterCounts().encode(["a b"], "code").vectors)
    assert composed.encode(["a b"], "text").texts is None
    assert composed.name == "mine"


def test_words_that_cannot_be_embedded_fail_their_picture() -> None:
    composed = DescribedEncoder({"image": SizeWords()}, LetterCounts(alphabet="y"))
    encoded = composed.encode([image(3), image(2)], "image")
    assert {row: str(error) for row, error in encoded.errors.items()} == {0: "no letters in 'small'"}
    assert encoded.texts == ["small", "tiny"]
    assert encoded.vectors[0].isnan().all()


def test_parts_must_fit() -> None:
    with pytest.raises(ModelError, match="sizes takes image, not audio"):
        DescribedEncoder({"audio": SizeWords()}, LetterCounts())
    with pytest.raises(ModelError, match="not video"):
        DescribedEncoder({"image": SizeWords()}, LetterCounts()).encode([], "video")


def test_queries_take_the_way_that_is_theirs() -> None:
    plain, asking = LetterCounts(), Asking()
    expected = plain.encode(["query cat"], "text").vectors
    assert torch.equal(encode_queries(plain, ["cat"]).vectors, plain.encode(["cat"], "text").vectors)
    assert torch.equal(encode_queries(asking, ["cat"]).vectors, expected)
    wrapped = CachedEncoder(DescribedEncoder({"image": SizeWords()}, CachedEncoder(asking)))
    assert torch.equal(wrapped.encode(["cat"], "text").vectors, plain.encode(["cat"], "text").vectors)
    assert torch.equal(encode_queries(wrapped, ["cat"]).vectors, expected)


@given(
    st.lists(st.lists(st.sampled_from(["ab", "b", "ccc", "7", "", "dx"]), max_size=8), max_size=6), st.integers(0, 4)
)
def test_a_cache_changes_nothing_and_asks_once(calls: list[list[str]], max_items: int) -> None:
    inner, plain = LetterCounts(), LetterCounts()
    cached = CachedEncoder(inner, max_items)
    for texts in calls:
        got, expected = cached.encode(texts, "text"), plain.encode(texts, "text")
        assert got.vectors.numpy().tobytes() == expected.vectors.numpy().tobytes()
        assert {row: str(e) for row, e in got.errors.items()} == {row: str(e) for row, e in expected.errors.items()}
        assert len(cached._recent) <= max_items
    for asked in inner.calls:
        assert len(asked) == len(set(asked))


def test_the_least_recently_used_is_forgotten_first() -> None:
    inner = LetterCounts()
    cached = CachedEncoder(inner, max_items=2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cached.encode(texts, "text")
    assert inner.calls == [["a"], ["b"], ["c"], ["b"]]


def test_more_items_than_it_keeps_still_come_back() -> None:
    inner = LetterCounts()
    cached = CachedEncoder(inner, max_items=3)
    texts = [letter * 2 for letter in "abcdefgh"]
    assert torch.equal(cached.encode(texts, "text").vectors, inner.encode(texts, "text").vectors)


def test_modality_and_query_are_part_of_what_is_known() -> None:
    assert len({item_key("x", "text"), item_key("x", "code"), item_key("x", "query"), item_key("y", "text")}) == 4
    assert item_key(image(2), "image") == item_key(Image("picture 2", PILImage.new("RGB", (9, 9))), "image")
    inner = LetterCounts()
    cached = CachedEncoder(inner)
    cached.encode(["x"], "text")
    cached.encode(["x"], "code")
    cached.encode_queries(["x"])
    assert len(inner.calls) == 3
    assert cached.encode(["\ud800 a"], "text").vectors[0, 0] == 1


def test_a_cached_vector_is_not_the_models_memory() -> None:
    cached = CachedEncoder(LetterCounts())
    first = cached.encode(["abc"], "text").vectors
    first.fill_(math.nan)
    assert cached.encode(["abc"], "text").vectors.isfinite().all()


def test_a_model_that_breaks_its_word_is_caught_by_the_cache() -> None:
    class Long(LetterCounts):
        def encode(self, items: Sequence[object], modality: str) -> Encoded:
            return Encoded(torch.ones(len(items), self.dim))

    with pytest.raises(ModelError, match="vectors are L2-normalised"):
        CachedEncoder(Long()).encode(["a"], "text")


def test_descriptions_are_kept_too() -> None:
    inner = SizeWords()
    cached = CachedDescriber(inner)
    for _ in range(2):
        described = cached.describe([image(2), image(1), image(2)], "image")
        assert described.texts == ["tiny", None, "tiny"]
        assert list(described.errors) == [1]
    assert inner.calls == 1
    assert (cached.name, cached.revision, cached.modalities) == ("sizes", "7", frozenset({"image"}))


def test_a_model_has_one_call_at_a_time_whatever_it_is_asked_for() -> None:
    class Fragile(LetterCounts):
        """Holds a call until another one has come in, or is sure not to."""

        inside, most = 0, 0

        def _hold(self) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == 2:
                second.set()
            second.wait(0.2)
            self.inside -= 1

        def encode(self, items: Sequence[Item], modality: str) -> Encoded:
            self._hold()
            return super().encode(items, modality)

        def describe(self, items: Sequence[Item], modality: str) -> Described:
            self._hold()
            return Described(["a"] * len(items))

    model, second = Fragile(), Event()
    encoder, describer = CachedEncoder(model), CachedDescriber(model)
    calls = [lambda: encoder.encode(["ab", "c"], "text"), lambda: encoder.encode(["c", "d"], "text")]
    with ThreadPoolExecutor(3) as pool:
        said = pool.submit(describer.describe, ["e"], "text")
        found = [one.vectors for one in pool.map(lambda call: call(), calls)]
    assert (model.most, encoder.computed, said.result().texts) == (1, 3, ["a"])
    assert torch.equal(found[0][1], found[1][0])


def test_an_empty_call() -> None:
    assert CachedEncoder(LetterCounts()).encode([], "text").vectors.shape == (0, 26)
    assert CachedDescriber(SizeWords()).describe([], "image").texts == []
    assert DescribedEncoder({"image": SizeWords()}, LetterCounts()).encode([], "image").vectors.shape == (0, 26)
    with pytest.raises(ValueError, match="at least 0"):
        CachedEncoder(LetterCounts(), max_items=-1)

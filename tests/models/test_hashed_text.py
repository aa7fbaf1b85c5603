from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.models.classical.text import BUCKETS, HashedText
from nemo_mm_rank.text.ngrams import hashed_ngrams


def runs(word: str) -> int:
    bordered = f" {word} "
    return len({bordered[i : i + n] for n in (3, 4, 5) for i in range(len(bordered) - n + 1)})


def test_ngrams_of_a_small_text_are_the_ones_counted_by_hand() -> None:
    rows, grams, counts = hashed_ngrams(["The cat, the CAT!", "", "a-cat"], 30)
    words, characters = grams < 2**30, grams >= 2**30
    assert rows[words].tolist() == [0, 0, 2, 2]
    assert counts[words].tolist() == [2, 2, 1, 1]
    assert (rows[characters] == 0).sum() == runs("the") + runs("cat")
    assert (rows[characters] == 2).sum() == runs("a") + runs("cat")
    assert set(counts[characters & (rows == 0)]) == {2}
    assert set(grams[(rows == 2)]) & set(grams[rows == 0])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_the_vector_of_a_text_does_not_depend_on_its_batch(texts: list[str], row: int) -> None:
    encoder = HashedText()
    together = encoder.encode(texts, "text")
    alone = encoder.encode([texts[row % len(texts)]], "text")
    assert together.vectors[row % len(texts)].numpy().tobytes() == alone.vectors[0].numpy().tobytes()
    assert (row % len(texts) in together.errors) == (0 in alone.errors)


@given(st.lists(st.text(max_size=40), max_size=9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_counts_add_over_shards(texts: list[str], cut: int) -> None:
    whole = HashedText.count(texts)
    assert np.array_equal(whole, HashedText.count(texts[cut:]) + HashedText.count(texts[:cut]))
    assert whole.max(initial=0) <= len(texts)


def test_blocks_change_nothing() -> None:
    texts = [f"sentence number {i} of many, {'long ' * (i % 50)}" for i in range(2500)]
    encoder = HashedText(dim=64)
    vectors = encoder.encode(texts, "text").vectors
    assert torch.equal(vectors[2049], encoder.encode(texts[2049:2050], "text").vectors[0])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2500), atol=1e-6)


def test_similar_texts_are_near_and_case_and_form_do_not_matter() -> None:
    encoder = HashedText()
    v = encoder.encode(
        [
            "a dog runs on the beach",
            "dogs running on a beach",
            "quarterly revenue fell by 4 %",
            "A DOG runs\non the beach",
        ],
        "text",
    ).vectors
    assert v[0] @ v[1] > 0.4 > 0.15 > v[0] @ v[2]
    assert torch.equal(v[0], v[3])


def test_idf_makes_frequent_words_count_less(tmp_path: Path) -> None:
    pool = [f"photo of a thing{i}" for i in range(200)] + ["zebra"]
    HashedText.save_statistics(tmp_path / "idf.safetensors", HashedText.count(pool), len(pool))
    plain, weighted = HashedText(), HashedText(statistics=str(tmp_path / "idf.safetensors"))

    def similarity(encoder: HashedText) -> float:
        a, b = encoder.encode(["photo of a zebra", "zebra"], "text").vectors
        return float(a @ b)

    assert similarity(weighted) > similarity(plain) + 0.1
    assert weighted.revision != plain.revision
    assert weighted.revision == HashedText.revision_of(dim=512, statistics=str(tmp_path / "idf.safetensors"))


def test_idf_follows_the_formula(tmp_path: Path) -> None:
    # One word each: cosine of "x y" with "x" is that of their weights, as both have equally many n-grams.
    pool = ["abc"] * 3 + ["xyz"]
    HashedText.save_statistics(tmp_path / "idf.safetensors", HashedText.count(pool), 4)
    encoder = HashedText(dim=8192, statistics=str(tmp_path / "idf.safetensors"))
    both, one = encoder.encode(["abc xyz", "xyz"], "text").vectors
    common, rare = np.log(5 / 4) + 1, np.log(5 / 2) + 1
    assert float(both @ one) == pytest.approx(rare / np.hypot(common, rare), abs=0.03)


def test_statistics_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    texts = ["one two", "two three", "üben"]
    HashedText.save_statistics(tmp_path / "a", HashedText.count(texts), 3)
    HashedText.save_statistics(tmp_path / "b", HashedText.count(texts[::-1]), 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", ["", "   \n", "?!...", "()"])
def test_a_text_without_words_fails_alone(text: str) -> None:
    encoded = HashedText().encode(["fine", text, "also fine"], "text")
    assert list(encoded.errors) == [1]
    assert isinstance(encoded.errors[1], EmbeddingError)
    assert encoded.vectors[1].isnan().all()
    assert encoded.vectors[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "text", ["مرحبا بالعالم", "🎉🐶", "东京", "\ud800 lone", "e\u0301", "x" * 1_000_000, "x[::-1]"]
)
def test_odd_texts_have_vectors(text: str) -> None:
    encoded = HashedText().encode([text], "text")
    assert not encoded.errors
    assert float(encoded.vectors[0].norm()) == pytest.approx(1)


def test_nothing_and_none() -> None:
    assert HashedText(dim=64).encode([], "code").vectors.shape == (0, 64)
    assert HashedText.count([]).sum() == 0
    assert np.array_equal(HashedText.count([None, "a"]), HashedText.count(["", "a"]))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="multiple of 8, not 100"):
        HashedText(dim=100)
    with pytest.raises(ModelError, match="not image"):
        HashedText().encode(["x"], "image")
    with pytest.raises(ModelError, match="nowhere"):
        HashedText(statistics=str(tmp_path / "nowhere"))
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ModelError, match="pickle"):
        HashedText(statistics=str(tmp_path / "pickle"))
    save_file({"counts": np.full(BUCKETS, 5, np.int64), "n": np.array([4], np.int64)}, tmp_path / "more")
    with pytest.raises(ModelError, match="document frequencies"):
        HashedText(statistics=str(tmp_path / "more"))

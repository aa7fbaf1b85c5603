from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.errors import EmbeddingError
from nemo_mm_rank.models.base import Encoded
from nemo_mm_rank.sns import parts as sns_parts
from nemo_mm_rank.sns.parts import Parts, best_match, cosines, host, mean_match


def unit(rows: int, dim: int, seed: int) -> Vectors:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 10**6))
def test_a_cosine_is_the_same_to_the_bit_alone_and_among_others(dim: int, rows: int, seed: int) -> None:
    left, right = unit(rows, dim, seed), unit(rows, dim, seed + 1)
    together = cosines(left, right)
    assert together.dtype == np.float32
    alone = np.concatenate([cosines(left[i : i + 1], right[i : i + 1]) for i in range(rows)])
    assert together.tobytes() == alone.tobytes()
    assert together[::-1].tobytes() == cosines(left[::-1], right[::-1]).tobytes()
    np.testing.assert_allclose(together, (left.astype(np.float64) * right).sum(axis=1), atol=1e-6)


COUNTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=8)


@given(COUNTS, st.integers(0, 10**6), st.integers(1, 12))
def test_a_match_is_the_largest_or_the_mean_cosine_to_the_same_pairs_other_side(
    counts: list[tuple[int, int]], seed: int, chunk: int
) -> None:
    ours, theirs = (np.array(column, dtype=np.int64) for column in zip(*counts, strict=True))
    parts = Parts(unit(int(ours.sum()), 6, seed), ours)
    others = Parts(unit(int(theirs.sum()), 6, seed + 1), theirs)
    if len(others.vectors):
        others.vectors[0] = np.nan
    before, sns_parts._COSINES = sns_parts._COSINES, chunk
    try:
        found, mean = best_match(parts, others), mean_match(parts, others)
    finally:
        sns_parts._COSINES = before
    first = np.cumsum(theirs) - theirs
    for i, owner in enumerate(parts.owner):
        own = others.vectors[first[owner] : first[owner] + theirs[owner]]
        judged = [
            float(cosines(parts.vectors[i : i + 1], rival[None])[0]) for rival in own if not np.isnan(rival).any()
        ]
        np.testing.assert_equal(found[i], np.float32(max(judged)) if judged else np.float32(np.nan))
        np.testing.assert_allclose(mean[i], np.mean(judged) if judged else np.nan, atol=1e-6)


def test_items_that_failed_have_nan() -> None:
    encoded = Encoded(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), {1: EmbeddingError("no words")})
    np.testing.assert_array_equal(host(encoded), np.array([[1, 0], [np.nan, np.nan]], dtype=np.float32))
    assert not torch.isnan(encoded.vectors).any()

"""MinHash signatures: those of libcudf, and what bands of them find."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank.quality.duplicates import Keepers, join
from nemo_mm_rank.text import minhash
from nemo_mm_rank.text.minhash import NearDuplicateSettings, band_keys, murmur3, parameters, signatures
from tests.quality.annotations import OTHER, PARAGRAPH

TEXTS = ["dog", "naïve Hunde, größer als Bären 🐶 und Katzen zusammen", PARAGRAPH, OTHER, "x" * 24, "x" * 25, "é" * 23]


def uint64s(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_signatures_are_those_of_libcudf() -> None:
    # The example of cuDF's own documentation of `str.minhash`.
    found = signatures(["this is my", "favorite book"], 5, uint64s(1, 2, 3), uint64s(4, 5, 6), 0)
    assert found.tolist() == [[1305480171, 462824409, 74608232], [32665388, 65330773, 97996158]]


def test_hashes_are_murmur3() -> None:
    reference = pytest.importorskip("sklearn.utils").murmurhash3_32
    for text in ["a", "ab", "abc", "abcd", *TEXTS]:
        content = np.frombuffer(text.encode(), dtype=np.uint8)
        for start in {0, len(content) // 2}:
            found = murmur3(content, np.array([start]), len(content) - start, 42)
            assert found.tolist() == [reference(content[start:].tobytes(), seed=42, positive=True)]


def test_permutations_are_drawn_as_curator_draws_them() -> None:
    factors, terms = parameters(260, 42)
    generator = np.random.RandomState(42)
    drawn = [(generator.randint(1, 2**31 - 1, dtype=np.uint32), generator.randint(0, 2**31 - 1, dtype=np.uint32))]
    assert (factors[0], terms[0]) == drawn[0]
    assert len(factors) == len(terms) == 260


def test_signatures_are_the_least_permuted_hash_of_all_shingles() -> None:
    factors, terms = parameters(7, 1)
    found = signatures(TEXTS, 24, factors, terms, 9)
    for row, text in enumerate(TEXTS):
        shingles = [text[i : i + 24].encode() for i in range(max(1, len(text) - 23))]
        hashes = [int(murmur3(np.frombuffer(s, dtype=np.uint8), np.array([0]), len(s), 9)[0]) for s in shingles]
        expected = [
            min((int(a) * h + int(b)) % (2**61 - 1) % 2**32 for h in hashes)
            for a, b in zip(factors, terms, strict=True)
        ]
        assert found[row].tolist() == expected, text


@pytest.mark.parametrize(("block", "characters"), [(1, 10), (7, 60), (100_000, 1_000_000)])
def test_signatures_do_not_depend_on_how_texts_are_cut_into_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int, characters: int
) -> None:
    expected = band_keys(TEXTS, NearDuplicateSettings())
    monkeypatch.setattr(minhash, "_BLOCK", block)
    monkeypatch.setattr(minhash, "_CHARACTERS", characters)
    assert (band_keys(TEXTS, NearDuplicateSettings()) == expected).all()
    assert (np.concatenate([band_keys([text], NearDuplicateSettings()) for text in TEXTS]) == expected).all()


def test_bands_find_near_equal_texts_and_only_those() -> None:
    near = PARAGRAPH.replace("old sailor", "young sailor")
    far = " ".join(PARAGRAPH.split()[:12] + OTHER.split())
    keys = band_keys([PARAGRAPH, near, far, OTHER, PARAGRAPH], NearDuplicateSettings())
    shared = (keys[:, None] == keys[None]).any(axis=2)
    assert shared.tolist() == [
        [True, True, False, False, True],
        [True, True, False, False, True],
        [False, False, True, shared[2, 3], False],
        [False, False, shared[3, 2], True, False],
        [True, True, False, False, True],
    ]


def test_rows_are_joined_over_bands_into_connected_components() -> None:
    groups = np.arange(6)
    groups = join(groups, uint64s(1, 1, 2, 3, 4, 5))
    groups = join(groups, uint64s(9, 8, 8, 7, 6, 7))
    assert [sorted(np.flatnonzero(groups == g).tolist()) for g in dict.fromkeys(groups.tolist())] == [
        [0, 1, 2],
        [3, 5],
        [4],
    ]
    assert join(groups, uint64s(1, 2, 3, 4, 5, 6)) is groups
    assert join(np.arange(0), uint64s()).tolist() == []


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 4, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_the_best_of_a_group_stays_however_rows_arrive(cuts: tuple[int, ...]) -> None:
    keepers = Keepers(np.array([0, 0, 0, 3, 4, 3]))
    scores = np.array([1.0, 2.0, 2.0, 5.0, 0.0, 5.0])
    ids = pa.chunked_array([["a", "c", "b", "z", "lone", "y"]])
    for start, stop in itertools.pairwise(cuts):
        keepers.add(start, scores[start:stop], ids[start:stop])
    assert keepers.kept.tolist() == [False, False, True, False, True, True]
    assert keepers.keeper(np.array([0, 2, 3, 4])).to_pylist() == ["b", "b", "y", None]
    assert keepers.keeper(np.array([], dtype=np.int64)).to_pylist() == []


def test_without_duplicates_all_stay() -> None:
    keepers = Keepers(np.arange(3))
    keepers.add(0, np.zeros(3), pa.chunked_array([["a", "b", "c"]]))
    assert keepers.kept.tolist() == [True, True, True]
    assert keepers.keeper(np.array([1])).to_pylist() == [None]

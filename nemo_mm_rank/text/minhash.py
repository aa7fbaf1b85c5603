"""MinHash signatures of many texts at once, equal to those of Curator's fuzzy deduplication, which needs a GPU.

Formulas: libcudf's ``nvtext::minhash`` (https://docs.rapids.ai/api/cudf/stable/libcudf_docs/api_docs/nvtext_minhash)
and the parameters that ``nemo_curator.stages.deduplication.fuzzy.minhash.GPUMinHash`` draws for it. A shingle's hash
``h`` is MurmurHash3_x86_32 of its UTF-8 bytes (Appleby 2011); hash ``i`` of the signature is the least
``((a_i h + b_i) mod (2^61 - 1)) mod 2^32`` over the text's shingles. A text shorter than a shingle is one shingle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from nemo_mm_rank.arrays import Ints, UInt32s, UInt64s
from nemo_mm_rank.config import Settings
from nemo_mm_rank.text.ngrams import mix

_PRIME = np.uint64((1 << 61) - 1)
_BLOCK = 512
"""Shingles whose hashes are permuted at a time: a block of 260 permutations stays in the processor's cache."""
_CHARACTERS = 2**20
"""Characters whose shingles are hashed at a time (a longer text is a chunk of its own)."""


class NearDuplicateSettings(Settings):
    """MinHash and banding, as Curator's FuzzyDeduplicationWorkflow has them."""

    char_ngrams: int = Field(24, ge=2, description="Number of characters in a shingle.")
    bands: int = Field(
        20, ge=1, le=256, description="Number of bands; two annotations are near-duplicates where one band is equal."
    )
    rows: int = Field(13, ge=1, le=256, description="Number of hashes in a band.")
    seed: int = Field(42, ge=0, lt=2**32)


def parameters(count: int, seed: int) -> tuple[UInt64s, UInt64s]:
    """Return the ``(count,)`` factors and terms of the permutations, as Curator draws them for 32-bit hashes."""
    generator = np.random.RandomState(seed)
    most = np.uint32((1 << 31) - 1)
    drawn = [
        (generator.randint(1, most, dtype=np.uint32), generator.randint(0, most, dtype=np.uint32)) for _ in range(count)
    ]
    pairs = np.array(drawn, dtype=np.uint64).reshape(count, 2)
    return pairs[:, 0], pairs[:, 1]


def signatures(texts: Sequence[str], width: int, factors: UInt64s, terms: UInt64s, seed: int) -> UInt32s:
    """Return ``(n, p)`` MinHash signatures of ``n`` texts, none of them empty.

    Args:
        texts: to be compared.
        width: characters of a shingle.
        factors, terms: ``(p,)`` below 2^32, the permutations.
        seed: of MurmurHash3, below 2^32.
    """
    found = np.empty((len(texts), len(factors)), dtype=np.uint32)
    for rows in _chunks(texts):
        hashes, starts = _shingles(texts[rows], width, seed)
        found[rows] = _least(hashes, starts, factors, terms)
    return found


def band_keys(texts: Sequence[str], settings: NearDuplicateSettings) -> UInt64s:
    """Return ``(n, bands)`` keys: two texts whose keys of one band are equal have that band's hashes in common.

    (But for a chance of 2^-64 per pair of texts and band.)
    """
    factors, terms = parameters(settings.bands * settings.rows, settings.seed)
    found = signatures(texts, settings.char_ngrams, factors, terms, int(factors[0]))
    banded = found.reshape(len(texts), settings.bands, settings.rows).astype(np.uint64)
    keys = np.zeros((len(texts), settings.bands), dtype=np.uint64)
    for row in range(settings.rows):
        keys = mix(keys ^ banded[:, :, row]) + np.uint64(row + 1)
    return keys


def _chunks(texts: Sequence[str]) -> Iterator[slice]:
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHARACTERS, side="right")))
        yield slice(start, stop)
        start = stop


def _shingles(texts: Sequence[str], width: int, seed: int) -> tuple[UInt32s, Ints]:
    """Return the hashes of all shingles, text by text, and ``(n,)`` where each text's begin."""
    content = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    # Where characters begin: at every byte that does not continue one. One more for the end.
    bounds = np.append(np.flatnonzero((content & 0xC0) != 0x80), len(content))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    counts = np.maximum(lengths - width + 1, 1)
    starts = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(starts, counts)
    first = np.repeat(np.cumsum(lengths) - lengths, counts) + within
    last = first + np.repeat(np.minimum(lengths, width), counts)
    begin, sizes = bounds[first], bounds[last] - bounds[first]
    hashes = np.empty(len(begin), dtype=np.uint32)
    for size in np.unique(sizes).tolist():
        same = np.flatnonzero(sizes == size)
        hashes[same] = murmur3(content, begin[same], size, seed)
    return hashes, starts


def murmur3(content: npt.NDArray[np.uint8], begin: Ints, size: int, seed: int) -> UInt32s:
    """Return MurmurHash3_x86_32 of ``content[begin[i] : begin[i] + size]``, ``(m,)``."""
    hashes = np.full(len(begin), seed, dtype=np.uint32)
    for offset in range(0, size - 3, 4):
        hashes ^= _scrambled(_word(content, begin + offset, 4))
        hashes = _rotated(hashes, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    if size % 4:
        hashes ^= _scrambled(_word(content, begin + size - size % 4, size % 4))
    hashes ^= np.uint32(size)
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def _word(content: npt.NDArray[np.uint8], begin: Ints, size: int) -> UInt32s:
    """Return ``size`` bytes from each place on as one little-endian number."""
    word = content[begin].astype(np.uint32)
    for byte in range(1, size):
        word |= content[begin + byte].astype(np.uint32) << np.uint32(8 * byte)
    return word


def _scrambled(words: UInt32s) -> UInt32s:
    return _rotated(words * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotated(words: UInt32s, bits: int) -> UInt32s:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def _least(hashes: UInt32s, starts: Ints, factors: UInt64s, terms: UInt64s) -> UInt32s:
    """Return ``(n, p)`` the least permuted hash of each text."""
    least = np.full((len(factors), len(starts)), 0xFFFFFFFF, dtype=np.uint32)
    for begin in range(0, len(hashes), _BLOCK):
        permuted = _permuted(hashes[begin : begin + _BLOCK].astype(np.uint64), factors, terms)
        # Texts that begin in this block, and the one that reaches into it.
        inside = slice(*np.searchsorted(starts, [begin, begin + permuted.shape[1]]))
        heads = starts[inside] - begin
        reaching = int(inside.start) - 1
        if not len(heads) or heads[0]:
            head = permuted[:, : heads[0] if len(heads) else None].min(axis=1)
            least[:, reaching] = np.minimum(least[:, reaching], head)
        if len(heads):
            least[:, inside] = np.minimum.reduceat(permuted, heads, axis=1)
    return np.ascontiguousarray(least.T)


def _permuted(hashes: UInt64s, factors: UInt64s, terms: UInt64s) -> UInt32s:
    """Return ``(p, m)`` permuted hashes; all in place, since this is where the time goes."""
    # Below 2^63: hashes are below 2^32, factors and terms below 2^31.
    values = factors[:, None] * hashes
    values += terms[:, None]
    # Modulo 2^61 - 1, of which only the low 32 bits are asked for: there, taking the prime away is adding 1.
    carry = values >> np.uint64(61)
    values &= _PRIME
    values += carry
    np.add(values, np.uint64(1), out=carry)
    carry >>= np.uint64(61)
    values += carry
    return values.astype(np.uint32)

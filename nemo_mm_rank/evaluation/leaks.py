"""What a pool and a validation set have in common: the same pair, annotation or data, or nearly the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.quality.minhash import band_keys
from nemo_mm_rank.quality.minhash import NearDuplicateSettings
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, PAIR_ID, Modality

FINGERPRINT = "fingerprint__data"
"""Column with the perceptual hash of media (`quality.operators.fingerprints`)."""

SCHEMA = pa.schema([(PAIR_ID, pa.string()), ("held_out", pa.string()), ("what", pa.string())])

TEXTS = NearDuplicateSettings(char_ngrams=8, bands=20, rows=8)
"""Texts are near where one band of MinHash is equal: about two thirds of their 8-character shingles in common, since
annotations are short."""

RADIUS = 3
"""Media are near where at most so many of the 64 bits of their perceptual hashes differ."""

_MEDIA = [str(modality) for modality in Modality if modality.is_media]
_CELLS = 1 << 22
_SPACES = re.compile(r"[\W_]+")


def leaks(pool: pa.Table, held_out: pa.Table) -> pa.Table:
    """Return the pairs of a pool that are too near to a held-out one.

    A pair leaks where it has the same id; an annotation that is equal or near (`TEXTS`), case and punctuation aside;
    or data of its modality that is: text and code likewise, media by their perceptual hash (`RADIUS`).

    Args:
        pool: ``pair_id, modality, data, annotation`` and `FINGERPRINT` (uint64, null where media did not open).
        held_out: the same columns.

    Returns:
        ``pair_id, held_out, what`` (`SCHEMA`): ``what`` is ``pair_id``, ``annotation`` or ``data``; a pair may be there
        for several reasons, for each with the first held-out pair by row.
    """
    found = [_table(pool, held_out, "pair_id", pc.index_in(pool[PAIR_ID], held_out[PAIR_ID].combine_chunks()))]
    found.append(_table(pool, held_out, "annotation", _near_texts(pool[ANNOTATION], held_out[ANNOTATION])))
    for modality in pc.unique(pool[MODALITY]).to_pylist():
        ours, theirs = (table.filter(pc.equal(table[MODALITY], modality)) for table in (pool, held_out))
        if modality in _MEDIA:
            found.append(_table(ours, theirs, "data", _near_media(ours[FINGERPRINT], theirs[FINGERPRINT])))
        else:
            found.append(_table(ours, theirs, "data", _near_texts(ours[DATA], theirs[DATA])))
    return pa.concat_tables(found).combine_chunks()


def _table(pool: pa.Table, held_out: pa.Table, what: str, match: Ints | pa.ChunkedArray) -> pa.Table:
    places = match if isinstance(match, np.ndarray) else pc.fill_null(match, -1).to_numpy()
    rows = np.flatnonzero(places >= 0)
    columns = [
        pool[PAIR_ID].take(pa.array(rows)),
        held_out[PAIR_ID].take(pa.array(places[rows])),
        pa.array([what] * len(rows), pa.string()),
    ]
    return pa.table(columns, SCHEMA)


def _near_texts(pool: pa.ChunkedArray, held_out: pa.ChunkedArray) -> Ints:
    """Return for each text the first held-out one that it is near to, -1 for none."""
    match = np.full(len(pool), -1)
    if not len(pool) or not len(held_out):
        return match
    ours, theirs = (band_keys(_plain(texts.to_pylist()), TEXTS) for texts in (pool, held_out))
    for band in range(TEXTS.bands):
        order = np.argsort(theirs[:, band], kind="stable")
        keys = theirs[order, band]
        place = np.minimum(np.searchsorted(keys, ours[:, band]), len(keys) - 1)
        found = np.where(keys[place] == ours[:, band], order[place], -1)
        match = np.where((match < 0) | ((found >= 0) & (found < match)), found, match)
    return match


def _plain(texts: Sequence[str]) -> list[str]:
    return [_SPACES.sub(" ", text.casefold()).strip() or text for text in texts]


def _near_media(pool: pa.ChunkedArray, held_out: pa.ChunkedArray) -> Ints:
    """Return for each hash the first held-out one within the radius, -1 for none and where there is no hash."""
    match = np.full(len(pool), -1)
    ours, theirs = (np.flatnonzero(pc.is_valid(column).to_numpy()) for column in (pool, held_out))
    if not len(ours) or not len(theirs):
        return match
    codes, others = pool.take(pa.array(ours)).to_numpy(), held_out.take(pa.array(theirs)).to_numpy()
    step = max(1, _CELLS // len(others))
    for start in range(0, len(codes), step):
        near = _bits(codes[start : start + step, None] ^ others[None, :]) <= RADIUS
        match[ours[start : start + step]] = np.where(near.any(1), theirs[near.argmax(1)], -1)
    return match


def _bits(words: UInt64s) -> npt.NDArray[np.uint8]:
    """Return the number of bits set in each word."""
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 8)
    found: npt.NDArray[np.uint8] = np.unpackbits(octets, axis=-1).sum(-1, dtype=np.uint8)
    return found

"""Quality-guided deduplication over all shards: of pairs with the same fingerprint, the one that agrees best stays.

Groups come from keys alone: equal keys, and 64-bit codes a few bits apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from scipy.sparse import coo_array

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.modality import is_media, media_names, modalities_of
from nemo_mm_rank.quality.operators.fingerprints import ANNOTATION_KEY, DATA_KEY
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.shards import Shards, live
from nemo_mm_rank.text.ngrams import mix


def join(groups: Ints, keys: UInt64s) -> Ints:
    """Return ``groups`` with those merged that have a row with the same key.

    Called once per band, it gives the connected components of the graph in which rows that share a key are linked,
    in memory of one band.

    Args:
        groups: ``(n,)`` from 0 to ``n - 1``; at first each row its own.
        keys: ``(n,)``.
    """
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return linked(groups, order[same], order[same + 1])


def linked(groups: Ints, left: Ints, right: Ints) -> Ints:
    """Return ``groups`` with those merged of which a row ``left[i]`` is linked to a row ``right[i]``."""
    if not len(left):
        return groups
    from scipy.sparse.csgraph import connected_components  # takes a moment, with the linear algebra that it brings

    n = len(groups)
    graph = coo_array((np.ones(len(left), dtype=np.int8), (groups[left], groups[right])), shape=(n, n))
    labels: Ints = connected_components(graph.tocsr(), directed=False)[1].astype(np.int64)
    return labels[groups]


class Keepers:
    """Finds the row of each group that stays: the best score, then the lowest ``pair_id``. Fed shard by shard.

    Args:
        groups: ``(n,)`` of all rows, as `join` returns them.
    """

    def __init__(self, groups: Ints) -> None:
        self._groups = groups
        self._shared = np.bincount(groups, minlength=1)[groups] > 1 if len(groups) else np.zeros(0, dtype=bool)
        self._best: pa.Table | None = None

    def add(self, start: int, scores: npt.NDArray[np.float64], pair_ids: pa.ChunkedArray) -> None:
        """Take in the rows ``start, start + 1, ...``; only those in a group of several are held."""
        inside = np.flatnonzero(self._shared[start : start + len(scores)])
        if not len(inside):
            return
        rows = inside + start
        edges = pa.table(
            {
                "group": self._groups[rows],
                "score": scores[inside],
                PAIR_ID: pair_ids.take(pa.array(inside)),
                "row": rows,
            }
        )
        held = edges if self._best is None else pa.concat_tables([self._best, edges])
        held = held.sort_by([("group", "ascending"), ("score", "descending"), (PAIR_ID, "ascending")])
        first = np.flatnonzero(np.diff(held["group"].to_numpy(), prepend=-1))
        self._best = held.take(pa.array(first)).combine_chunks()

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """``(n,)``: rows without a duplicate, and the one of each group that stays."""
        kept = ~self._shared
        if self._best is not None:
            kept[self._best["row"].to_numpy()] = True
        return kept

    def keeper(self, rows: Ints) -> pa.Array:
        """Return the ``pair_id`` that stays in the group of each row; null where the row has no duplicate."""
        if self._best is None:
            return pa.nulls(len(rows), pa.string())
        shared = self._shared[rows]
        place = np.searchsorted(self._best["group"].to_numpy(), self._groups[rows])
        ids = self._best[PAIR_ID].combine_chunks()
        return ids.take(pa.array(np.where(shared, place, 0), mask=~shared))


BITS = 64
PAIRS_AT_ONCE = 1 << 18
"""Candidates that are compared at a time: bounds the memory where many codes have a band in common."""

LOOK_UP = 30
"""What it takes to look a band up, in comparisons of two codes."""

_ONES = np.array([bin(word).count("1") for word in range(1 << 16)], dtype=np.uint8)


def near(codes: UInt64s, salts: UInt64s, radius: int) -> Ints:
    """Return ``(n,)`` groups: the connected components of the graph that links codes at most ``radius`` bits apart.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): the bits are divided into ``b`` bands. Codes within the
    radius differ in some band by at most ``radius // b`` bits, so only those that do are compared.

    Args:
        codes: ``(n,)``, best each of its salt once: it is compared with all that share a band.
        salts: ``(n,)`` codes of different salts are never linked.
        radius: bits.
    """
    groups = np.arange(len(codes))
    links: list[tuple[Ints, Ints]] = []
    held = 0
    bands = band_count(len(codes), radius)
    edges = [BITS * band // bands for band in range(bands + 1)]
    keys = mix(salts)
    for start, end in pairwise(edges):
        values = codes >> np.uint64(start) & np.uint64((1 << (end - start)) - 1)
        for left, right in _candidates(values, keys, end - start, radius // bands):
            close = distances(codes[left], codes[right]) <= radius
            left, right = left[close], right[close]
            same = salts[left] == salts[right]
            links.append((left[same], right[same]))
            held += int(same.sum())
            if held > max(PAIRS_AT_ONCE, len(codes)):
                groups, links, held = _linked(groups, links), [], 0
    return _linked(groups, links) if links else groups


def _linked(groups: Ints, links: list[tuple[Ints, Ints]]) -> Ints:
    left, right = (np.concatenate([np.zeros(0, dtype=np.int64), *side]) for side in zip(*links, strict=True))
    return linked(groups, left, right)


def band_count(n: int, radius: int) -> int:
    """Return the number of bands that makes least work of ``n`` codes, were they random.

    Each band is looked up once for every way to turn up to ``radius // b`` of its bits, and a code finds
    ``n / 2^width`` others by chance each time. More than ``radius + 1`` bands are of no use.
    """

    def work(bands: int) -> float:
        width = BITS // bands
        ways = sum(comb(width, turned) for turned in range(radius // bands + 1))
        return bands * ways * (LOOK_UP + n / float(2**width))

    return min(range(1, radius + 2), key=work)


def _candidates(values: UInt64s, salts: UInt64s, width: int, most: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of rows, each once, whose values of ``width`` bits differ by at most ``most``; some by chance."""
    keys = mix(values) ^ salts
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.searchsorted(ordered, ordered, side="right")
    yield from _pairs(order, np.arange(1, len(order) + 1), ends, order)
    for turned in range(1, most + 1):
        for places in combinations(range(width), turned):
            flip = np.uint64(sum(1 << place for place in places))
            rows = np.flatnonzero(values & np.uint64(1 << places[0]) == 0)  # the other of a pair has that bit set
            wanted = mix(values[rows] ^ flip) ^ salts[rows]
            first, last = (np.searchsorted(ordered, wanted, side=side) for side in ("left", "right"))
            yield from _pairs(rows, first, last, order)


def _pairs(rows: Ints, first: Ints, last: Ints, order: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield each of ``rows`` with those at its places of ``order``, ``first`` to ``last``, in bounded pieces."""
    several = np.flatnonzero(last > first)
    rows, first, counts = rows[several], first[several], (last - first)[several]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, PAIRS_AT_ONCE):
        end = min(begin + PAIRS_AT_ONCE, total)
        inside = slice(np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end, side="left") + 1)
        starts = ends[inside] - counts[inside]
        taken = np.minimum(ends[inside], end) - np.maximum(starts, begin)
        places = np.arange(begin, end) + np.repeat(first[inside] - starts, taken)
        yield np.repeat(rows[inside], taken), order[places]


def distances(left: UInt64s, right: UInt64s) -> npt.NDArray[np.uint8]:
    """Return ``(m,)`` the number of bits in which codes differ."""
    words = (left ^ right).view(np.uint16).reshape(-1, 4)
    total: npt.NDArray[np.uint8] = _ONES[words].sum(axis=1, dtype=np.uint8)
    return total


class DuplicateSettings(Settings):
    """Quality-guided deduplication."""

    by: tuple[str, ...] = Field(
        ("quality__agreement_score",),
        description="Columns that decide which duplicate stays (the higher value); the first column that has a "
        "value for the pair counts.",
    )
    text: bool | None = Field(
        None,
        description="Whether duplicates must have the same annotation, too. Default: true for text and code, "
        "because several questions may be asked about one passage; false for media, where the data "
        "alone counts.",
    )
    radius: int = Field(
        0,
        ge=0,
        le=16,
        description="Number of bits in which the fingerprints of duplicates may differ (media only); 0: the "
        "fingerprints are equal.",
    )


SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        (PAIR_ID, pa.string()),
        ("kept", pa.bool_()),
        ("agreement", pa.float64()),
        ("bits", pa.uint8()),
        ("reason", pa.string()),
    ]
)
"""Of the table of groups: one row per pair that has a duplicate."""


@dataclass(frozen=True)
class Duplicates:
    """Which pairs stay.

    Attributes:
        kept: per shard, ``(rows,)`` whether a live row stays, in the order of the shard's live rows.
        groups: columns of `SCHEMA`, group by group, the pair that stays first, then by ``pair_id``. ``group`` is the
            ``pair_id`` that stays, ``bits`` the distance of the fingerprint from that pair's: beyond the radius where
            others lie between the two, and null for text and code.
    """

    kept: tuple[npt.NDArray[np.bool_], ...]
    groups: pa.Table


def deduplicate(shards: Shards, settings: DuplicateSettings) -> Duplicates:
    """Group the pool's live pairs by their fingerprints, and choose who stays of each group.

    Duplicates are of one modality; where ``settings.text`` says so, their annotations are the same too. Which one
    stays is the pair with the best agreement, then the least ``pair_id``; one without an agreement comes last. Neither
    the order of rows nor of shards changes anything.

    Reads small columns, one shard at a time; memory is about 60 bytes per pair, and the ids of those with a duplicate.

    Args:
        shards: with ``pair_id, modality``, the fingerprints (`operators.Fingerprints`), and one of ``settings.by``.
        settings: what is a duplicate, and which stays.

    Raises:
        MissingColumnError: a shard lacks the keys, or every column to choose by.
    """
    keys = _keys(shards, settings)
    groups = _groups(keys, settings.radius)
    keepers = Keepers(groups)
    shared = np.bincount(groups, minlength=1)[groups] > 1
    members: list[pa.Table] = []
    start = 0
    for part, rows, table in live(shards, [PAIR_ID, *settings.by]):
        agreement = _agreement(table, settings.by, part)
        ids = table[PAIR_ID].cast(pa.string())
        keepers.add(start, np.nan_to_num(agreement, nan=-np.inf), ids)
        inside = np.flatnonzero(shared[start : start + len(rows)])
        found = {"row": start + inside, PAIR_ID: ids.take(pa.array(inside)), "agreement": agreement[inside]}
        members.append(pa.table(found))
        start += len(rows)
    stays, bounds = keepers.kept, np.cumsum([0, *keys.counts]).tolist()
    kept = tuple(stays[first:last] for first, last in pairwise(bounds))
    if not shared.any():
        return Duplicates(kept, SCHEMA.empty_table())
    return Duplicates(kept, _table(pa.concat_tables(members), keepers, keys, groups))


@dataclass(frozen=True)
class _Keys:
    """Of all live rows: duplicates have the same salt, and near codes.

    Attributes:
        codes, salts: ``(n,)`` uint64. Texts, code and data of several parts have their key in the salt,
            since distances say nothing of it.
        media: ``(n,)`` whether the code is a perceptual hash.
        counts: live rows per shard.
    """

    codes: UInt64s
    salts: UInt64s
    media: npt.NDArray[np.bool_]
    counts: list[int]


def _keys(shards: Shards, settings: DuplicateSettings) -> _Keys:
    nothing = np.zeros(0, dtype=np.uint64)
    codes, salts, media, counts = [nothing], [nothing], [nothing.astype(np.bool_)], []
    for part, rows, table in live(shards, [MODALITY, DATA_KEY, ANNOTATION_KEY]):
        code = _whole(table, DATA_KEY, part)
        modality = table[MODALITY].cast(pa.string())
        salt = pd.util.hash_array(modality.to_numpy().astype(object))
        with_text = np.flatnonzero(_with_text(modality, settings))
        if len(with_text):
            salt[with_text] = mix(salt[with_text] ^ _whole(table.take(with_text), ANNOTATION_KEY, part))
        of_media = pc.is_in(modality, pa.array(media_names(), pa.string())).to_numpy()
        codes.append(np.where(of_media, code, np.uint64(0)))
        salts.append(np.where(of_media, salt, mix(salt ^ code)))
        media.append(of_media)
        counts.append(len(rows))
    return _Keys(np.concatenate(codes), np.concatenate(salts), np.concatenate(media), counts)


def _with_text(modality: pa.ChunkedArray, settings: DuplicateSettings) -> npt.NDArray[np.bool_]:
    """Return ``(rows,)`` whether the annotation counts: where the settings leave it open, if no part of it is media."""
    if settings.text is not None:
        return np.full(len(modality), settings.text)
    plain = [name for name in pc.unique(modality).to_pylist() if not any(map(is_media, modalities_of(name)))]
    return np.array(pc.is_in(modality, pa.array(plain, pa.string())))


def _whole(table: pa.Table, name: str, part: int) -> UInt64s:
    if name not in table.column_names:
        raise MissingColumnError(f"duplicates: shard {part} lacks {name!r}")
    if table[name].null_count:
        raise MissingColumnError(f"duplicates: shard {part} has pairs without {name!r}")
    keys: UInt64s = table[name].to_numpy()
    return keys


def _groups(keys: _Keys, radius: int) -> Ints:
    """Return ``(n,)`` groups of equal, or near, codes of one salt."""
    groups = join(np.arange(len(keys.codes)), mix(keys.codes) ^ keys.salts)
    if not radius:
        return groups
    first = np.unique(groups, return_index=True)[1]  # groups are numbered from 0 on
    return near(keys.codes[first], keys.salts[first], radius)[groups]


def _agreement(table: pa.Table, by: Sequence[str], part: int) -> npt.NDArray[np.float64]:
    """Return ``(rows,)`` the first number that each row has; NaN where it has none."""
    values = np.full(table.num_rows, np.nan)
    columns = [name for name in by if name in table.column_names]
    if not columns:
        raise MissingColumnError(
            f"duplicates: shard {part} has none of the columns that decide which duplicate stays: "
            f"{', '.join(map(repr, by))}"
        )
    for name in columns:
        column = table[name].cast(pa.float64()).to_numpy()
        values = np.where(np.isnan(values), column, values)
    return values


def _table(members: pa.Table, keepers: Keepers, keys: _Keys, groups: Ints) -> pa.Table:
    """Return the table of groups; ``members`` are the rows with a duplicate: ``row``, ``pair_id``, ``agreement``."""
    rows = members["row"].to_numpy()
    names = keepers.keeper(rows)
    kept = keepers.kept[rows]
    _, group, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    best = np.flatnonzero(kept)[np.argsort(group[kept])][group]  # of each member, the one that stays
    agreement = members["agreement"].to_numpy()
    bits = np.ma.array(distances(keys.codes[rows], keys.codes[rows[best]]), mask=~keys.media[rows])
    reasons = [
        f"best agreement of {size}: {_said(own)}"
        if stays
        else f"{'the same data as' if apart is None else f'{apart} bits from'} {name}: "
        f"agreement {_said(own)} against {_said(other)}"
        for stays, size, apart, name, own, other in zip(
            kept.tolist(),
            sizes[group].tolist(),
            bits.tolist(),
            names.to_pylist(),
            agreement.tolist(),
            agreement[best].tolist(),
            strict=True,
        )
    ]
    columns = [
        names,
        members[PAIR_ID],
        pa.array(kept),
        pa.array(agreement, from_pandas=True),
        pa.array(bits.data, pa.uint8(), mask=bits.mask),
        pa.array(reasons, pa.string()),
    ]
    order = [("group", "ascending"), ("kept", "descending"), (PAIR_ID, "ascending")]
    return pa.table(columns, schema=SCHEMA).sort_by(order).combine_chunks()


def _said(agreement: float) -> str:
    return "none" if np.isnan(agreement) else f"{agreement:.4g}"

"""Quality-guided deduplication over all shards: of pairs with the same fingerprint, the one that agrees best stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nemo_mm_rank.arrays import Ints, UInt64s
from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.modality import is_media, media_names, modalities_of
from nemo_mm_rank.quality.duplicates import Keepers, distances, join, near
from nemo_mm_rank.quality.operators.fingerprints import ANNOTATION_KEY, DATA_KEY
from nemo_mm_rank.schema import MODALITY, PAIR_ID
from nemo_mm_rank.shards import Shards, live
from nemo_mm_rank.text.ngrams import mix


class DuplicateSettings(Settings):
    """Quality-guided deduplication."""

    by: tuple[str, ...] = Field(
        ("quality__agreement",), description="columns that say which stays, higher is better: the first that a pair has"
    )
    text: bool | None = Field(
        None,
        description="duplicates have the same annotation too; default: of text and code, since a passage may be asked "
        "several things, while of media the data alone counts",
    )
    radius: int = Field(0, ge=0, le=16, description="bits in which fingerprints of media may differ; 0: equal keys")


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

    @property
    def losers(self) -> pa.Array:
        """The ``pair_id`` of pairs that go."""
        return self.groups.filter(pc.invert(self.groups["kept"]))[PAIR_ID].combine_chunks()


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
        is_media = pc.is_in(modality, pa.array(media_names(), pa.string())).to_numpy()
        codes.append(np.where(is_media, code, np.uint64(0)))
        salts.append(np.where(is_media, salt, mix(salt ^ code)))
        media.append(is_media)
        counts.append(len(rows))
    return _Keys(np.concatenate(codes), np.concatenate(salts), np.concatenate(media), counts)


def _with_text(modality: pa.ChunkedArray, settings: DuplicateSettings) -> npt.NDArray[np.bool_]:
    """Return ``(rows,)`` whether the annotation counts: where the settings leave it open, if no part of it is media."""
    if settings.text is not None:
        return np.full(len(modality), settings.text)
    plain = [one for one in pc.unique(modality).to_pylist() if not any(map(is_media, modalities_of(one)))]
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
    there = [name for name in by if name in table.column_names]
    if not there:
        raise MissingColumnError(f"duplicates: shard {part} has no column to choose by: {', '.join(map(repr, by))}")
    for name in there:
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

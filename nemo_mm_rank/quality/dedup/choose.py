"""Quality-guided deduplication over all shards: of pairs with the same fingerprint, the one that agrees best stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.models.classical.ngrams import mix
from nemo_mm_rank.quality.dedup.near import distances, near
from nemo_mm_rank.quality.dedup.settings import DuplicateSettings
from nemo_mm_rank.quality.duplicates import Ints, Keepers, UInt64s, join
from nemo_mm_rank.quality.operators.fingerprints import ANNOTATION_KEY, DATA_KEY
from nemo_mm_rank.ranking.pool import Shards, live
from nemo_mm_rank.schema import MODALITY, PAIR_ID, Modality

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
            others lie between the two.
    """

    kept: tuple[npt.NDArray[np.bool_], ...]
    groups: pa.Table

    @property
    def losers(self) -> pa.Array:
        """The ``pair_id`` of pairs that go."""
        return self.groups.filter(pc.invert(self.groups["kept"]))[PAIR_ID].combine_chunks()


def deduplicate(shards: Shards, settings: DuplicateSettings) -> Duplicates:
    """Group the pool's live pairs by their fingerprints, and choose who stays of each group.

    Duplicates are of one modality. Which one stays is the pair with the best agreement, then the least ``pair_id``;
    one without an agreement comes last. Neither the order of rows nor of shards changes anything.

    Reads small columns, one shard at a time; memory is about 60 bytes per pair, and the ids of those with a duplicate.

    Args:
        shards: with ``pair_id, modality``, the fingerprints (`operators.Fingerprints`), and one of ``settings.by``.
        settings: what is a duplicate, and which stays.

    Raises:
        MissingColumnError: a shard lacks the keys, or every column to choose by.
    """
    codes, salts, counts = _keys(shards, settings)
    groups = _groups(codes, salts, settings.radius)
    keepers = Keepers(groups)
    members: list[pa.Table] = []
    shared = np.bincount(groups, minlength=1)[groups] > 1 if len(groups) else np.zeros(0, dtype=bool)
    start = 0
    for part, rows, table in live(shards, [PAIR_ID, *settings.by]):
        agreement = _agreement(table, settings.by, part)
        ids = table[PAIR_ID].cast(pa.string())
        keepers.add(start, np.nan_to_num(agreement, nan=-np.inf), ids)
        inside = np.flatnonzero(shared[start : start + len(rows)])
        members.append(
            pa.table({"row": start + inside, PAIR_ID: ids.take(pa.array(inside)), "agreement": agreement[inside]})
        )
        start += len(rows)
    kept = keepers.kept
    bounds = np.cumsum([0, *counts]).tolist()
    parts = tuple(kept[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True))
    return Duplicates(parts, _table(pa.concat_tables(members), keepers, codes, groups) if shared.any() else _EMPTY)


_EMPTY = SCHEMA.empty_table()


def _keys(shards: Shards, settings: DuplicateSettings) -> tuple[UInt64s, UInt64s, list[int]]:
    """Return ``(n,)`` codes and salts of all live rows, duplicates having one salt and near codes; rows per shard."""
    wanted = [MODALITY, DATA_KEY, *([ANNOTATION_KEY] if settings.text else [])]
    codes, salts, counts = [], [], []
    for part, rows, table in live(shards, wanted):
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise MissingColumnError(f"duplicates: shard {part} lacks {', '.join(map(repr, missing))}")
        code = _whole(table[DATA_KEY], part)
        modality = pc.index_in(table[MODALITY].cast(pa.string()), pa.array(list(Modality), pa.string()))
        salt = mix(modality.to_numpy().astype(np.uint64) + np.uint64(1))
        if settings.text:
            salt = mix(salt ^ _whole(table[ANNOTATION_KEY], part))
        exact = np.isin(modality.to_numpy(), [list(Modality).index(one) for one in Modality if not one.is_media])
        # Keys of texts are equal or say nothing: the distance of two means nothing.
        salts.append(np.where(exact, mix(salt ^ code), salt))
        codes.append(np.where(exact, np.uint64(0), code))
        counts.append(len(rows))
    nothing = np.zeros(0, dtype=np.uint64)
    return np.concatenate([nothing, *codes]), np.concatenate([nothing, *salts]), counts


def _whole(column: pa.ChunkedArray, part: int) -> UInt64s:
    if column.null_count:
        raise MissingColumnError(f"duplicates: shard {part} has pairs without a fingerprint")
    keys: UInt64s = column.to_numpy()
    return keys


def _groups(codes: UInt64s, salts: UInt64s, radius: int) -> Ints:
    """Return ``(n,)`` groups of equal, or near, codes of one salt."""
    groups = join(np.arange(len(codes)), mix(codes) ^ salts)
    if not radius:
        return groups
    first = np.unique(groups, return_index=True)[1]  # groups are numbered from 0 on
    return near(codes[first], salts[first], radius)[groups]


def _agreement(table: pa.Table, by: Sequence[str], part: int) -> npt.NDArray[np.float64]:
    """Return ``(rows,)`` the first number that each row has; NaN where it has none."""
    there = [table[name].cast(pa.float64()) for name in by if name in table.column_names]
    if not there:
        raise MissingColumnError(f"duplicates: shard {part} has no column to choose by: {', '.join(map(repr, by))}")
    values = pc.coalesce(*[pc.if_else(pc.is_nan(column), None, column) for column in there])
    numbers: npt.NDArray[np.float64] = values.to_numpy()
    return numbers


def _table(members: pa.Table, keepers: Keepers, codes: UInt64s, groups: Ints) -> pa.Table:
    """Return the table of groups."""
    rows = members["row"].to_numpy()
    stays = keepers.keeper(rows)
    kept = keepers.kept[rows]
    agreement = members["agreement"].to_numpy()
    # The row that stays of each group, by group; then each member's.
    first = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    first[groups[rows[kept]]] = np.flatnonzero(kept)
    best = first[groups[rows]]
    bits = distances(codes[rows], codes[rows[best]])
    reasons = [
        "stays" if stay else f"{bits_apart} bits from {name}, agreement {own:.4g} against {others:.4g}"
        for stay, bits_apart, name, own, others in zip(
            kept.tolist(), bits.tolist(), stays.to_pylist(), agreement.tolist(), agreement[best].tolist(), strict=True
        )
    ]
    table = pa.table(
        [stays, members[PAIR_ID], kept, pa.array(agreement, from_pandas=True), bits, pa.array(reasons, pa.string())],
        schema=SCHEMA,
    )
    return table.sort_by([("group", "ascending"), ("kept", "descending"), (PAIR_ID, "ascending")]).combine_chunks()

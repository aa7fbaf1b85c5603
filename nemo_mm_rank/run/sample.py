"""The bounded sample of pairs that the projection is fitted on, the same however the pool is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config
from nemo_mm_rank.experts.expert import sources
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection.sample import FitSample, hashes
from nemo_mm_rank.ranking.pool import Shards
from nemo_mm_rank.schema import ANNOTATION, ERROR, MODALITY, PAIR_ID, annotation_column


def read_sample(shards: Shards, config: Config) -> FitSample:
    """Read at most ``config.projection.max_pairs`` live pairs, chosen and ordered by a hash of their ids.

    Memory: 20 bytes a pair of the pool while choosing, then the sample itself.

    Args:
        shards: with the embeddings by the configuration's experts.
        config: experts, anchor, bound, and the seed, which enters the hash.
    """
    used = [source for expert in config.experts for source in sources(expert)]
    anchor, data = annotation_column(config.anchor), [source.column for source in used]
    texts = [MODALITY, ANNOTATION]
    words, columns = gather(shards, texts, [anchor, *data], config.projection.max_pairs, config.seed)
    return FitSample(
        sources={name: columns[name] for name in data if name in columns},
        anchors=columns[anchor].values,
        modality=words[MODALITY].tolist(),
        annotations=words[ANNOTATION].tolist(),
        anchor_space=[one.column for one in used if one.model == config.anchor and one.column in columns],
        takes={one.column: one.modalities for one in used if one.modalities is not None and one.column in columns},
    )


def gather(
    shards: Shards, texts: Sequence[str], vectors: Sequence[str], max_pairs: int, seed: int, by: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Vectors]]:
    """Read columns of at most ``max_pairs`` live pairs, chosen and ordered by a hash of their ids.

    Args:
        shards: where they are.
        texts: columns of text.
        vectors: columns of embeddings; one that no pair has is left out of what is returned.
        max_pairs: the bound.
        seed: enters the hash.
        by: a column of text; the bound then holds for each of its values.

    Returns:
        Column -> ``(n,)`` objects, and column -> embeddings of ``n`` rows.
    """
    keys, parts, rows = _choose(shards, max_pairs, seed, by)
    order = np.argsort(keys, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    words: dict[str, np.ndarray] = {name: np.empty(len(order), dtype=object) for name in texts}
    columns: dict[str, Vectors] = {}
    for part in np.unique(parts):
        mine = np.flatnonzero(parts == part)
        table = shards.read(int(part), [*texts, *vectors]).take(pa.array(rows[mine]))
        frame = frames.from_table(table)
        where = place[mine]
        for name in texts:
            words[name][where] = table[name].to_pylist()
        for name in vectors:
            _put(columns, name, frames.vectors(frame, name), torch.from_numpy(where), len(order))
    return words, columns


def _choose(shards: Shards, max_pairs: int, seed: int, by: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept: dict[str | None, Chosen] = {}
    for part in range(shards.count):
        table = shards.read(part, [PAIR_ID, ERROR, *([by] if by else [])])
        rows = np.flatnonzero(pc.is_null(table[ERROR]).to_numpy(zero_copy_only=False))
        fresh = hashes(table[PAIR_ID].take(pa.array(rows)).to_pylist(), seed)
        values = np.array(table[by].to_pylist() if by else [None] * table.num_rows, dtype=object)[rows]
        for value in dict.fromkeys(values.tolist()):
            mine = values == value if by else np.ones(len(rows), dtype=bool)
            found = (fresh[mine], np.full(int(mine.sum()), part, np.int64), rows[mine])
            before = kept.get(value)
            keys, of, places = (np.concatenate(both) for both in zip(before, found, strict=True)) if before else found
            kept[value] = _smallest((keys, of, places), max_pairs if len(keys) > 2 * max_pairs else len(keys))
    if not kept:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    chosen = [_smallest(found, max_pairs) for found in kept.values()]
    keys, parts, rows = (np.concatenate(columns) for columns in zip(*chosen, strict=True))
    return keys, parts, rows


Chosen: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


def _smallest(kept: Chosen, k: int) -> Chosen:
    if len(kept[0]) <= k:
        return kept
    chosen = np.argpartition(kept[0], k - 1)[:k]
    return kept[0][chosen], kept[1][chosen], kept[2][chosen]


def _put(columns: dict[str, Vectors], name: str, part: Vectors, where: torch.Tensor, n: int) -> None:
    if part.values.shape[1] == 0:
        return
    if name not in columns:
        columns[name] = Vectors(torch.zeros((n, part.values.shape[1])), torch.zeros(n, dtype=torch.bool))
    columns[name].values[where] = part.values
    columns[name].valid[where] = part.valid

"""The best k of many scores: exact, ties by a key, and merged over shards in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank.arrays import Ints

Scores: TypeAlias = torch.Tensor | npt.NDArray[np.floating[Any]]
Keys: TypeAlias = pa.Array | pa.ChunkedArray | pa.Table | npt.NDArray[Any] | torch.Tensor | pd.Series | Sequence[Any]


def top_k(scores: Scores, k: int, tie_break: Keys | None = None) -> Ints:
    """Return the positions of the ``k`` highest scores, best first.

    Only the rows at or above the k-th score are sorted, so ``n`` may be far larger than ``k``.

    Args:
        scores: ``(n,)`` floats, on any device; infinities are fine.
        k: how many; all of them where ``k`` exceeds ``n``.
        tie_break: ``(n,)`` keys of one type that decide between equal scores, lowest first (strings by code point),
            nulls last; of a table's columns, each decides where the one before it says equal. Then, and without keys,
            the lower position wins.

    Returns:
        ``(min(k, n),)`` int64 on the host.

    Raises:
        ValueError: scores that are NaN or not one-dimensional, keys of another length, a negative ``k``.

    >>> top_k(np.array([0.1, 0.9, 0.9, 0.5]), 3).tolist()
    [1, 2, 3]
    >>> top_k(np.array([0.1, 0.9, 0.9, 0.5]), 1, tie_break=pa.array(["a", "z", "b", "c"])).tolist()
    [2]
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension, not {scores.ndim}")
    if tie_break is not None and len(tie_break) != len(scores):
        raise ValueError(f"{len(scores)} scores, but {len(tie_break)} keys to break ties with")
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")
    positions, values = _shortlist(scores, k)
    # Stable, and positions ascend: equal scores are in order of position before the keys have their say.
    order = np.argsort(-values, kind="stable")
    if tie_break is not None:
        _break_ties(order, values, positions, tie_break)
    best: Ints = positions[order[:k]]
    return best


def _shortlist(scores: Scores, k: int) -> tuple[Ints, npt.NDArray[np.floating[Any]]]:
    """Return the positions (ascending) and values of every score that is not below the k-th highest."""
    n = len(scores)
    if isinstance(scores, torch.Tensor) and scores.device.type != "cpu":
        _refuse_nan(int(torch.isnan(scores).sum()))
        if 0 < k < n:
            inside = torch.nonzero(scores >= torch.topk(scores, k, sorted=False).values.min()).flatten()
        else:
            inside = torch.arange(n if k else 0, device=scores.device)
        return inside.cpu().numpy(), scores[inside].double().cpu().numpy()
    if isinstance(scores, torch.Tensor):
        scores = scores.detach()
        values = (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()
    else:
        values = np.asarray(scores)
    _refuse_nan(int(np.isnan(values).sum()))
    if not 0 < k < n:
        return np.arange(n if k else 0), values if k else values[:0]
    positions = np.flatnonzero(values >= np.partition(values, n - k)[n - k])
    return positions, values[positions]


def _refuse_nan(count: int) -> None:
    if count:
        raise ValueError(f"{count} of the scores are NaN; a NaN has no place in a ranking")


def _break_ties(order: Ints, values: npt.NDArray[Any], positions: Ints, tie_break: Keys) -> None:
    """Reorder, in place, the stretches of ``order`` whose values are equal."""
    ranked = values[order]
    same = ranked[1:] == ranked[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    if not len(tied):
        return
    stretch = np.cumsum(np.insert(~same, 0, True))[tied]
    rows = order[tied]
    keys = _take(tie_break, positions[rows])
    columns = [stretch, *(keys.columns if isinstance(keys, pa.Table) else [keys])]
    names = [str(place) for place in range(len(columns))]
    by_key = pc.sort_indices(pa.table(columns, names=names), sort_keys=[(name, "ascending") for name in names])
    order[tied] = rows[by_key.to_numpy()]


def _take(keys: Keys, positions: Ints) -> pa.Array | pa.ChunkedArray | pa.Table:
    if isinstance(keys, (pa.Array, pa.ChunkedArray, pa.Table)):
        return keys.take(pa.array(positions))
    if isinstance(keys, pd.Series):
        return pa.array(keys.iloc[positions])
    if isinstance(keys, torch.Tensor):
        return pa.array(keys[torch.from_numpy(positions).to(keys.device)].cpu().numpy())
    if isinstance(keys, np.ndarray):
        return pa.array(keys[positions].tolist())
    return pa.array([keys[position] for position in positions])


class TopK:
    """The best ``k`` of rows that arrive shard by shard, in any order.

    Holds at most ``2 k`` rows and the shard at hand, however many shards there are.

    Attributes:
        floor: rows that score below it need not be added.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._scores: list[npt.NDArray[np.float64]] = []
        self._ids: list[pa.Array | pa.Table] = []
        self._payload: list[pa.Table] = []
        self._held = 0
        self.floor = -np.inf

    def add(
        self, scores: npt.NDArray[np.float64], ids: pa.Array | pa.ChunkedArray | pa.Table, payload: pa.Table
    ) -> None:
        """Take in ``(n,)`` scores, the keys that break ties between them, and a table of ``n`` rows to keep along.

        Raises:
            ValueError: a score that is NaN.
        """
        _refuse_nan(int(np.isnan(scores).sum()))
        if not self.k:
            return
        inside = np.flatnonzero(scores >= self.floor)
        if not len(inside):
            return
        rows = pa.array(inside)
        self._scores.append(np.asarray(scores, dtype=np.float64)[inside])
        taken = ids.take(rows)
        self._ids.append(taken if isinstance(taken, pa.Array) else taken.combine_chunks())
        self._payload.append(payload.take(rows))
        self._held += len(inside)
        if self._held > 2 * self.k:
            self._compact()

    def result(self) -> tuple[npt.NDArray[np.float64], pa.Array | pa.Table, pa.Table] | None:
        """Return scores, keys and payload of the best rows, best first; None where no row ever came."""
        if not self._held:
            return None
        self._compact()
        return self._scores[0], self._ids[0], self._payload[0]

    def _compact(self) -> None:
        scores, ids = np.concatenate(self._scores), _joined(self._ids)
        best = top_k(scores, self.k, ids)
        rows = pa.array(best)
        self._scores, self._ids = [scores[best]], [ids.take(rows)]
        self._payload = [pa.concat_tables(self._payload).take(rows).combine_chunks()]
        self._held = len(best)
        if self._held == self.k:
            self.floor = float(scores[best[-1]])


def _joined(ids: list[pa.Array | pa.Table]) -> pa.Array | pa.Table:
    return pa.concat_arrays(ids) if isinstance(ids[0], pa.Array) else pa.concat_tables(ids)

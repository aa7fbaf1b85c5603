"""Blends as lists of pairs, kept in files that say what they are made from, so that others can check them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_mm_rank.io.digest import table_digest
from nemo_mm_rank.io.parquet import read_note, read_table, write_table
from nemo_mm_rank.run.benchmark.cost import Cost
from nemo_mm_rank.schema import PAIR_ID


@dataclass(frozen=True)
class Blend:
    """What one strategy chose under one seed.

    Attributes:
        strategy: its name.
        seed: of whatever it draws.
        pair_ids: best first.
        digest: of the list.
        cost: of choosing.
    """

    strategy: str
    seed: int
    pair_ids: Sequence[str]
    digest: str
    cost: Cost

    @classmethod
    def of(cls, strategy: str, seed: int, pair_ids: Sequence[str], cost: Cost) -> Blend:
        """Return the blend of some pairs."""
        return cls(strategy, seed, list(pair_ids), table_digest(_table(pair_ids)), cost)

    def save(self, folder: Path, key: str) -> None:
        """Write ``<strategy>-<seed>.parquet``: ``pair_id, rank``; the note has key, digest and cost."""
        note = {"key": key, "digest": self.digest, "cost": asdict(self.cost)}
        write_table(file_of(folder, self.strategy, self.seed), _table(self.pair_ids), note)

    @classmethod
    def load(cls, folder: Path, strategy: str, seed: int, key: str) -> Blend | None:
        """Return the blend that was made from the same, or None."""
        path = file_of(folder, strategy, seed)
        note: dict[str, Any] | None = read_note(path)
        if note is None or note.get("key") != key:
            return None
        ids = read_table(path, [PAIR_ID])[PAIR_ID].to_pylist()
        return cls(strategy, seed, ids, note["digest"], Cost(**note["cost"]))


def file_of(folder: Path, strategy: str, seed: int) -> Path:
    """Return the file of one blend."""
    return folder / f"{strategy}-{seed}.parquet"


def _table(pair_ids: Sequence[str]) -> pa.Table:
    ranks = pa.array(range(1, len(pair_ids) + 1), pa.int64())
    return pa.table({PAIR_ID: pa.array(pair_ids, pa.string()), "rank": ranks})

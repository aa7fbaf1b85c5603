"""Blends as lists of pairs, kept in files that say what they are made from, so that others can check them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_mm_rank.io.files import read_note, read_table, table_digest, write_table
from nemo_mm_rank.models import loader
from nemo_mm_rank.schema import PAIR_ID

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """What was spent in this process.

    Attributes:
        seconds: on the clock.
        peak_bytes: resident memory at the peak; None where the system does not say, or the work is done elsewhere.
        model_items: what encoders and describers were given, what they had seen before left out; None likewise.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None
    model_items: int | None = None


@contextmanager
def measured(cold: bool, here: bool = True) -> Iterator[Cost]:
    """Measure what is done inside.

    Args:
        cold: from models not yet loaded on.
        here: whether models run in this process, not on workers.
    """
    if cold:
        loader.release()
    _reset_peak()
    before = loader.computed()
    cost = Cost()
    started = time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - started
    if here:
        cost.peak_bytes = _peak()
        cost.model_items = loader.computed() - before


def _reset_peak() -> None:
    with suppress(OSError):  # Linux alone has it; the peak is then that of the process so far
        _CLEAR.write_text("5")


def _peak() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None


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

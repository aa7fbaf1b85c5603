"""Blends as lists of pairs, kept in files that say what they are made from, so that others can check them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa

from nemo_mm_rank.errors import DamagedError, StorageError
from nemo_mm_rank.io.files import read_note, read_sealed, read_table, table_digest, write_sealed, write_table
from nemo_mm_rank.models import loader
from nemo_mm_rank.schema import PAIR_ID

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass
class Cost:
    """What was spent.

    Attributes:
        seconds: on the clock.
        peak_bytes: resident memory at the peak; None where the system does not say, or the work is done elsewhere.
        model_items: what encoders and describers were given, what they had seen before left out; None likewise.
        interrupted: starts of the same work that came to no end; their last half second, at most, is not counted.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None
    model_items: int | None = None
    interrupted: int = 0

    def add(self, earlier: Cost) -> None:
        """Add what an earlier part cost, which was interrupted."""
        self.seconds += earlier.seconds
        self.peak_bytes = max(filter(None, (self.peak_bytes, earlier.peak_bytes)), default=None)
        counted = (self.model_items, earlier.model_items)
        self.model_items = None if None in counted else sum(filter(None, counted))
        self.interrupted += earlier.interrupted + 1


_EVERY = 0.5


@contextmanager
def measured(cold: bool, here: bool = True, file: Path | None = None, key: str = "") -> Iterator[Cost]:
    """Measure what is done inside, and add what interrupted starts of the same have cost.

    Args:
        cold: from models not yet loaded on.
        here: whether models run in this process, not on workers.
        file: where the cost so far is kept while the work goes on, twice a second; None keeps nothing.
        key: of the work: what another has left in the file does not count.
    """
    earlier = None if file is None else _left(file, key)
    if cold:
        loader.release()
    _reset_peak()
    before = loader.computed()
    cost = Cost()
    started = time.perf_counter()

    def count(cost: Cost) -> Cost:
        cost.seconds = time.perf_counter() - started
        if here:
            cost.peak_bytes, cost.model_items = _peak(), loader.computed() - before
        if earlier is not None:
            cost.add(earlier)
        return cost

    def keep() -> None:
        if file is not None:
            write_sealed(file, {"key": key, "cost": asdict(count(Cost()))})

    done = Event()

    def keep_on() -> None:
        while not done.wait(_EVERY):
            with suppress(StorageError):  # the work itself will say so
                keep()

    keeper = Thread(target=keep_on, daemon=True)
    keeper.start()
    try:
        yield cost
    except BaseException:
        keep()
        raise
    finally:
        done.set()
        keeper.join()
    count(cost)


def _left(file: Path, key: str) -> Cost | None:
    """Return what an interrupted start has left of its cost."""
    try:
        record = read_sealed(file)
    except DamagedError:
        return None
    return Cost(**record["cost"]) if record["key"] == key else None


def _reset_peak() -> None:
    with suppress(OSError):  # Linux alone has it; the peak is then that of the process so far
        _CLEAR.write_text("5")


def _peak() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(sizes[0]) if sizes else None


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

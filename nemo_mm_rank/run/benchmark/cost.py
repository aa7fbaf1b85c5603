"""What a strategy costs: time, memory at the peak, and what its models had to look at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nemo_mm_rank.models import loader

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

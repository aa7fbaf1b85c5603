"""When to judge, and how fast to learn: the same for every strategy."""

from __future__ import annotations

import math


def evaluation_steps(steps: int, evaluations: int) -> tuple[int, ...]:
    """Return after which of ``steps`` to judge: at even distances, the last at the end."""
    return tuple(sorted({max(1, round(steps * (turn + 1) / evaluations)) for turn in range(evaluations)}))


def pace(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the peak learning rate: up along a line, then down to zero along a cosine.

    Args:
        step: from 0.
        steps: of the whole run.
        warm_up: share of them that it rises.
    """
    warm = max(1, round(warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

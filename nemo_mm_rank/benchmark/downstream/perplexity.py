"""What a training run leaves: held-out perplexity at set steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Perplexity:
    """Held-out perplexity of one training run.

    ``exp`` of the mean negative log-likelihood, in nats, over all annotation tokens of the validation pairs: each
    token counts once, whatever the length of its annotation.

    Attributes:
        steps: optimiser steps after which the validation pairs were judged, ascending.
        values: perplexity at each of them.
        tokens: annotation tokens learnt from until each of them: the same for every strategy.
        seconds: what the run took, judging included.
        judged: annotation tokens of the validation pairs.
        skipped: rows of the blend that could not be learnt from (no usable annotation, or media that do not open).
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    tokens: tuple[int, ...]
    seconds: float
    judged: int
    skipped: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Perplexity:
        """Return it from what `dataclasses.asdict` has made of it, by way of JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    @property
    def best(self) -> float:
        """The lowest of the values."""
        return min(self.values)

    @classmethod
    def after(cls, settings: Any, values: Iterable[float], started: float, judged: int, skipped: int) -> Perplexity:
        """Return what a run by ``settings`` has come to, which learns from ``settings.tokens`` tokens at every step.

        Args:
            settings: with ``steps, evaluations`` and ``tokens``.
            values: perplexity at each of `evaluation_steps`.
            started: when, by `time.perf_counter`.
            judged, skipped: see above.
        """
        steps, found = evaluation_steps(settings.steps, settings.evaluations), tuple(values)
        tokens = tuple(step * settings.tokens for step in steps)
        return cls(steps, found, tokens, time.perf_counter() - started, judged, skipped)


class Descent:
    """An optimiser whose learning rate rises and falls (`pace`), over clipped gradients.

    Args:
        optimiser: of torch.
        learnt: what it changes.
        steps: of the whole run.
        clip: `torch.nn.utils.clip_grad_norm_`, or accelerate's.
    """

    def __init__(self, optimiser: Any, learnt: Iterable[torch.Tensor], steps: int, clip: Any = None) -> None:
        self._optimiser, self._learnt = optimiser, list(learnt)
        self._clip = clip or torch.nn.utils.clip_grad_norm_
        schedule = torch.optim.lr_scheduler.LambdaLR
        self._schedule = schedule(optimiser, lambda step: pace(step, steps, _WARM_UP))

    def step(self) -> None:
        """Take a step by the gradients that are there, and forget them."""
        self._clip(self._learnt, _CLIP)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)


_WARM_UP = 0.1
_CLIP = 1.0


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

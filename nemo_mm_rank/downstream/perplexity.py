"""What a training run leaves: held-out perplexity at set steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

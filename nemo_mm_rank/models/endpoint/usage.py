"""What an endpoint has been asked for, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000


@dataclass
class Usage:
    """What one describer has used in this process.

    Attributes:
        requests: sent, further attempts included.
        answers: that came.
        kept: answers found on disk, which cost nothing.
        prompt_tokens: of the answers that came, as the endpoint counts them.
        completion_tokens: likewise.
        prices: of a million prompt tokens and of a million completion tokens, where they are known.
    """

    requests: int = 0
    answers: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prices: tuple[float, float] | None = None

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add one answer."""
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def cost(self) -> float | None:
        """What the answers cost, in the currency of the prices."""
        if self.prices is None:
            return None
        return (self.prompt_tokens * self.prices[0] + self.completion_tokens * self.prices[1]) / MILLION

    def __str__(self) -> str:
        """Return it as one line."""
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.requests:,} requests, {self.answers:,} answers and {self.kept:,} kept ones, "
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens{cost}"
        )

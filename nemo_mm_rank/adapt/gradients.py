"""Gradients of a batch larger than memory: embedded in parts, judged whole, and gone back through part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nemo_mm_rank.models.batches import Features

Embed = Callable[[Sequence[Features]], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def accumulate(embed: Embed, queries: Sequence[Features], targets: Sequence[Features], loss: Loss, rows: int) -> float:
    """Add the gradients of ``loss`` to the parameters behind ``embed``; return the loss.

    Where both sides fit into a pass each, that is a plain backward pass. Otherwise it is gradient caching (Gao et al.
    2021, arXiv 2101.06983): everything is embedded without a memory of how, the loss gives the gradient of each
    vector, and every part is embedded again, with the same dropout, for its vectors' gradients to flow back. The
    gradients are those of the whole batch at once.

    Args:
        embed: from items to ``(n, d)`` vectors.
        queries: ``n`` items.
        targets: ``n`` items.
        loss: from both sides' vectors to a scalar.
        rows: items of a pass.
    """
    if len(queries) <= rows:
        value = loss(embed(queries), embed(targets))
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())
    parts = [[_Part(side[at : at + rows]) for at in range(0, len(side), rows)] for side in (queries, targets)]
    sides = []
    for own in parts:
        with torch.no_grad():
            sides.append(torch.cat([part.embed(embed) for part in own]).requires_grad_())
    value = loss(*sides)
    value.backward()  # type: ignore[no-untyped-call]
    for own, side in zip(parts, sides, strict=True):
        assert side.grad is not None  # noqa: S101 (the loss is of both sides)
        for part, gradient in zip(own, torch.split(side.grad, rows), strict=True):
            part.embed(embed).backward(gradient)  # type: ignore[no-untyped-call]
    return float(value.detach())


@dataclass
class _Part:
    """Some items of a side, whose dropout is the same each time."""

    items: Sequence[Features]
    _chances: list[torch.Tensor] | None = None

    def embed(self, embed: Embed) -> torch.Tensor:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        if self._chances is None:
            self._chances = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
            return embed(self.items)
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self._chances[0])
            for device, state in zip(devices, self._chances[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return embed(self.items)

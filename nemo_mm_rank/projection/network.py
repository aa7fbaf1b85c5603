"""The network that fuses the experts: an MLP over all their embeddings, into the anchor's space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nemo_mm_rank.frames import Vectors


class FusionNetwork(nn.Module):
    """An MLP over concatenated sources; a source that a row lacks is replaced by a learnt default.

    Sources that already lie in the anchor's space are also added to the output (their mean, over those present), so
    that the network starts as the experts that need no training and learns what to change. The output is normalised.

    Args:
        sources: name -> dimension of every source, in the order in which they are concatenated.
        dim: dimension of the anchor's space.
        hidden: width of the hidden layers.
        depth: number of hidden layers; 0 is a linear map.
        dropout: share of hidden units dropped while training.
        skip: names of the sources that lie in the anchor's space.
    """

    config_keys = ("sources", "dim", "hidden", "depth", "dropout", "skip")

    def __init__(
        self,
        sources: Mapping[str, int],
        dim: int,
        hidden: int,
        depth: int,
        dropout: float = 0.0,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name in skip:
            if sources.get(name) != dim:
                raise ValueError(f"source {name!r} cannot lie in the anchor's space of {dim} dimensions")
        self.sources, self.dim, self.hidden, self.depth = dict(sources), dim, hidden, depth
        self.dropout, self.skip = dropout, tuple(skip)
        # A list, because a parameter's name may not hold the dots that a source's name may.
        self.defaults = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in self.sources.values()])
        widths = [sum(self.sources.values()), *[hidden] * depth]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from ``generator`` (PyTorch's own initialisation would use the global state)."""
        for module in self.layers:
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, sources: Mapping[str, Vectors]) -> torch.Tensor:
        """Fuse ``n`` rows: ``(n, dim)`` float32, normalised."""
        parts = [
            torch.where(sources[name].valid[:, None], sources[name].values, default)
            for name, default in zip(self.sources, self.defaults, strict=True)
        ]
        out: torch.Tensor = self.layers(torch.cat(parts, dim=1))
        if self.skip:
            there = torch.stack([sources[name].valid for name in self.skip]).sum(0).clamp(min=1)
            # Rows without a source are zero in it, so that the sum is over those present.
            out = out + torch.stack([sources[name].values for name in self.skip]).sum(0) / there[:, None]
        return F.normalize(out, dim=1)

    def config(self) -> dict[str, Any]:
        """Return the arguments that make an equal network, JSON-able."""
        return {key: getattr(self, key) for key in self.config_keys}

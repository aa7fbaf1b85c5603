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
    """An MLP over concatenated sources; what a row lacks is replaced by a learnt default.

    The first layer is a product with the concatenation, written as the sum of one product per source, so that nothing
    is computed for rows without it; the default therefore stands for the product. Sources that already lie in the
    anchor's space are also added to the output (the mean of those present): the network starts as the experts that
    need no training, and learns what to change. The output is normalised.

    Args:
        sources: name -> dimension of every source; their vectors are normalised.
        dim: dimension of the anchor's space.
        hidden: width of the hidden layers.
        depth: number of hidden layers; 0 is a linear map.
        dropout: share of every layer's inputs that is dropped while training.
        skip: names of the sources that lie in the anchor's space.

    Raises:
        ValueError: no source, or a skipped one that is not there or of another dimension.
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
        if not sources:
            raise ValueError("a fusion network needs at least one source")
        for name in skip:
            if sources.get(name) != dim:
                raise ValueError(f"source {name!r} does not lie in the anchor's space of {dim} dimensions")
        self.sources, self.dim, self.hidden, self.depth = dict(sources), dim, hidden, depth
        self.dropout, self.skip = dropout, tuple(skip)
        widths = [*[hidden] * depth, dim]
        # In lists, because a parameter's name may not hold the dots that a source's name may.
        self.first = nn.ModuleList([nn.Linear(size, widths[0], bias=False) for size in self.sources.values()])
        self.defaults = nn.ParameterList([nn.Parameter(torch.zeros(widths[0])) for _ in self.sources])
        self.bias = nn.Parameter(torch.zeros(widths[0]))
        self.rest = nn.ModuleList([nn.Linear(before, after) for before, after in itertools.pairwise(widths)])

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from ``generator`` (PyTorch's own initialisation would use the global state)."""
        weights = [parameter for parameter in self.parameters() if parameter.ndim == 2]
        for weight in weights:
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        if self.skip:
            for weight in weights[-1:] if self.depth else weights:
                nn.init.zeros_(weight)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)

    def forward(self, sources: Mapping[str, Vectors]) -> torch.Tensor:
        """Fuse ``n`` rows: ``(n, dim)`` float32, normalised."""
        return F.normalize(self.fuse(sources), dim=1)

    def fuse(self, sources: Mapping[str, Vectors], generator: torch.Generator | None = None) -> torch.Tensor:
        """Fuse ``n`` rows: ``(n, dim)`` float32, not yet normalised; with a ``generator``, inputs are dropped."""
        x: torch.Tensor = self.bias
        for name, layer, default in zip(self.sources, self.first, self.defaults, strict=True):
            column = sources[name]
            # A normalised vector has entries of variance 1 / d; here all are to have a variance of 1, whatever their d.
            scale = column.values.shape[1] ** 0.5
            there = torch.nonzero(column.valid).view(-1)
            if len(there) == len(column.valid):
                x = x + layer(self._drop(column.values * scale, generator))
            elif len(there):
                product = layer(self._drop(column.values[there] * scale, generator))
                x = x + default.expand(len(column.valid), -1).index_copy(0, there, product)
            else:
                x = x + default.expand(len(column.valid), -1)
        for layer in self.rest:
            x = layer(self._drop(F.gelu(x), generator))
        if self.skip:
            count = torch.stack([sources[name].valid for name in self.skip]).sum(0).clamp(min=1)
            # Rows without a source are zero in it, so that the sum is over those present.
            near = torch.stack([sources[name].values for name in self.skip]).sum(0) / count[:, None]
            x = x + near * self.dim**0.5
        return x

    def _drop(self, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if not self.dropout or generator is None:
            return x
        kept = torch.rand(x.shape, generator=generator, device=generator.device) >= self.dropout
        return torch.where(kept.to(x.device), x / (1 - self.dropout), 0.0)

    def config(self) -> dict[str, Any]:
        """Return the arguments that make an equal network, JSON-able."""
        return {key: getattr(self, key) for key in self.config_keys}

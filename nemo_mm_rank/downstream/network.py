"""The small language model: a causal transformer that writes annotations after a prefix made of the data's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nemo_mm_rank.frames import Vectors


@dataclass(frozen=True)
class Batch:
    """Rows of different lengths without padding: what stands in them, token after token.

    A row of ``n`` annotation tokens is read as the prefix and the first ``n - 1`` of them, and asked for all ``n``.

    Attributes:
        rows: ``(b,)`` int64, positions in the features.
        inputs: ``(t,)`` int64, ids of the tokens that are read after a prefix, row by row.
        place: ``(t,)`` int64, where each stands in the padded batch of ``b * length`` places.
        asked: ``(m,)`` int64, places whose next token is asked for.
        targets: ``(m,)`` int64, those tokens.
        length: places of a padded row, prefix included.
    """

    rows: torch.Tensor
    inputs: torch.Tensor
    place: torch.Tensor
    asked: torch.Tensor
    targets: torch.Tensor
    length: int


class PrefixLM(nn.Module):
    """A decoder of the usual kind (pre-norm, GELU, learnt positions, tied embedding) after a linear prefix.

    The prefix is ``prefix`` embeddings that are linear in the data's features (as in ClipCap, Mokady et al. 2021,
    section 3.1, with a linear mapping). Their mean is also added to every token that is read: attention to the prefix
    has to be learnt first, for which the steps of a comparison are too few. A source that a row lacks adds nothing;
    which sources it has, and so its modality, each source's bias says.

    Args:
        sources: the dimension of every feature source.
        vocabulary: number of tokens.
        width: of the embeddings.
        layers: how many blocks.
        heads: of the attention.
        prefix: number of prefix tokens.
        longest: annotation tokens of a row at most.
        dropout: share of the residual branches' outputs that is dropped while training.
    """

    def __init__(
        self,
        sources: Sequence[int],
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        prefix: int,
        longest: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.prefix, self.width, self.dropout = prefix, width, dropout
        self.sources = nn.ModuleList([nn.Linear(dim, prefix * width) for dim in sources])
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(prefix + longest, width)
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights from ``generator``: normal of deviation 0.02, what a block adds less the more there are.

        As GPT-2 (Radford et al. 2019, section 2.3). What the prefix takes from the features begins at zero: drawn, it
        would tell rows of one modality apart at random, which is all that learning them by heart needs.
        """
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            elif parameter.ndim == 1 or name.startswith("sources"):
                nn.init.zeros_(parameter)
            else:
                deviation = 0.02 / (2 * len(self.blocks)) ** 0.5 if name.endswith("out.weight") else 0.02
                nn.init.normal_(parameter, std=deviation, generator=generator)
        for source in self.sources:
            nn.init.normal_(source.bias, std=0.02, generator=generator)  # type: ignore[arg-type]

    def forward(
        self, features: Sequence[Vectors], batch: Batch, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return the logits ``(m, vocabulary)`` of the tokens asked for; with a ``generator``, branches are dropped.

        Only attention sees padded rows; everything else is computed for the tokens alone.
        """
        rows = len(batch.rows)
        front = self._prefixes(features, batch.rows)
        before = (torch.arange(rows)[:, None] * batch.length + torch.arange(self.prefix)).view(-1)
        place = torch.cat([before, batch.place])
        front = front.view(rows, self.prefix, self.width)
        spoken = self.tokens(batch.inputs) + front.mean(dim=1)[batch.place // batch.length]
        x = torch.cat([front.view(-1, self.width), spoken])
        x = x + self.positions(place % batch.length)
        for block in self.blocks:
            x = block(x, place, rows, batch.length, self.dropout, generator)
        where = torch.empty(rows * batch.length, dtype=torch.int64)
        where[place] = torch.arange(len(place))
        return F.linear(self.norm(x[where[batch.asked]]), self.tokens.weight)

    def _prefixes(self, features: Sequence[Vectors], rows: torch.Tensor) -> torch.Tensor:
        """Return ``(b, prefix * width)``."""
        front = torch.zeros(len(rows), self.prefix * self.width)
        for column, layer in zip(features, self.sources, strict=True):
            there = torch.nonzero(column.valid[rows]).view(-1)
            if len(there):
                front = front.index_add(0, there, layer(column.values[rows[there]]))
        return front


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(
        self,
        x: torch.Tensor,
        place: torch.Tensor,
        rows: int,
        length: int,
        dropout: float,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        mixed = self.attend(self.attention_norm(x))
        padded = mixed.new_zeros(rows * length, mixed.shape[1]).index_copy(0, place, mixed)
        q, k, v = padded.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Causal, and rows are padded at their ends: no token sees padding, so there is no mask to build.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        seen = seen.transpose(1, 2).reshape(rows * length, -1)[place]
        x = x + dropped(self.attention_out(seen), dropout, generator)
        return x + dropped(self.out(F.gelu(self.expand(self.norm(x)))), dropout, generator)


def dropped(x: torch.Tensor, share: float, generator: torch.Generator | None) -> torch.Tensor:
    """Drop a share of the values, by a generator of one's own: the global one is everybody's."""
    if not share or generator is None:
        return x
    return x * (torch.rand(x.shape, generator=generator) >= share) / (1 - share)

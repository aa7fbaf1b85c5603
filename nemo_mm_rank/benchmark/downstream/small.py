"""The small language model: vocabulary, network, batches of exactly so many tokens, and its training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nemo_mm_rank.benchmark.downstream.features import Features
from nemo_mm_rank.benchmark.downstream.perplexity import Descent, Perplexity, evaluation_steps
from nemo_mm_rank.benchmark.downstream.rows import usable
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.downstream.vocabulary import Tokens
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection.fit import balanced_batches
from nemo_mm_rank.vectors import threads


@dataclass(frozen=True)
class PackedRows:
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
        self, features: Sequence[Vectors], batch: PackedRows, generator: torch.Generator | None = None
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


def training_rows(
    lengths: torch.Tensor, modality: torch.Tensor, rows: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows that have ``size`` annotation tokens together, for ever, all ``rows`` over and over.

    Rows come shuffled, modalities evenly mixed. The last row of a batch is asked for only as many tokens as are
    missing, so that every strategy learns from the same number of tokens at every step.

    Args:
        lengths: ``(n,)`` int64, tokens of each annotation of the whole pool.
        modality: ``(n,)`` int64 codes of the whole pool.
        rows: ``(k,)`` int64, which of them to learn from; at least one.
        size: annotation tokens of a batch.
        generator: CPU.

    Yields:
        ``(b,)`` int64 rows, and how many of its first tokens each is asked for.
    """
    passes = balanced_batches(modality, rows, len(rows), generator)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while int(lengths[waiting].sum()) < size:
            waiting = torch.cat([waiting, next(passes)])
        total = lengths[waiting].cumsum(0)
        taken = int(torch.searchsorted(total, size)) + 1
        chosen, waiting = waiting[:taken], waiting[taken:]
        wanted = lengths[chosen].clone()
        wanted[-1] -= total[taken - 1] - size
        yield chosen, wanted


def alike(lengths: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Return the places of ``lengths`` in groups of about ``size`` together, those of like length in one."""
    ordered = lengths.argsort(stable=True)
    group = (lengths[ordered].cumsum(0) - 1) // size
    return torch.split(ordered, torch.unique_consecutive(group, return_counts=True)[1].tolist())


def training_batches(
    tokens: Tokens, modality: torch.Tensor, rows: torch.Tensor, size: int, prefix: int, generator: torch.Generator
) -> Iterator[PackedRows]:
    """Yield the batches of `training_rows`, laid out after ``prefix`` tokens each."""
    for chosen, wanted in training_rows(tokens.lengths, modality, rows, size, generator):
        yield lay_out(tokens, chosen, wanted, prefix)


def all_rows(tokens: Tokens, rows: torch.Tensor, size: int, prefix: int) -> Iterator[PackedRows]:
    """Yield every one of ``rows`` once, whole, in batches of about ``size`` tokens, those of like length together."""
    lengths = tokens.lengths[rows]
    for own in alike(lengths, size):
        yield lay_out(tokens, rows[own], lengths[own], prefix)


def lay_out(tokens: Tokens, rows: torch.Tensor, wanted: torch.Tensor, prefix: int) -> PackedRows:
    """Return the batch of ``rows`` that asks for the first ``wanted`` tokens of each (at least one)."""
    length = prefix + int(wanted.max()) - 1
    row = torch.repeat_interleave(torch.arange(len(rows)), wanted)
    step = torch.arange(len(row)) - torch.repeat_interleave(wanted.cumsum(0) - wanted, wanted)
    targets = tokens.ids[tokens.starts[rows][row] + step]
    asked = row * length + prefix - 1 + step
    # What is asked for is read next, but for each row's last token.
    read = step < wanted[row] - 1
    return PackedRows(rows, targets[read], asked[read] + 1, asked, targets, length)


_JUDGED_AT_ONCE = 8192  # tokens


def train_small(
    features: Features,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: SmallSettings,
    seed: int,
) -> Perplexity:
    """Train the small model on a blend and judge it on the validation pairs.

    Equal arguments give equal values to the bit, on one machine with one number of threads. Weights are drawn by the
    seed alone, so that strategies compared under one seed start from the same network.

    Args:
        features: of all rows that are spoken of.
        annotations: as they are to be learnt (trimmed, say), row by row as ``features``.
        blend_rows: which rows to learn from.
        validation_rows: which rows to judge; none that is learnt from.
        settings: network, optimiser, number of steps and tokens.
        seed: of weights, batches and dropout.

    Raises:
        UserError: no usable pair to learn from or to judge, or validation pairs in the blend.
    """
    started = time.perf_counter()
    blend, validation, skipped = usable(annotations, blend_rows, validation_rows)
    tokens = features.vocabulary.encode([text or "" for text in annotations], settings.longest)
    rows = torch.tensor(validation)
    judged_at = evaluation_steps(settings.steps, settings.evaluations)
    with threads(settings.threads):
        values = [
            perplexity(network, features, tokens, rows)
            for step, network in learn(features, tokens, torch.tensor(blend), settings, seed)
            if step in judged_at
        ]
    return Perplexity.after(settings, values, started, int(tokens.lengths[rows].sum()), skipped)


def learn(
    features: Features, tokens: Tokens, rows: torch.Tensor, settings: SmallSettings, seed: int
) -> Iterator[tuple[int, PrefixLM]]:
    """Yield the number of every step and the network after it, which goes on learning.

    Args:
        features: of all rows.
        tokens: of all rows.
        rows: ``(k,)`` int64, which to learn from.
        settings: network, optimiser, number of steps and tokens.
        seed: of weights, batches and dropout.
    """
    weights, order = (torch.Generator().manual_seed(2 * seed + number) for number in range(2))
    network = PrefixLM(
        [column.values.shape[1] for column in features.columns],
        len(features.vocabulary),
        settings.width,
        settings.layers,
        settings.heads,
        settings.prefix,
        settings.longest,
        settings.dropout,
    )
    network.initialise(weights)
    optimiser = torch.optim.AdamW(_groups(network, settings), lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    descent = Descent(optimiser, network.parameters(), settings.steps)
    batches = training_batches(tokens, features.modality, rows, settings.tokens, settings.prefix, order)
    for step, batch in zip(range(1, settings.steps + 1), batches, strict=False):
        loss = F.cross_entropy(network(features.columns, batch, order), batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
        yield step, network


def perplexity(network: PrefixLM, features: Features, tokens: Tokens, rows: torch.Tensor) -> float:
    """Return ``exp`` of the mean negative log-likelihood over all tokens of ``rows``."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in all_rows(tokens, rows, _JUDGED_AT_ONCE, network.prefix):
            logits = network(features.columns, batch)
            total += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
            count += len(batch.targets)
    return math.exp(total / count)


def _groups(network: PrefixLM, settings: SmallSettings) -> list[dict[str, object]]:
    """Return matrices, which decay, those that make the prefix, which learn at a rate of their own, and the rest."""
    front = {id(layer.weight) for layer in network.sources}
    own: list[torch.Tensor] = []
    slow: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for parameter in network.parameters():
        (rest if parameter.ndim == 1 else slow if id(parameter) in front else own).append(parameter)
    return [
        {"params": own, "weight_decay": settings.weight_decay},
        {"params": slow, "weight_decay": 0.0, "lr": settings.feature_rate * settings.learning_rate},
        {"params": rest, "weight_decay": 0.0},
    ]

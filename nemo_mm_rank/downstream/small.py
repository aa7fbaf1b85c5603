"""Training of the small model: the same start, steps and tokens for every strategy, held-out perplexity on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from nemo_mm_rank.downstream.batches import all_rows, training_batches
from nemo_mm_rank.downstream.corpus import Features
from nemo_mm_rank.downstream.network import PrefixLM
from nemo_mm_rank.downstream.perplexity import Perplexity
from nemo_mm_rank.downstream.rows import usable
from nemo_mm_rank.downstream.schedule import evaluation_steps, pace
from nemo_mm_rank.downstream.settings import SmallSettings
from nemo_mm_rank.downstream.vocabulary import Tokens
from nemo_mm_rank.projection.artifact import threads

_WARM_UP = 0.1
_CLIP = 1.0
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
    judged_at, values = evaluation_steps(settings.steps, settings.evaluations), []
    with threads(settings.threads):
        for step, network in learn(features, tokens, torch.tensor(blend), settings, seed):
            if step in judged_at:
                values.append(perplexity(network, features, tokens, rows))
    return Perplexity(
        steps=judged_at,
        values=tuple(values),
        tokens=tuple(step * settings.tokens for step in judged_at),
        seconds=time.perf_counter() - started,
        judged=int(tokens.lengths[rows].sum()),
        skipped=skipped,
    )


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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step, settings.steps, _WARM_UP))
    batches = training_batches(tokens, features.modality, rows, settings.tokens, settings.prefix, order)
    for step, batch in zip(range(1, settings.steps + 1), batches, strict=False):
        loss = F.cross_entropy(network(features.columns, batch, order), batch.targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimiser.step()
        schedule.step()
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

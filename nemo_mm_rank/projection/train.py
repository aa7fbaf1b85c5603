"""Training of one network: AdamW over modality-balanced batches, stopped early on pairs set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import losses
from nemo_mm_rank.projection.network import FusionNetwork

_STEPS = 5  # an epoch is at least this many batches, so that a small pool is learnt from as much as a large one

# Validation losses of epochs are noisy, and later epochs have smaller steps behind them: the last epoch that is not
# clearly worse than the best is kept.
_TOLERANCE = 1.02

History = list[dict[str, float]]
"""The training and validation loss of every epoch."""


@dataclass(frozen=True)
class TrainingSet:
    """A sample as tensors, all on one device.

    Attributes:
        sources: name -> embeddings of ``n`` rows.
        anchors: ``(n, d)`` float32, normalised.
        modality: ``(n,)`` int64 codes.
        annotation: ``(n,)`` int64 codes, equal for equal annotations.
    """

    sources: dict[str, Vectors]
    anchors: torch.Tensor
    modality: torch.Tensor
    annotation: torch.Tensor


def train(
    network: FusionNetwork,
    data: TrainingSet,
    training: torch.Tensor,
    validation: torch.Tensor,
    settings: ProjectionSettings,
    generator: torch.Generator,
) -> History:
    """Train ``network`` in place and leave it with the weights of its last good epoch.

    The learning rate falls to zero along a cosine. An epoch is once through the training rows, or five batches where
    there are fewer.

    Args:
        network: initialised.
        data: the whole sample.
        training: row positions, on the CPU.
        validation: row positions, without the training annotations; where empty, the training loss decides.
        settings: the objective and its optimiser.
        generator: CPU; of batches and dropout.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.max_epochs)
    history: History = []
    best, waited = float("inf"), 0
    weights = _weights(network)
    batches = balanced_batches(data.modality, training, settings.batch_size, generator)
    steps = max(_STEPS, round(len(training) / settings.batch_size))
    for _ in range(settings.max_epochs):
        seen = []
        for rows in islice(batches, steps):
            optimiser.zero_grad(set_to_none=True)
            loss = objective(network, data, rows, settings, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen.append(float(loss.detach()))
        schedule.step()
        judged = trained = sum(seen) / len(seen)
        if len(validation):
            with torch.no_grad():
                judged = float(objective(network, data, validation, settings))
        history.append({"training": trained, "validation": judged})
        best = min(best, judged)
        if judged <= best * _TOLERANCE:
            waited, weights = 0, _weights(network)
        else:
            waited += 1
        if waited >= settings.patience:
            break
    network.load_state_dict(weights)
    return history


def objective(
    network: FusionNetwork,
    data: TrainingSet,
    rows: torch.Tensor,
    settings: ProjectionSettings,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the weighted sum of the objective's terms on ``rows``."""
    rows = rows.to(data.anchors.device)
    anchors, modality = data.anchors[rows], data.modality[rows]
    sources = {name: Vectors(column.values[rows], column.valid[rows]) for name, column in data.sources.items()}
    projected = network.fuse(sources, generator)
    total = torch.zeros((), device=projected.device)
    if settings.contrastive_weight:
        contrast = losses.contrastive_loss(projected, anchors, settings.temperature, data.annotation[rows])
        total = total + settings.contrastive_weight * contrast
    if settings.alignment_weight:
        total = total + settings.alignment_weight * losses.alignment_loss(projected, anchors)
    if settings.residual_bias_weight:
        total = total + settings.residual_bias_weight * losses.residual_bias_loss(projected, anchors, modality)
    biased = F.normalize(projected, dim=1) if settings.normalise_bias else projected
    if settings.cluster_bias_weight:
        total = total + settings.cluster_bias_weight * losses.cluster_bias_loss(biased, modality)
    if settings.scale_bias_weight:
        total = total + settings.scale_bias_weight * losses.scale_bias_loss(biased, modality)
    return total


def balanced_batches(
    modality: torch.Tensor, rows: torch.Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield all ``rows`` over and over, in batches that each hold every modality in its share of the whole.

    Each time through, each modality's rows are shuffled and laid out evenly, so that a rare one is not missing from
    most batches and crowded in one.

    Args:
        modality: ``(n,)`` int64 codes of the whole sample.
        rows: positions in it, on the CPU.
        batch_size: aimed at; batches differ by one row at most.
        generator: CPU.
    """
    codes = modality.cpu()
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        place = torch.empty(len(rows), dtype=torch.float64)
        for code in range(int(codes.max()) + 1):
            own = torch.nonzero(codes[shuffled] == code).view(-1)
            start = torch.rand((), generator=generator, dtype=torch.float64)
            place[own] = (torch.arange(len(own), dtype=torch.float64) + start) / max(1, len(own))
        order = shuffled[place.argsort(stable=True)]
        yield from torch.tensor_split(order, max(1, round(len(rows) / batch_size)))


def _weights(network: FusionNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

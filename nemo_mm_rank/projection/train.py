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
from nemo_mm_rank.projection.classes import TargetClasses
from nemo_mm_rank.projection.mamcl import active_rows, mamcl_loss
from nemo_mm_rank.projection.network import FusionNetwork

_STEPS = 5  # an epoch is at least this many batches, so that a small pool is learnt from as much as a large one

# Validation losses of epochs are noisy, and later epochs have smaller steps behind them: the last epoch that is not
# clearly worse than the best is kept.
_TOLERANCE = 1.02

History = list[dict[str, float]]
"""The training and validation loss of every epoch; for MAMCL, the share of rows that had a negative."""


@dataclass(frozen=True)
class TrainingSet:
    """A sample as tensors, all on one device.

    Attributes:
        sources: name -> embeddings of ``n`` rows.
        anchors: ``(n, d)`` float32, normalised.
        modality: ``(n,)`` int64 codes.
        annotation: ``(n,)`` int64 codes, equal for equal annotations.
        classes: for MAMCL, what each pair's data are made of, and which are equal.
    """

    sources: dict[str, Vectors]
    anchors: torch.Tensor
    modality: torch.Tensor
    annotation: torch.Tensor
    classes: TargetClasses | None = None

    def twins(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ids of equal annotations and, where they are known, of equal data: ``(k, 1 or 2)`` int64."""
        ids = [self.annotation[rows]] + ([self.classes.content[rows]] if self.classes else [])
        return torch.stack(ids, dim=1)


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
    together = 2 if data.classes else 1
    batches = balanced_batches(data.modality, training, settings.batch_size, generator, together)
    steps = max(_STEPS, round(len(training) / settings.batch_size))
    for _ in range(settings.max_epochs):
        seen, active = [], []
        for rows in islice(batches, steps):
            optimiser.zero_grad(set_to_none=True)
            loss = objective(network, data, rows, settings, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen.append(float(loss.detach()))
            if data.classes:
                active.append(float(active_rows(data.classes.codes[rows], data.twins(rows)).double().mean()))
        schedule.step()
        judged = trained = sum(seen) / len(seen)
        if len(validation):
            with torch.no_grad():
                judged = float(objective(network, data, validation, settings))
        history.append({"training": trained, "validation": judged})
        if active:
            history[-1]["active"] = sum(active) / len(active)
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
    if settings.mamcl_weight:
        assert data.classes is not None, "made where the weight is set"  # noqa: S101
        # The annotation asks, its data are to be found: the other way round all targets are texts, and one class.
        found = F.normalize(projected, dim=1)
        own = mamcl_loss(anchors, found, data.classes.codes[rows], settings.mamcl_temperature, groups=data.twins(rows))
        total = total + settings.mamcl_weight * own
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
    modality: torch.Tensor, rows: torch.Tensor, batch_size: int, generator: torch.Generator, together: int = 1
) -> Iterator[torch.Tensor]:
    """Yield all ``rows`` over and over, in batches that each hold every modality in its share of the whole.

    Each time through, each modality's rows are shuffled and laid out evenly, so that a rare one is not missing from
    most batches and crowded in one.

    Args:
        modality: ``(n,)`` int64 codes of the whole sample.
        rows: positions in it, on the CPU.
        batch_size: aimed at; batches differ by one row at most.
        generator: CPU.
        together: rows of a modality with fewer than this many for each batch are laid out in bunches of so many, each
            of them in one batch: some batches have none rather than many a lone one.
    """
    codes = modality.cpu()
    batches = max(1, round(len(rows) / batch_size))
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        place = torch.empty(len(rows), dtype=torch.float64)
        for code in range(int(codes.max()) + 1):
            own = torch.nonzero(codes[shuffled] == code).view(-1)
            start = torch.rand((), generator=generator, dtype=torch.float64)
            place[own] = (torch.arange(len(own), dtype=torch.float64) + start) / max(1, len(own))
            if len(own) < together * batches:
                place[own] = _bunched(place[own], together, batches)
        order = shuffled[place.argsort(stable=True)]
        yield from torch.tensor_split(order, batches)


def _bunched(place: torch.Tensor, together: int, batches: int) -> torch.Tensor:
    """Move places in [0, 1), ascending, into the middle of batches, so many into the same one."""
    first = place[torch.arange(len(place)).div(together, rounding_mode="floor") * together]
    return ((first * batches).floor() + 0.5) / batches


def _weights(network: FusionNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

"""Training of one network: AdamW over modality-balanced batches, stopped early on pairs set aside."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import losses
from nemo_mm_rank.projection.network import FusionNetwork


class Trainer:
    """A sample as tensors, and how a network is trained on some of its rows.

    Args:
        sources: name -> embeddings of ``n`` rows.
        anchors: ``(n, d)``.
        modality: ``(n,)`` int64 codes.
        groups: ``(n,)`` int64 codes, equal for equal annotations.
        settings: network and objective.
    """

    def __init__(
        self,
        sources: dict[str, Vectors],
        anchors: torch.Tensor,
        modality: torch.Tensor,
        groups: torch.Tensor,
        settings: ProjectionSettings,
    ) -> None:
        self.sources, self.anchors, self.modality, self.groups = sources, anchors, modality, groups
        self.settings = settings

    def train(
        self, network: FusionNetwork, training: torch.Tensor, validation: torch.Tensor, generator: torch.Generator
    ) -> list[dict[str, float]]:
        """Train ``network`` in place and leave it with the weights of its best epoch.

        Args:
            network: initialised.
            training: row positions.
            validation: row positions, without the training annotations; where empty, the training loss decides.
            generator: of batches and dropout.

        Returns:
            The training and validation loss of every epoch.
        """
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        history: list[dict[str, float]] = []
        best, best_weights, waited = float("inf"), copy.deepcopy(network.state_dict()), 0
        for _ in range(self.settings.max_epochs):
            network.train()
            total = count = 0.0
            for rows in balanced_batches(self.modality, training, self.settings.batch_size, generator):
                optimiser.zero_grad(set_to_none=True)
                loss = self.loss(network, rows)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total, count = total + float(loss.detach()) * len(rows), count + len(rows)
            network.eval()
            trained = total / count
            with torch.no_grad():
                judged = float(self.loss(network, validation)) if len(validation) else trained
            history.append({"training": trained, "validation": judged})
            if judged < best:
                best, best_weights, waited = judged, copy.deepcopy(network.state_dict()), 0
            else:
                waited += 1
                if waited >= self.settings.patience:
                    break
        network.load_state_dict(best_weights)
        return history

    def loss(self, network: FusionNetwork, rows: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the objective's terms on ``rows``."""
        settings = self.settings
        taken = {name: Vectors(column.values[rows], column.valid[rows]) for name, column in self.sources.items()}
        anchors, modality = self.anchors[rows], self.modality[rows]
        projected = network(taken)
        terms = []
        if settings.contrastive_weight:
            contrast = losses.contrastive_loss(projected, anchors, settings.temperature, self.groups[rows])
            terms.append(settings.contrastive_weight * contrast)
        if settings.residual_bias_weight:
            terms.append(settings.residual_bias_weight * losses.residual_bias_loss(projected, anchors, modality))
        if settings.cluster_bias_weight:
            terms.append(settings.cluster_bias_weight * losses.cluster_bias_loss(projected, modality))
        if settings.scale_bias_weight:
            terms.append(settings.scale_bias_weight * losses.scale_bias_loss(projected, modality))
        return torch.stack(terms).sum()


def balanced_batches(
    modality: torch.Tensor, rows: torch.Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield all ``rows`` once, in batches that each hold every modality in its share of the whole.

    Each modality's rows are shuffled and laid out evenly over the epoch, so that a rare one is not missing from most
    batches and crowded in one.
    """
    position = torch.empty(len(rows), dtype=torch.float64)
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    for code in torch.unique(modality[shuffled]):
        own = torch.nonzero(modality[shuffled] == code).view(-1)
        start = torch.rand((), generator=generator, dtype=torch.float64)
        position[own] = (torch.arange(len(own), dtype=torch.float64) + start) / len(own)
    yield from torch.chunk(shuffled[position.argsort(stable=True)], max(1, round(len(rows) / batch_size)))

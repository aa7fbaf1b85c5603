"""Cross-fitting: as many networks as folds, each trained on all folds but its own, and measured on its own."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.evaluation import matched_gap, modality_gap, recall_at_k
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection.artifact import Projection, threads
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.projection.sample import FitSample, folds_of, hashes
from nemo_mm_rank.projection.train import Trainer

log = logging.getLogger(__name__)

_VALIDATION = 10  # one annotation in this many of the training folds is set aside for early stopping


def fit(sample: FitSample, settings: ProjectionSettings, seed: int, device: str = "cpu") -> Projection:
    """Fit one network per fold.

    The fold of a pair is a stable hash of its annotation, so that equal annotations share one, here and in any new
    pool. The same sample, settings, seed and versions give the same networks.

    Args:
        sample: in the order of `choose_sample`, for a fit that does not depend on how the pool is sharded.
        settings: network, objective and folds.
        seed: of folds, weights, batches and dropout.
        device: where to train.

    Raises:
        ModelError: counts that do not fit, or values that are not finite.
    """
    sample.check()
    sources = {
        name: Vectors(column.values.to(device, torch.float32), column.valid.to(device))
        for name, column in sample.sources.items()
        if bool(column.valid.any())
    }
    anchors = F.normalize(sample.anchors.to(device, torch.float32), dim=1)
    rows = len(anchors)
    keys = hashes(sample.annotations, seed)
    trainer = Trainer(sources, anchors, codes(list(sample.modality), rows, device), codes(keys, rows, device), settings)
    folds = torch.from_numpy(folds_of(sample.annotations, settings.folds, seed))
    aside = torch.from_numpy(keys // np.uint64(settings.folds) % np.uint64(_VALIDATION) == 0)
    networks, histories = [], []
    with threads(settings.threads):
        for fold in range(settings.folds):
            generator = torch.Generator().manual_seed((seed << 8) + fold)
            network = FusionNetwork(
                {name: column.values.shape[1] for name, column in sources.items()},
                anchors.shape[1],
                settings.hidden,
                settings.depth,
                settings.dropout,
                [name for name in sample.anchor_space if name in sources],
            )
            network.initialise(generator)
            network.to(device)
            training = torch.nonzero((folds != fold) & ~aside).view(-1)
            validation = torch.nonzero((folds != fold) & aside).view(-1)
            if len(torch.unique(trainer.groups[training.to(device)])) > 1:
                histories.append(trainer.train(network, training, validation, generator))
            else:
                log.warning("projection: fold %d has nothing to learn from; its network stays untrained", fold)
                histories.append([])
            networks.append(network)
    projection = Projection(networks, seed, {})
    projection.metrics = {
        "losses": histories,
        "folds": [_measure(projection, sample, sources, anchors, folds == fold) for fold in range(settings.folds)],
    }
    projection.metrics["mean"] = _mean(projection.metrics["folds"])
    return projection


def _measure(
    projection: Projection, sample: FitSample, sources: dict[str, Vectors], anchors: torch.Tensor, held: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Return gap, matched gap and recall on the held-out rows, of the fused space and each source in the same space."""
    chosen = torch.nonzero(held).view(-1)
    taken = {name: Vectors(column.values[chosen], column.valid[chosen]) for name, column in sources.items()}
    spaces = {"fused": projection.project(taken, [sample.annotations[row] for row in chosen.tolist()])}
    spaces |= {name: taken[name] for name in sample.anchor_space if name in taken}
    modality = np.asarray(list(sample.modality), dtype=object)[chosen.numpy()].astype(str)
    return {
        name: geometry(column.values[column.valid], anchors[chosen][column.valid], modality[column.valid.cpu().numpy()])
        for name, column in spaces.items()
        if bool(column.valid.any())
    }


def geometry(data: torch.Tensor, annotation: torch.Tensor, modality: Any) -> dict[str, float]:
    """Return ``n``, ``gap``, ``matched_gap`` and ``recall_at_1 / 5 / 10`` of one space."""
    data = F.normalize(data, dim=1)
    return {
        "n": len(data),
        "gap": modality_gap(data, modality),
        "matched_gap": matched_gap(data, annotation, modality),
        **{f"recall_at_{k}": recall_at_k(data, annotation, k)["average"] for k in (1, 5, 10)},
    }


def _mean(folds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each measure's mean over the folds that have it; ``n`` is their sum."""
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for fold in folds for name in fold):
        found = [fold[name] for fold in folds if name in fold]
        out[name] = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        out[name]["n"] = sum(one["n"] for one in found)
    return out

"""Cross-fitting: as many networks as folds, each trained on all folds but its own, and measured on its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.evaluation.gaps import Square, matched_gap_square, modality_gap_square, pooled
from nemo_mm_rank.evaluation.geometry import recalls
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection.artifact import Projection, threads
from nemo_mm_rank.projection.classes import target_classes
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.projection.sample import FitSample, folds_of, hashes
from nemo_mm_rank.projection.train import History, TrainingSet, train

log = logging.getLogger(__name__)

VERSION = 2
"""Of what a fit leaves behind, and of what its metrics mean."""

_VALIDATION = 20  # one annotation in this many of the training folds is set aside for early stopping
_SEARCHED = 4096  # held-out pairs of a fold that search each other: recall costs their square
_RECALLS = (1, 5, 10)

Measures = dict[str, float | None]


def fit(sample: FitSample, settings: ProjectionSettings, seed: int, device: str = "cpu") -> Projection:
    """Fit one network per fold.

    The fold of a pair is a stable hash of its annotation, so that equal annotations share one, here and in any new
    pool. The same sample, settings, seed, versions and device give the same networks, to the bit.

    Args:
        sample: in an order that does not depend on how the pool is stored (by `sample.hashes` of the pair ids, say).
        settings: network, objective and folds.
        seed: of folds, weights, batches and dropout.
        device: where to train.

    Returns:
        The projection. Its ``metrics`` are of held-out pairs only: ``folds`` and their ``mean``, each with ``n``,
        ``gap``, ``matched_gap``, ``recall_at_1``, ``recall_at_5`` and ``recall_at_10`` (mean of both directions) of
        ``fused`` and of every source in the anchor's space; and the ``losses`` of every fold's epochs. ``n`` counts
        the pairs that have the source; to be comparable, recall is the share of all held-out pairs. Gaps are those of
        `evaluation.gaps`, without the noise of few annotations, with ``<gap>_low`` and ``_high`` (95 %, bootstrap);
        their mean is the root of the folds' mean square; None where no modality has two annotations in a fold.
        ``mamcl``, where it is a term: `classes.TargetClasses.summary`, and the share of rows that had a negative in
        their batch.

    Raises:
        ModelError: counts that do not fit, values that are not finite, or, for MAMCL, an impossible modality.
    """
    sample.check()
    data = _tensors(sample, device)
    if settings.mamcl_weight:
        data = replace(data, classes=target_classes(sample, data.sources))
    folds = torch.from_numpy(folds_of(sample.annotations, settings.folds, seed))
    aside = torch.from_numpy(
        hashes(sample.annotations, seed) // np.uint64(settings.folds) % np.uint64(_VALIDATION) == 0
    )
    skip = [name for name in sample.anchor_space if name in data.sources]

    def fit_fold(fold: int) -> tuple[FusionNetwork, History]:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(int(hashes([f"fold {fold}"], seed)[0] >> np.uint64(1)))
        network = _network(data, skip, settings)
        network.initialise(generator)
        network.to(device)
        training = torch.nonzero((folds != fold) & ~aside).view(-1)
        if len(torch.unique(data.annotation[training.to(device)])) < 2:
            log.warning(
                "projection: fold %d leaves too few annotations to learn from; its network is as it began", fold
            )
            return network, []
        validation = torch.nonzero((folds != fold) & aside).view(-1)
        return network, train(network, data, training, validation, settings, generator)

    # Each network has one thread to itself: faster than several for each in turn, and the same whatever their number.
    with threads(1), ThreadPoolExecutor(settings.threads) as pool:
        networks, losses = zip(*pool.map(fit_fold, range(settings.folds)), strict=True)
    projection = Projection(networks, seed, {})
    with threads(1):
        measured = [
            _measure(projection, sample, data, torch.nonzero(folds == fold).view(-1), fold)
            for fold in range(settings.folds)
        ]
    spaces = dict.fromkeys(name for fold in measured for name in fold)
    projection.metrics = {
        "mean": {name: _measures([fold[name] for fold in measured if name in fold]) for name in spaces},
        "folds": [{name: _measures([space]) for name, space in fold.items()} for fold in measured],
        "losses": list(losses),
    }
    if data.classes:
        projection.metrics["mamcl"] = {**data.classes.summary, "active": _active(losses)}
    return projection


def _active(losses: Sequence[History]) -> float:
    """Return the share of rows that had a negative, over all batches; most standing alone is said."""
    shares = [epoch["active"] for history in losses for epoch in history]
    active = sum(shares) / len(shares) if shares else 0.0
    if active < 0.5:
        log.warning("projection: MAMCL: %.0f %% of the rows stood alone in their batches", 100 * (1 - active))
    return active


def _tensors(sample: FitSample, device: str) -> TrainingSet:
    """Put a sample on the device, without the sources that none of its rows has."""
    rows = len(sample.anchors)
    return TrainingSet(
        sources={
            name: Vectors(column.values.to(device, torch.float32), column.valid.to(device))
            for name, column in sample.sources.items()
            if bool(column.valid.any())
        },
        anchors=F.normalize(sample.anchors.to(device, torch.float32), dim=1),
        modality=codes(list(sample.modality), rows, device),
        annotation=codes(list(sample.annotations), rows, device),
    )


def _network(data: TrainingSet, skip: Sequence[str], settings: ProjectionSettings) -> FusionNetwork:
    sizes = {name: column.values.shape[1] for name, column in data.sources.items()}
    return FusionNetwork(sizes, data.anchors.shape[1], settings.hidden, settings.depth, settings.dropout, skip)


@dataclass(frozen=True)
class _Space:
    """What is measured of one space in one fold."""

    n: int
    gaps: dict[str, Square]
    recalls: dict[str, float]


def _measure(
    projection: Projection, sample: FitSample, data: TrainingSet, rows: torch.Tensor, fold: int
) -> dict[str, _Space]:
    """Measure the fused space, and each source in the same space, on the rows of a fold."""
    where = rows.to(data.anchors.device)
    sources = {name: Vectors(column.values[where], column.valid[where]) for name, column in data.sources.items()}
    modality = np.array([sample.modality[row] for row in rows.tolist()])
    spaces = {"fused": projection.project(sources, [sample.annotations[row] for row in rows.tolist()])}
    spaces |= {name: sources[name] for name in sample.anchor_space if name in sources}
    return {
        name: _geometry(column, data.anchors[where], modality, data.annotation[where], fold)
        for name, column in spaces.items()
        if bool(column.valid.any())
    }


def _geometry(
    column: Vectors, anchors: torch.Tensor, modality: npt.NDArray[np.str_], contents: torch.Tensor, fold: int
) -> _Space:
    """Return the measures of one space; a pair that has no embedding in it is not found."""
    data, annotation = F.normalize(column.values[column.valid], dim=1), anchors[column.valid]
    present = modality[column.valid.cpu().numpy()]
    gaps = {
        "gap": modality_gap_square(data, present, contents[column.valid], fold),
        "matched_gap": matched_gap_square(data, annotation, present, contents[column.valid], fold),
    }
    share = len(data) / len(anchors)
    found = recalls(data[:_SEARCHED], annotation[:_SEARCHED], _RECALLS)
    return _Space(len(data), gaps, {f"recall_at_{k}": share * one["average"] for k, one in found.items()})


def _measures(folds: Sequence[_Space]) -> Measures:
    """Return each measure of a space over some folds: ``n`` is a sum, recall a mean, a gap the root of a mean."""
    found: Measures = {"n": sum(one.n for one in folds)}
    for name in folds[0].gaps:
        gap = pooled([one.gaps[name] for one in folds]).gap()
        for key, value in ((name, gap.value), (f"{name}_low", gap.low), (f"{name}_high", gap.high)):
            found[key] = None if np.isnan(value) else value
    return found | {name: float(np.mean([one.recalls[name] for one in folds])) for name in folds[0].recalls}

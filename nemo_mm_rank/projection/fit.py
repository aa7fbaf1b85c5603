"""Cross-fitting: as many networks as folds, each trained on all folds but its own, and measured on its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.measures.gaps import Square, matched_gap_square, modality_gap_square, pooled
from nemo_mm_rank.measures.geometry import recalls
from nemo_mm_rank.projection import losses
from nemo_mm_rank.projection.losses import codes
from nemo_mm_rank.projection.mamcl import TargetClasses, active_rows, mamcl_loss, target_classes
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.projection.step import Projection
from nemo_mm_rank.sampling import FitSample, folds_of, hashes
from nemo_mm_rank.vectors import threads

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

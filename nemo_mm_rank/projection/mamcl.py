"""Modality-aware masked contrastive learning: a target is told apart from targets of its own modality alone."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.modality import code_of, name_of
from nemo_mm_rank.projection.losses import Modalities, check_vectors, codes
from nemo_mm_rank.sampling import FitSample

Targets: TypeAlias = Sequence[str] | Sequence[Iterable[str]] | Sequence[int] | npt.NDArray[Any] | torch.Tensor
"""What each target is made of: ``"image"``, ``"text, image"`` or ``{"text", "image"}``; or a code, at least 1."""


class LoneRowsWarning(UserWarning):
    """Most rows of a batch have no negative of their class, and teach nothing."""


def mamcl_loss(
    queries: torch.Tensor,
    targets: torch.Tensor,
    target_modality: Targets,
    temperature: float = 0.03,
    negatives: torch.Tensor | None = None,
    *,
    symmetric: bool = False,
    groups: Modalities | None = None,
) -> torch.Tensor:
    """Return the mean over rows of finding one's own target among those of its modality.

    ``mean_i [ logsumexp over k with g_k = g_i of q_i.c_k / t  -  q_i.c_i / t ]`` where ``g`` is the *target's* modality
    set; the query's does not matter (MAMCL of UNITE, arXiv 2505.19650, as in the authors' code). It is the mean, by
    size, of InfoNCE inside each class. A row without a negative of its class contributes 0 and counts in the mean.

    The loss does not change where all targets of a modality move along together, so scores of different modalities
    are not comparable after it: rank within a modality, calibrate, or add a term without the mask.

    For queries that are annotations and targets that are data, that is: which image among the images. The other
    way round every target is a text, and the loss is InfoNCE.

    Args:
        queries: ``(n, d)`` float, used as given: normalise them first where cosines are meant.
        targets: ``(n, d)`` float, row i belonging to row i of ``queries``.
        target_modality: ``n`` modality sets, see `modality_codes`; sets are compared exactly.
        temperature: above 0.
        negatives: ``(m, d)`` float, more targets that are nobody's own: negatives of every row, whatever their
            modality (the authors' hard negatives).
        symmetric: average with the other direction, masked as well (an extension: the authors' own reverse direction
            is not masked, and has none of the ``negatives``, as here).
        groups: ``(n,)`` names or ids, or an ``(n, k)`` tensor of ids; rows that share one (equal annotations, equal
            data: `equal_rows`) are not each other's negatives. Default: none do.

    Returns:
        A scalar.

    Raises:
        ValueError: wrong shapes, a temperature that is not positive, a value that is not finite, or a modality set
            that is unknown or empty.

    Warns:
        LoneRowsWarning: more than half of the rows have no negative.
    """
    check_vectors(queries, "queries")
    check_vectors(targets, "targets", queries)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    rivals = _rivals(modality_codes(target_modality, len(queries)).to(queries.device), groups)
    own = torch.arange(len(queries), device=queries.device)
    scores = (queries @ targets.T).to(torch.promote_types(queries.dtype, torch.float32)) / temperature
    # One's own target is always there, so that no row is without any.
    masked = scores.masked_fill(~(rivals | (own[:, None] == own)), float("-inf"))
    forward = masked
    if negatives is not None:
        check_vectors(negatives, "negatives")
        if negatives.shape[1] != targets.shape[1]:
            raise ValueError(f"negatives must have {targets.shape[1]} dimensions, not {negatives.shape[1]}")
        forward = torch.cat([masked, (queries @ negatives.T).to(scores.dtype) / temperature], dim=1)
    elif 2 * (active := int(rivals.any(1).sum())) < len(own):
        alone = len(own) - active
        message = f"MAMCL: {alone} of {len(own)} rows have no negative of their class, and teach nothing"
        warnings.warn(message, LoneRowsWarning, stacklevel=2)
    loss = F.cross_entropy(forward, own)
    return (loss + F.cross_entropy(masked.T, own)) / 2 if symmetric else loss


def active_rows(target_modality: Targets, groups: Modalities | None = None) -> torch.Tensor:
    """Return which rows have a negative of their class, and so teach something: ``(n,)`` bool.

    Args:
        target_modality: as for `mamcl_loss`.
        groups: as for `mamcl_loss`.

    Raises:
        ValueError: a modality set that is unknown or empty, or ids of another number of rows.
    """
    return _rivals(modality_codes(target_modality), groups).any(1)


def modality_codes(target_modality: Targets, rows: int | None = None, content: Targets | None = None) -> torch.Tensor:
    """Return modality sets as sums of `modalities.MODALITY_CODES`: ``(n,)`` int64.

    Args:
        target_modality: names (``"image"``), names put together by commas or pluses (``"text, image"``; order and
            spaces do not matter), collections of names, or codes. A code may be any number from 1 on: it is only
            compared.
        rows: how many there must be.
        content: what the targets are in fact made of, in the same form.

    Raises:
        ValueError: an unknown or empty name, a code below 1, another number than ``rows``, or a set that contradicts
            its ``content``.
    """
    found = _codes(target_modality)
    if rows is not None and found.shape != (rows,):
        raise ValueError(f"there must be one target modality for each of {rows} rows, not {len(found)}")
    if content is not None:
        truth = modality_codes(content, len(found))
        wrong = torch.nonzero(found != truth).view(-1).tolist()
        if wrong:
            said, true = (name_of(int(which[wrong[0]])) for which in (found, truth))
            first = f"row {wrong[0]} is said to be {said!r} and is {true!r}"
            raise ValueError(f"{len(wrong)} of {len(found)} target modalities contradict their content: {first}")
    return found


def equal_rows(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return ids that are equal for rows that are equal to the bit: ``(n,)`` int64.

    A hash of each row's bits, modulo 2**64, so that memory stays at a block of rows; different rows share an id with a
    probability of 2**-32 at most.

    Args:
        values: ``(n, d)`` float32.
        seed: of the hash.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randint(-(2**63), 2**63 - 1, (values.shape[1],), generator=generator).to(values.device)
    blocks = torch.split(values.contiguous().view(torch.int32), 4096)
    empty = torch.zeros(0, dtype=torch.int64, device=values.device)
    return torch.cat([empty, *((block.long() * factors).sum(1) for block in blocks)])


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, ``(world * n, ...)``, in order of rank; without a process group, ``rows``.

    `mamcl_loss` over gathered queries, targets, codes and groups is the loss of the whole batch, the same on every
    process. Each process's own rows keep their gradient, so that a process's gradient is its part of the whole: add
    them up (DistributedDataParallel averages; multiply by the number of processes where the scale matters).

    Args:
        rows: ``(n, ...)``, of the same shape on every process.

    Raises:
        ValueError: processes that differ in shape.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    if any(not torch.equal(shape, other) for other in shapes):
        raise ValueError(f"processes must have batches of one shape, not {[tuple(one.tolist()) for one in shapes]}")
    parts = [torch.empty_like(rows) for _ in shapes]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def _rivals(classes: torch.Tensor, groups: Modalities | None) -> torch.Tensor:
    """Return ``(n, n)`` bool: whether target k is a negative of row i."""
    rivals = classes[:, None] == classes
    rivals.fill_diagonal_(False)
    if groups is not None:
        ids = groups if isinstance(groups, torch.Tensor) else codes(groups, len(classes))
        if len(ids) != len(classes):
            raise ValueError(f"there must be ids for each of {len(classes)} rows, not {len(ids)}")
        for column in ids.to(classes.device).view(len(ids), -1).T:
            rivals &= column[:, None] != column
    return rivals


def _codes(labels: Targets) -> torch.Tensor:
    if not isinstance(labels, torch.Tensor):
        array = np.asarray(labels) if isinstance(labels, np.ndarray) or _integers(labels) else None
        if array is None or array.dtype.kind in "OU":
            return torch.from_numpy(_named(list(labels)))
        labels = torch.from_numpy(array)
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(f"target modalities are names or a vector of integers, not {labels.dtype}")
    if bool((labels < 1).any()):
        raise ValueError(f"a target modality is a code from 1 on, not {int(labels.min())}: 0 stands for no modality")
    return labels.long()


def _integers(labels: Any) -> bool:
    return len(labels) > 0 and all(isinstance(label, (int, np.integer)) for label in labels)


def _named(labels: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Look each different label up once."""
    try:
        keys = [label if isinstance(label, str) else frozenset(label) for label in labels]
    except TypeError as error:
        raise ValueError(f"target modalities are names, collections of names, or codes: {error}") from error
    known = {key: code_of(key) for key in set(keys)}
    return np.array([known[key] for key in keys], dtype=np.int64)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetClasses:
    """The targets of a sample: the data, which an annotation is to find among data of the same modality set.

    Attributes:
        codes: ``(n,)`` int64 class of each.
        content: ``(n,)`` int64 ids, equal for equal data, which are not each other's negatives.
        summary: pairs by class, those that are alone in theirs, those whose data another one has too; JSON-able.
    """

    codes: torch.Tensor
    content: torch.Tensor
    summary: dict[str, Any]


def target_classes(sample: FitSample, sources: Mapping[str, Vectors]) -> TargetClasses:
    """Class the targets of ``sample``; say what can not be learnt from.

    Args:
        sample: the pairs.
        sources: their embeddings, on any device.

    Raises:
        ModelError: a modality that is unknown, or that contradicts the pair's content: an embedding that only data of
            another modality can have.
    """
    try:
        codes = modality_codes(sample.modality)
    except ValueError as error:
        raise ModelError(f"projection: MAMCL: {error}") from error
    for name, column in sources.items():
        if name in sample.takes:
            _check_content(name, codes, column.valid.cpu(), code_of(sample.takes[name]))
    ids = torch.stack([equal_rows(torch.cat([c.values, c.valid[:, None].float()], 1)) for c in sources.values()], 1)
    content, counts = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)[1:]
    members = Counter(map(name_of, codes.tolist()))
    alone = sorted(name for name, count in members.items() if count == 1)
    if alone:
        log.warning(
            "projection: MAMCL: alone in their class, so that nothing is learnt from them: %s", ", ".join(alone)
        )
    equal = int(counts[counts > 1].sum())
    if equal:
        log.warning(
            "projection: MAMCL: %d pairs have data that another pair has too; no negatives of each other", equal
        )
    summary = {"pairs": dict(sorted(members.items())), "alone": alone, "equal_data": equal}
    return TargetClasses(codes.to(content.device), content, summary)


def _check_content(source: str, codes: torch.Tensor, there: torch.Tensor, takes: int) -> None:
    wrong = torch.nonzero(there & ((codes & takes) == 0)).view(-1).tolist()
    if wrong:
        said = ", ".join(sorted({repr(name_of(int(codes[row]))) for row in wrong}))
        raise ModelError(
            f"projection: MAMCL: {len(wrong)} of {len(codes)} pairs are said to be {said}, but have an embedding in "
            f"{source!r}, which only {name_of(takes)} data have"
        )

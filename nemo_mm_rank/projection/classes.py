"""What MAMCL needs to know of a sample: each target's class, which targets are equal, and who stands alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.modalities import code_of, name_of
from nemo_mm_rank.projection.mamcl import equal_rows, modality_codes
from nemo_mm_rank.projection.sample import FitSample

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

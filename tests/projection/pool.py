"""A small made-up pool: what every modality says is a noisy, turned copy of its annotation's embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import FitSample

DIM = 12
QUICK = ProjectionSettings(
    hidden=16,
    temperature=0.1,
    alignment_weight=1.0,
    residual_bias_weight=1.0,
    learning_rate=2e-2,
    batch_size=64,
    max_epochs=8,
)


def made_up(n: int, seed: int = 0, twins: int = 0) -> FitSample:
    """Return ``n`` pairs: ``words`` in the anchor's space for all, ``sight`` (8-d) for images, ``code`` for code.

    The last ``twins`` pairs have the annotation of the first ones.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = F.normalize(torch.randn(n, DIM, generator=generator), dim=1)
    anchors[n - twins :] = anchors[:twins]
    modality = [("image", "image", "code", "text")[row % 4] for row in range(n)]
    image, code = (torch.tensor([kind == name for kind in modality]) for name in ("image", "code"))
    turn = torch.randn(DIM, 8, generator=generator)
    drift = torch.where(image[:, None], 1.5 * F.normalize(torch.ones(DIM), dim=0), torch.zeros(DIM))
    words = F.normalize(anchors + drift + 0.3 * torch.randn(n, DIM, generator=generator), dim=1)
    sight = F.normalize(anchors @ turn, dim=1)
    own = F.normalize(anchors + 0.2 * torch.randn(n, DIM, generator=generator), dim=1)
    return FitSample(
        sources={
            "words": Vectors.full(words),
            "sight": Vectors(sight * image[:, None], image),
            "code": Vectors(own * code[:, None], code),
        },
        anchors=anchors,
        modality=modality,
        annotations=[f"annotation {row if row < n - twins else row - (n - twins)}" for row in range(n)],
        anchor_space=("words", "code"),
    )


def take(sources: dict[str, Vectors], rows: torch.Tensor) -> dict[str, Vectors]:
    """Return some rows of every source."""
    return {name: Vectors(column.values[rows], column.valid[rows]) for name, column in sources.items()}

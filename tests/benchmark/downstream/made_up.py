"""Made-up features and annotations: what an annotation says, its features tell, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from nemo_mm_rank.benchmark.downstream.features import Features
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.downstream.vocabulary import Vocabulary
from nemo_mm_rank.frames import Vectors

COLOURS = ("red", "green", "blue", "yellow")
THINGS = ("dog", "cat", "car", "tree")

QUICK = SmallSettings(
    steps=100,
    tokens=256,
    evaluations=4,
    width=32,
    heads=2,
    vocabulary=64,
    dropout=0.0,
    learning_rate=5e-3,
    feature_rate=1.0,
)


def corpus(n: int = 240, seed: int = 0) -> Features:
    """Return ``n`` rows of two modalities; one row's data cannot be read."""
    random = np.random.default_rng(seed)
    colour, thing = random.integers(4, size=n), random.integers(4, size=n)
    annotations: list[str | None] = [f"a {COLOURS[i]} {THINGS[j]} here" for i, j in zip(colour, thing, strict=True)]
    told = torch.from_numpy(np.concatenate([np.eye(4)[colour], np.eye(4)[thing]], axis=1)).float() * 2 - 0.5
    modality = torch.arange(n) % 2
    valid = torch.arange(n) != n - 1
    columns = tuple(Vectors(told * (own := (modality == code) & valid)[:, None], own) for code in range(2))
    vocabulary = Vocabulary.fit([text for text in annotations if text], QUICK.vocabulary)
    return Features({"pool": [f"pair-{row}" for row in range(n)]}, annotations, modality, columns, vocabulary)


def moved(annotations: list[str | None], rows: range) -> list[str | None]:
    """Give every one of ``rows`` the annotation of another."""
    out = list(annotations)
    for place, row in enumerate(rows):
        out[row] = annotations[rows[(place + 7) % len(rows)]]
    return out

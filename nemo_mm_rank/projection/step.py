"""The fitted projection, applied to one partition."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.projection.artifact import CONFIG, WEIGHTS, Projection
from nemo_mm_rank.schema import ANNOTATION, FUSED, VECTOR, annotation_column
from nemo_mm_rank.steps import Added, Step

AGREEMENT = "agreement"
"""Cosine of the fused data with its own annotation, out of sample (float32 in [-1, 1])."""


class ProjectionStep(Step):
    """Adds the fused embedding, and how well it agrees with the pair's own annotation.

    Both are out of sample: a pair is projected by the network of its own fold, which never saw its annotation.

    Args:
        folder: where `Projection.save` wrote.
        sources: names of the columns that the projection was fitted on.
        anchor: the model that embedded the annotations.
    """

    name = "projection"

    def __init__(self, folder: str | Path, sources: Sequence[str], anchor: str) -> None:
        self.folder, self.sources, self.anchor = str(folder), tuple(sources), anchor
        self._device = "cpu"
        self._projection: Projection | None = None

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The sources, the annotation and its embedding."""
        columns = dict.fromkeys((*self.sources, annotation_column(self.anchor)), VECTOR)
        return {ANNOTATION: pa.string(), **columns}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The fused embedding and the agreement."""
        return {FUSED: VECTOR, AGREEMENT: pa.float32()}

    def setup(self, device: str | None = None) -> None:
        """Load the projection, once per process and content of its folder."""
        self._device = pick_device(device)
        self._projection = _load(self.folder, _digest(self.folder), self._device)

    def process(self, rows: Frame) -> Added:
        """Project ``rows``; a pair without any source, or with a value that is not finite, fails."""
        assert self._projection is not None, "setup runs before every frame"  # noqa: S101
        sources = {name: frames.vectors(rows, name, self._device) for name in self.sources}
        anchors = frames.vectors(rows, annotation_column(self.anchor), self._device)
        texts = frames.strings(rows, ANNOTATION)
        fused = self._projection.project(sources, [text or "" for text in texts])
        anchored = anchors.valid & torch.isfinite(anchors.values).all(1)
        good = fused.valid & torch.isfinite(fused.values).all(1) & anchored
        errors: dict[int, PairError] = {}
        for row in torch.nonzero(~good).view(-1).tolist():
            if not bool(anchored[row]):
                errors[row] = EmbeddingError("the annotation has no usable embedding")
            elif not bool(fused.valid[row]):
                errors[row] = EmbeddingError("no expert embedded the data")
            else:
                errors[row] = EmbeddingError("the fused embedding is not finite")
        agreement = torch.zeros(len(good), device=fused.values.device)
        agreement[good] = F.cosine_similarity(fused.values[good], anchors.values[good], dim=1)
        column = pa.array(agreement.cpu().numpy(), pa.float32(), mask=~good.cpu().numpy())
        return Added({FUSED: Vectors(fused.values, good), AGREEMENT: column}, errors)

    def identity(self) -> dict[str, Any]:
        """Return the name and a digest of the fitted projection."""
        return {"step": self.name, "projection": _digest(self.folder), "sources": self.sources, "anchor": self.anchor}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_projection": None}  # weights do not travel: each worker reads the folder


@lru_cache(maxsize=2)
def _load(folder: str, digest: str, device: str) -> Projection:
    # The digest is part of the key so that a folder that was written anew is read anew.
    return Projection.load(folder, device)


def _digest(folder: str) -> str:
    """Return a digest of the files that make a projection.

    Raises:
        ModelError: where one of them is missing.
    """
    total = hashlib.blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS):
        try:
            total.update(hashlib.blake2b((Path(folder) / name).read_bytes()).digest())
        except OSError as error:
            raise ModelError(f"{folder} holds no projection: {error}") from error
    return total.hexdigest()

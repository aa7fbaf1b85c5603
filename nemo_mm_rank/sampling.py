"""Which pairs a fit reads, and which of its networks may see them: stable hashes, so no file layout matters."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class FitSample:
    """What a projection is fitted on: at most `ProjectionSettings.max_pairs` pairs, in memory.

    Attributes:
        sources: name -> embeddings ``(n, d_source)`` of the data.
        anchors: ``(n, d)`` float32 embeddings of the annotations by the anchor.
        modality: ``n`` names.
        annotations: ``n`` texts; equal ones share a fold.
        anchor_space: the sources that lie in the anchor's space.
        takes: source -> the modalities whose data it can embed, where that is known.
    """

    sources: dict[str, Vectors]
    anchors: torch.Tensor
    modality: Sequence[str]
    annotations: Sequence[str]
    anchor_space: Sequence[str] = ()
    takes: Mapping[str, Collection[str]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `ModelError` for counts that differ, unknown names, and values that are not finite."""
        n = len(self.anchors)
        if not n or not self.sources:
            raise ModelError("a projection needs at least one pair and one source to be fitted on")
        counts = {"modality": len(self.modality), "annotations": len(self.annotations)}
        counts |= {name: len(vectors.values) for name, vectors in self.sources.items()}
        for name, count in counts.items():
            if count != n:
                raise ModelError(f"projection: {name!r} has {count} rows, the anchors have {n}")
        if not any(bool(column.valid.any()) for column in self.sources.values()):
            raise ModelError("projection: no expert embedded any pair of the sample")
        for name in self.anchor_space:
            if name not in self.sources or self.sources[name].values.shape[1] != self.anchors.shape[1]:
                raise ModelError(f"projection: {name!r} is not a source in the anchor's space")
        for name, values in {"the anchors": self.anchors, **{k: v.values for k, v in self.sources.items()}}.items():
            broken = int((~torch.isfinite(values)).any(1).sum())
            if broken:
                raise ModelError(f"projection: {name} hold NaN or infinite values in {broken} of {n} rows")


def hashes(texts: Sequence[str], seed: int) -> Keys:
    """Return a stable 64-bit hash of each text: ``(n,)`` uint64, the same in every process and version."""
    key = str(seed).encode()
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest() for text in texts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def folds_of(annotations: Sequence[str], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each annotation: ``(n,)`` int64 in ``0 .. folds - 1``; equal texts share one."""
    return (hashes(annotations, seed) % np.uint64(folds)).astype(np.int64)

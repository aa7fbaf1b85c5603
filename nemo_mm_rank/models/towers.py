"""Two towers, one of text and one of media, that embed into one space: what CLIP, SigLIP and CLAP have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError, PairError, nearest
from nemo_mm_rank.models.base import Encoded, Item
from nemo_mm_rank.models.batches import Features, FixedRows, ahead, stacked
from nemo_mm_rank.models.contract import support, usable
from nemo_mm_rank.models.parts import POOLINGS, pool
from nemo_mm_rank.schema import Modality

CPU_ROWS, DEVICE_ROWS = 16, 128
"""Media of a forward pass; on a device, where its memory allows."""


class TwoTowers(ABC):
    """An encoder of text and media by a model that has a tower for each.

    An item's vector is the same to the bit whatever else is in the batch: every forward pass has the same number of
    rows, filled up with repetitions. On a GPU that number is at most ``batch_size``, by what its memory holds, and
    another number moves a vector by the rounding of the type that it is computed in.

    Args:
        name: what the configuration calls it.
        revision: what its weights are.
        device: where it runs.
        batch_size: rows of a forward pass; default: 16 on a CPU, 128 elsewhere.
        pooling: how the vectors of an item's parts become one: ``mean`` or ``medoid``.

    Attributes:
        dim: of the space; set by a subclass once its model is loaded.
    """

    modalities: frozenset[str]
    dim: int

    def __init__(self, name: str, revision: str, device: str, batch_size: int | None, pooling: str) -> None:
        if pooling not in POOLINGS:
            raise ModelError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}{nearest(pooling, POOLINGS)}")
        if batch_size is not None and batch_size < 1:
            raise ModelError(f"batch_size is at least 1, not {batch_size}")
        self.name = name
        self.revision = revision
        self._device = torch.device(device)
        on_cpu = self._device.type == "cpu"
        self._rows = batch_size or (CPU_ROWS if on_cpu else DEVICE_ROWS)
        # On a CPU the model has the cores; one thread prepares what comes next in its pauses.
        self._threads = 1 if on_cpu else min(8, os.cpu_count() or 1)
        self._pooling = pooling
        self._run = FixedRows(self._device)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``; ``vectors`` is on the model's device.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        if modality == Modality.TEXT:
            encoded = Encoded(self._embed_texts([str(item) for item in items]))
        else:
            encoded = self._embed_media(items)
        return usable(encoded, self, len(items))

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Return ``(n, dim)`` float32, L2-normalised, on the device."""

    @abstractmethod
    def _parts(self, item: Item) -> Sequence[Any]:
        """Return what the media tower is to see of ``item``.

        Raises:
            PairError: it cannot be embedded.
        """

    @abstractmethod
    def _prepare(self, part: Any) -> Features:
        """Return the model's input for one part, one row; called in other threads."""

    @abstractmethod
    def _media(self, batch: Features) -> torch.Tensor:
        """Run the media tower: ``(rows, dim)``."""

    def _embed_media(self, items: Sequence[Item]) -> Encoded:
        errors: dict[int, PairError] = {}
        parts: list[Any] = []
        counts: list[int] = []
        for row, item in enumerate(items):
            try:
                own = self._parts(item)
            except PairError as error:
                errors[row] = error
            else:
                parts.extend(own)
                counts.append(len(own))
        vectors = torch.full((len(items), self.dim), float("nan"), device=self._device)
        if parts:
            embedded = pool(self._embed_parts(parts), counts, self._pooling)
            vectors[[row for row in range(len(items)) if row not in errors]] = embedded
        return Encoded(vectors, errors)

    def _embed_parts(self, parts: Iterable[Any]) -> torch.Tensor:
        prepared = ahead(self._prepare, parts, self._threads, 2 * self._rows)
        return torch.cat([self._run(self._media, batch, self._rows) for batch in stacked(prepared, self._rows)])

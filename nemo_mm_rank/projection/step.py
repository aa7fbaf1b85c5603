"""A fitted projection: one network per fold, applied so that no network ever sees an annotation it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io.files import folder_digest, reading, write_json, write_tensors
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.sampling import folds_of
from nemo_mm_rank.schema import AGREEMENT, ANNOTATION, FUSED, VECTOR, annotation_column
from nemo_mm_rank.steps import Added, Step
from nemo_mm_rank.vectors import threads

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# Rows are projected in blocks of this shape, whatever comes in: the arithmetic of a matrix product may depend on its
# shape, and a pair's embedding must not depend on the pairs beside it.
_BLOCK = 256


class Projection:
    """Networks by fold, and which of them a pair belongs to.

    Attributes:
        networks: one per fold, of one architecture; network k was trained without the annotations of fold k.
        seed: of the hash that gives an annotation its fold.
        metrics: what was measured on held-out pairs when it was fitted (JSON-able).
    """

    def __init__(self, networks: Sequence[FusionNetwork], seed: int, metrics: Mapping[str, Any]) -> None:
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self.seed, self.metrics = seed, dict(metrics)

    @property
    def sources(self) -> dict[str, int]:
        """Name -> dimension of every source that the networks take."""
        return dict(self._first.sources)

    @property
    def dim(self) -> int:
        """Dimension of the fused space."""
        return self._first.dim

    @property
    def _first(self) -> FusionNetwork:
        network = self.networks[0]
        assert isinstance(network, FusionNetwork)  # noqa: S101 (for the type checker: a ModuleList holds any module)
        return network

    def to(self, device: str | torch.device) -> Projection:
        """Move the networks to ``device``."""
        self.networks.to(device)
        return self

    def project(self, sources: Mapping[str, Vectors], annotations: Sequence[str]) -> Vectors:
        """Fuse ``n`` rows, each with the network that never saw its annotation.

        A row's result is the same, to the bit, whatever rows are beside it and however many threads there are.

        Args:
            sources: name -> embeddings of ``n`` rows; all of `sources`, on the networks' device. A source that no row
                has may be of any width.
            annotations: ``n`` texts.

        Returns:
            ``(n, dim)`` normalised float32; not valid where a row has no source at all.

        Raises:
            ModelError: a source is missing, of another dimension, or of another number of rows.
        """
        rows = len(annotations)
        inputs = {name: self._source(name, size, sources, rows) for name, size in self.sources.items()}
        device = self._first.bias.device
        out = torch.zeros(rows, self.dim, device=device)
        there = torch.stack([column.valid for column in inputs.values()], dim=1)
        folds = torch.from_numpy(folds_of(annotations, len(self.networks), self.seed)).to(device)
        # Rows that have the same sources go together: then every product is over a whole block.
        kinds, kind = torch.unique(torch.cat([folds[:, None], there.long()], dim=1), dim=0, return_inverse=True)
        with torch.inference_mode(), threads(1):
            for index, (fold, *has) in enumerate(kinds.tolist()):
                if not any(has):
                    continue
                for chosen in torch.split(torch.nonzero(kind == index).view(-1), _BLOCK):
                    block = {name: _block(inputs[name], chosen, bool(h)) for name, h in zip(inputs, has, strict=True)}
                    out[chosen] = self.networks[fold](block)[: len(chosen)]
        return Vectors(out, there.any(1))

    def _source(self, name: str, size: int, sources: Mapping[str, Vectors], rows: int) -> Vectors:
        if name not in sources:
            raise ModelError(f"projection: source {name!r} is missing; there are {', '.join(map(repr, sources))}")
        column = sources[name]
        if len(column.valid) != rows:
            raise ModelError(f"projection: source {name!r} has {len(column.valid)} rows for {rows} annotations")
        if column.values.shape[1] == size:
            return column
        if bool(column.valid.any()):
            raise ModelError(
                f"projection: source {name!r} has {column.values.shape[1]} dimensions, but it was fitted with {size}"
            )
        return Vectors(column.values.new_zeros(rows, size), column.valid)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each atomically.

        Raises:
            UserError: the folder is not ours to write: models of others have files of these names, too.
        """
        folder = Claim("projection").make(folder)
        write_tensors(folder / WEIGHTS, self.networks.state_dict())
        config = {"network": self._first.config(), "folds": len(self.networks), "seed": self.seed}
        write_json(folder / CONFIG, {**config, "metrics": self.metrics})

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Projection:
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing, is not of its format (a pickle, say), or does not fit the other.
        """
        folder = Path(folder)
        with reading(folder, "projection"):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            networks = [FusionNetwork(**config["network"]) for _ in range(config["folds"])]
            projection = cls(networks, config["seed"], config["metrics"])
            projection.networks.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        return projection.to(device)


def _block(column: Vectors, rows: torch.Tensor, there: bool) -> Vectors:
    """Take ``rows`` of a column, which all have it or all lack it, into a block of fixed shape, zero beyond them."""
    values = column.values.new_zeros(_BLOCK, column.values.shape[1])
    if there:
        values[: len(rows)] = column.values[rows]
    return Vectors(values, torch.full((_BLOCK,), there, device=values.device))


class ProjectionStep(Step):
    """Adds the fused embedding, and how well it agrees with the pair's own annotation.

    Both are out of sample: a pair is projected by the network of its own fold, which never saw its annotation.

    Args:
        folder: where `Projection.save` wrote.
        sources: names of the columns that the projection was fitted on.
        anchor: the model that embedded the annotations.
    """

    name = "projection"
    loaded = ("_projection",)  # each worker reads the folder

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


@lru_cache(maxsize=2)
def _load(folder: str, digest: str, device: str) -> Projection:
    # The digest is part of the key so that a folder that was written anew is read anew.
    return Projection.load(folder, device)


def _digest(folder: str) -> str:
    return folder_digest(folder, (CONFIG, WEIGHTS), "projection")

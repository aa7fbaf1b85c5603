"""A fitted projection: one network per fold, applied so that no network ever sees an annotation it was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.parquet import write_atomically, write_json
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.projection.sample import folds_of

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
                f"projection: source {name!r} has {column.values.shape[1]} dimensions, it was fitted with {size}"
            )
        return Vectors(column.values.new_zeros(rows, size), column.valid)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, each atomically.

        Raises:
            UserError: the folder is not ours to write: models of others have files of these names, too.
        """
        folder = Claim("projection").make(folder)
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.networks.state_dict().items()}

        def write(path: Path) -> None:
            path.write_bytes(save(weights))

        write_atomically(folder / WEIGHTS, write)
        config = {"network": self._first.config(), "folds": len(self.networks), "seed": self.seed}
        write_json(folder / CONFIG, {**config, "metrics": self.metrics})

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Projection:
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing, is not of its format (a pickle, say), or does not fit the other.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            networks = [FusionNetwork(**config["network"]) for _ in range(config["folds"])]
            projection = cls(networks, config["seed"], config["metrics"])
            projection.networks.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            line = " ".join(str(error).split())
            raise ModelError(f"{folder} holds no projection: {type(error).__name__}: {line}") from error
        return projection.to(device)


def _block(column: Vectors, rows: torch.Tensor, there: bool) -> Vectors:
    """Take ``rows`` of a column, which all have it or all lack it, into a block of fixed shape, zero beyond them."""
    values = column.values.new_zeros(_BLOCK, column.values.shape[1])
    if there:
        values[: len(rows)] = column.values[rows]
    return Vectors(values, torch.full((_BLOCK,), there, device=values.device))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside: with another number, sums may be rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

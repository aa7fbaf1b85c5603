"""Agreement against what other pairs get: negCLIPLoss, by embeddings that are there.

Wang et al., "CLIPLoss and norm-based data selection methods for multimodal contrastive learning" (2024, arXiv
2405.19547): a pair's cosine less ``temperature / 2`` times the logarithms of the sums, over a batch, of
``exp(cosine / temperature)`` of its data with all annotations and of its annotation with all data; the mean over
several batches. An annotation that fits everything is no evidence for its data, and one that fits little else is.

The batches are samples of the pool that are drawn once, and the pair takes part in each of them, so that its score does
not depend on the pairs beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.quality.operators.settings import OthersSettings, column
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import PAIR_ID, VECTOR, annotation_column, data_column
from nemo_mm_rank.steps import Added, Step
from nemo_mm_rank.vectors import products


@dataclass(frozen=True)
class Batches:
    """Pairs of a pool, in batches, embedded in one space.

    Attributes:
        data, annotations: ``(m, d)`` of unit length.
        keys: ``(m,)`` int64, what each pair is told by (`keys_of`).
        bounds: where the batches begin and end, ``k + 1`` ascending.
    """

    data: torch.Tensor
    annotations: torch.Tensor
    keys: npt.NDArray[np.int64]
    bounds: Sequence[int]

    @classmethod
    def of(cls, data: Vectors, annotations: Vectors, pair_ids: Sequence[str], settings: OthersSettings) -> Batches:
        """Take the pairs that have both sides, as they come: all in one where they do not fill a batch."""
        unit, named = [], [data, annotations]
        good = torch.ones(len(pair_ids), dtype=torch.bool)
        for side in named:
            norms = side.values.norm(dim=1, keepdim=True)
            good &= side.valid & torch.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
            unit.append(side.values / norms)
        rows = torch.nonzero(good).view(-1)[: settings.batches * settings.batch_size]
        count = max(1, len(rows) // settings.batch_size)
        bounds = [place * len(rows) // count for place in range(count + 1)]
        keys = keys_of([pair_ids[row] for row in rows.tolist()])
        return cls(unit[0][rows].contiguous(), unit[1][rows].contiguous(), keys, bounds)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return them as `load` reads them."""
        bounds = torch.tensor(self.bounds)
        return {
            "data": self.data,
            "annotations": self.annotations,
            "keys": torch.from_numpy(self.keys),
            "bounds": bounds,
        }

    @classmethod
    def load(cls, path: str, name: str) -> Batches:
        """Read what ``tensors`` was written of under ``name``.

        Raises:
            ConfigError: the file holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(f"{name}.{key}") for key in ("data", "annotations", "keys", "bounds")}
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"operators.others.{name}: {path}: {' '.join(str(error).split())}") from error
        return cls(tensors["data"], tensors["annotations"], tensors["keys"].numpy(), tensors["bounds"].tolist())


def keys_of(pair_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return what pairs are told by: ``(n,)`` hashes of their ids."""
    return hashes(pair_ids, 0).view(np.int64)


def neg_clip_loss(
    data: Vectors, annotations: Vectors, keys: npt.NDArray[np.int64], batches: Batches, temperature: float
) -> npt.NDArray[np.float32]:
    """Return ``(n,)`` negCLIPLoss, NaN where a side is missing, zero or not finite.

    Args:
        data, annotations: ``(n, d)`` embeddings of the pairs, of any norm.
        keys: ``(n,)`` of the pairs: one that is in a batch already does not join it twice.
        batches: what each pair is compared with.
        temperature: that of the model.

    >>> import torch
    >>> from nemo_mm_rank.frames import Vectors
    >>> others = Batches(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), np.array([7]), [0, 1])
    >>> pair = Vectors.full(torch.tensor([[1.0, 0.0]]))
    >>> neg_clip_loss(pair, pair, np.array([1]), others, 1.0).round(4)  # 1 - (log(e + 1) + log(e + e)) / 2
    array([-0.5032], dtype=float32)
    """
    both = (data.valid & annotations.valid)[:, None]
    left, right = (torch.where(both, side.values.float(), float("nan")) for side in (data, annotations))
    out = np.full(len(left), np.nan, dtype=np.float32)
    own_keys, theirs = torch.from_numpy(keys), torch.from_numpy(batches.keys)
    sides = [side.to(left.device) / temperature for side in (batches.annotations, batches.data)]
    for (where, of_data), (_, of_annotations) in zip(products(left, sides[0]), products(right, sides[1]), strict=True):
        x, y = (torch.nn.functional.normalize(side[where], dim=1, eps=0.0) for side in (left, right))
        cosine = (x * y).sum(1)
        there = torch.isin(own_keys[where], theirs)
        itself = own_keys[where][there, None] == theirs
        total = torch.zeros_like(cosine)
        for logits in (of_data, of_annotations):
            logits[there.to(logits.device)] = logits[there.to(logits.device)].masked_fill(
                itself.to(logits.device), -torch.inf
            )
            for first, end in zip(batches.bounds, batches.bounds[1:], strict=False):
                total += _logsumexp(logits[:, first:end], cosine / temperature)
        scores = cosine - temperature / 2 * total / (len(batches.bounds) - 1)
        out[where] = scores.cpu().numpy()
    return np.where(np.isfinite(out), out, np.float32("nan"))


def _logsumexp(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return ``(b,)`` the logarithm of the sum of the exponentials of ``(b, m)`` and ``(b,)``; the first are lost."""
    largest = torch.maximum(logits.amax(1), own)
    return largest + (logits.sub_(largest[:, None]).exp_().sum(1) + (own - largest).exp()).log()


@dataclass
class OthersStep(Step):
    """Adds negCLIPLoss in each space that the settings name; null for a pair that lacks a side there.

    Args:
        others: operator -> space, and what was drawn of the pool for it.
    """

    others: Mapping[str, OthersSettings]
    name: str = "quality-others"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The id, and the embeddings of both sides."""
        columns: dict[str, pa.DataType] = {PAIR_ID: pa.string()} if self.others else {}
        for operator in self.others.values():
            columns |= {data_column(operator.expert): VECTOR, annotation_column(operator.model): VECTOR}
        return columns

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per operator."""
        return {column(name): pa.float32() for name in self.others}

    def setup(self, device: str | None = None) -> None:
        """Read the batches, once per process and content of their files.

        Raises:
            ConfigError: there are none.
        """
        for name, operator in self.others.items():
            if operator.reference is None:
                raise ConfigError(f"operators.others.{name}: no reference; the ecodatum job draws one of its pool")
            _batches(operator.reference, file_digest(operator.reference), name)

    def identity(self) -> dict[str, Any]:
        """Settings, and what the files hold."""
        settings = {
            name: operator.model_dump(mode="json", exclude={"reference"}) for name, operator in self.others.items()
        }
        files = {name: operator.reference and file_digest(operator.reference) for name, operator in self.others.items()}
        return {"step": self.name, "others": settings, "references": files}

    def process(self, rows: Frame) -> Added:
        """See `neg_clip_loss`.

        Raises:
            ConfigError: embeddings of another dimension than the batches'.
        """
        keys = keys_of([text or "" for text in frames.strings(rows, PAIR_ID)])
        columns: dict[str, pa.Array | Vectors] = {}
        for name, operator in self.others.items():
            batches = _batches(str(operator.reference), file_digest(str(operator.reference)), name)
            sides = [
                frames.vectors(rows, side) for side in (data_column(operator.expert), annotation_column(operator.model))
            ]
            if not all(bool(side.valid.any()) for side in sides) or not len(batches.keys):
                columns[column(name)] = pa.nulls(len(rows), pa.float32())
                continue
            sizes = {side.values.shape[1] for side in sides} | {batches.data.shape[1]}
            if len(sizes) > 1:
                raise ConfigError(f"operators.others.{name}: embeddings of {sorted(sizes)} dimensions share no space")
            scores = neg_clip_loss(sides[0], sides[1], keys, batches, operator.temperature)
            columns[column(name)] = pa.array(scores, pa.float32(), from_pandas=True)
        return Added(columns)


@lru_cache(maxsize=8)
def _batches(path: str, digest: str, name: str) -> Batches:
    # The digest is part of the key so that a file that was written anew is read anew.
    return Batches.load(path, name)

"""Objectives by examples: how close a pair is to a set of others, in every space that they are embedded in.

NormSim (Wang et al., "CLIPLoss and norm-based data selection methods for multimodal contrastive learning", 2024,
arXiv 2405.19547): the norm of a pair's cosines with all examples. With ``inf`` the nearest one counts alone, with 2
all of them do. Here the 2-norm is over the root of their number, which changes no order, so that a pair that has to
be left out of its own examples is not the worse for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import Query
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.modality import is_media, names
from nemo_mm_rank.schema import DATA, ERROR, FUSED, MEDIA_ROOT, MODALITY, PAIR_ID, annotation_column, data_column
from nemo_mm_rank.vectors import products

KIND = "kind"
"""Column of what an example is made of: ``pairs``, ``media`` or ``texts`` (`io.examples.Kind`)."""

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """The embedded examples of one query.

    Attributes:
        rows: in canonical columns, with ``kind``; those that were embedded.
        columns: column of embeddings -> ``(m, d)`` of unit length, and which of them are there.
        failed: examples that could not be embedded, with the reasons.
    """

    rows: pa.Table
    columns: Mapping[str, Vectors]
    failed: tuple[str, ...] = ()

    @classmethod
    def load(cls, file: Path) -> Examples:
        """Read what `run.fits.Fits.examples` keeps."""
        table = read_table(file)
        good = table.filter(pc.is_null(table[ERROR])).combine_chunks()
        frame = frames.from_table(good)
        named = [name for name in good.column_names if _is_embedding(name)]
        columns = {name: _unit(frames.vectors(frame, name)) for name in named}
        reasons = tuple(reason for reason in table[ERROR].to_pylist() if reason is not None)
        rows = good.select([name for name in good.column_names if name not in (*named, ERROR)])
        return cls(rows, {name: column for name, column in columns.items() if bool(column.valid.any())}, reasons)

    def digest(self) -> str:
        """Return a digest of the embeddings."""
        state = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            state.update(name.encode() + column.values.numpy().tobytes() + column.valid.numpy().tobytes())
        return state.hexdigest()


@dataclass(frozen=True)
class Likeness:
    """A query by examples, as what scores pairs.

    Those of the examples that are the pair itself do not count for it: the same data, by its text or file, or a near
    duplicate, by the embeddings of its data in every space that both have (of texts, by the annotation's as well).

    Attributes:
        query: norm, side and weight.
        examples: what pairs are compared with.
        anchor: the model that embeds annotations.
        similarity: from which cosine on two embeddings are near equal.
    """

    query: Query
    examples: Examples
    anchor: str
    similarity: float = 0.95
    _near: list[str] = field(init=False, repr=False, compare=False)
    _keys: pa.Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find which columns tell duplicates.

        Raises:
            ConfigError: no example has the side that pairs are to be compared with.
        """
        texts = self.examples.rows[KIND].to_pylist()[:1] == ["texts"]
        annotation = annotation_column(self.anchor)
        near = [
            name for name in self.examples.columns if name.startswith(data_column("")) or (texts and name == annotation)
        ]
        object.__setattr__(self, "_near", near)
        object.__setattr__(self, "_keys", keys(frames.from_table(self.examples.rows)))
        if not self.columns:
            side = "data or annotation" if self.query.side == "both" else f"{self.query.side} that is embedded"
            raise ConfigError(f"queries: no example of {self.query.label!r} has {side}")

    @property
    def columns(self) -> list[str]:
        """The columns of embeddings in which pairs are compared."""
        annotation = annotation_column(self.anchor)
        data = [name for name in self.examples.columns if name == FUSED or name.startswith(data_column(""))]
        words = [annotation] if annotation in self.examples.columns else []
        return {"data": data, "annotation": words, "both": [*data, *words]}[self.query.side]

    @property
    def reads(self) -> list[str]:
        """All columns of embeddings that are read."""
        return list(dict.fromkeys([*self.columns, *self._near]))

    def identity(self) -> list[Any]:
        """Return what scores depend on."""
        return [self.query.norm, self.query.side, self.query.weight, self.similarity, self.examples.digest()]

    def scores(self, rows: Frame, device: str = "cpu") -> dict[str, Scores]:
        """Return column of embeddings -> ``(n,)``: in [0, 1], NaN where there is nothing to compare.

        Raises:
            ConfigError: embeddings of another dimension than the examples'.
        """
        scores = {name: np.full(len(rows), np.nan, dtype=np.float32) for name in self.columns}
        for where, cosines, own in self._compared(rows, device):
            for name, out in scores.items():
                if name in cosines:
                    counts = self._counting(name, cosines[name], own)
                    out[where] = norm(cosines[name], counts, self.query.norm).cpu().numpy()
        return scores

    def nearest(self, row: Frame) -> tuple[dict[str, tuple[str, float]], list[str]]:
        """Return of one pair the nearest example in each space, with its cosine, and the examples that it is itself."""
        ids = self.examples.rows[PAIR_ID].to_pylist()
        [(_, cosines, own)] = list(self._compared(row, "cpu"))
        closest = {}
        for name in self.columns:
            if name in cosines and bool((counts := self._counting(name, cosines[name], own)).any()):
                place = int(torch.where(counts[0], cosines[name][0].abs(), -1.0).argmax())
                closest[name] = ids[place], float(cosines[name][0, place])
        return closest, [name for name, same in zip(ids, own[0].tolist(), strict=True) if same]

    def _counting(self, name: str, cosines: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return ``(b, m)`` bool: which cosines count."""
        return self.examples.columns[name].valid.to(cosines.device) & ~own & ~cosines.isnan()

    def _compared(self, rows: Frame, device: str) -> Iterator[tuple[slice, dict[str, torch.Tensor], torch.Tensor]]:
        """Yield blocks of rows with the cosines by column, and which examples are the pairs themselves, ``(b, m)``."""
        columns = {}
        for name in (name for name in self.reads if name in rows.columns):
            theirs, mine = frames.vectors(rows, name, device), self.examples.columns[name].values.to(device)
            if not bool(theirs.valid.any()):
                continue
            if theirs.values.shape[1] != mine.shape[1]:
                sizes = f"{mine.shape[1]} dimensions, the embeddings {theirs.values.shape[1]}"
                raise ConfigError(f"the examples for {name!r} have {sizes}")
            columns[name] = products(torch.where(theirs.valid[:, None], theirs.values, float("nan")), mine)
        known = pc.unique(self._keys)
        mine_by = pc.index_in(self._keys, value_set=known).to_numpy(zero_copy_only=False)
        theirs_by = pc.index_in(keys(rows), value_set=known, skip_nulls=True).fill_null(-1).to_numpy()
        for blocks in zip(*columns.values(), strict=True):
            where = blocks[0][0]
            cosines = {name: found for name, (_, found) in zip(columns, blocks, strict=True)}
            same = torch.from_numpy(theirs_by[where, None] == mine_by[None, :])
            yield where, cosines, self._own(cosines, same.to(device))

    def _own(self, cosines: Mapping[str, torch.Tensor], same: torch.Tensor) -> torch.Tensor:
        """Return ``(b, m)`` bool: which examples are the pair itself, where ``same`` are so by their data."""
        near, apart = torch.zeros_like(same), torch.zeros_like(same)
        for name in self._near:
            if name not in cosines:
                continue
            both = self.examples.columns[name].valid.to(same.device) & ~cosines[name].isnan()
            close = cosines[name] >= self.similarity
            if name.startswith(data_column("")):
                near, apart = near | (both & close), apart | (both & ~close)
            else:
                same = same | (both & close)
        return same | (near & ~apart)


def norm(cosines: torch.Tensor, counts: torch.Tensor, p: int | str) -> torch.Tensor:
    """Return ``(b,)`` norms of the cosines that count, over the root of their number for 2; NaN of none.

    >>> import torch
    >>> cosines, counts = torch.tensor([[0.6, -0.8, 0.9]]), torch.tensor([[True, True, False]])
    >>> norm(cosines, counts, 2), norm(cosines, counts, "inf")
    (tensor([0.7071]), tensor([0.8000]))
    """
    found = torch.where(counts, cosines, 0.0)
    values = found.abs().amax(1) if p == "inf" else ((found * found).sum(1) / counts.sum(1)).sqrt()
    return torch.where(counts.any(1), values, float("nan"))


def keys(rows: Frame) -> pa.Array:
    """Return what data is told by, ``(n,)`` strings: its text, or where its file lies; null where that is not known."""
    if any(name not in rows.columns for name in (MODALITY, DATA)):
        return pa.nulls(len(rows), pa.string())
    modality, data = (frames.array(rows, name).cast(pa.string()) for name in (MODALITY, DATA))
    empty = pa.array([""] * len(rows), pa.string())
    root = frames.array(rows, MEDIA_ROOT).cast(pa.string()) if MEDIA_ROOT in rows.columns else empty
    text = pc.is_in(modality, value_set=pa.array([name for name in names() if not is_media(name)], pa.string()))
    first = pc.replace_substring_regex(pc.if_else(text, empty, root.fill_null("")), r"(?s)\n.*", "")
    return pc.binary_join_element_wise(modality, first, data, "/")


def read_by_keys() -> tuple[str, ...]:
    """Return the columns that `keys` reads where they are there."""
    return (MODALITY, DATA, MEDIA_ROOT)


def _is_embedding(name: str) -> bool:
    return name == FUSED or name.startswith((data_column(""), annotation_column("")))


def _unit(column: Vectors) -> Vectors:
    """Return vectors of unit length; one that is zero or not finite is not there."""
    norms = column.values.norm(dim=1)
    good = column.valid & torch.isfinite(norms) & (norms > 0)
    return Vectors(torch.where(good[:, None], column.values / norms[:, None], 0.0), good)

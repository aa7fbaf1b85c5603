"""Pseudo-relevance feedback: the best pairs say in every space, data and annotation alike, what the query means there.

A query and an image's embedding have little in common even where they fit; two images have. So the ranking is made
once, its best pairs are taken for relevant, and closeness to their mean counts beside closeness to the query (Rocchio,
"Relevance feedback in information retrieval", 1971, eq. 2, with no negative term).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from pydantic import PlainSerializer, PlainValidator

from nemo_mm_rank import frames
from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.ranking.query_scores import PREFIX
from nemo_mm_rank.schema import VECTOR
from nemo_mm_rank.shards import Shards, read_vectors
from nemo_mm_rank.steps import Added, Step
from nemo_mm_rank.vectors import cosines

FEEDBACK = "feedback__"
"""Columns of cosines with the mean of the best pairs: ``feedback__<...>`` beside ``cosine__<...>``."""

Mean: TypeAlias = Annotated[
    torch.Tensor,
    PlainValidator(lambda values: torch.tensor(values, dtype=torch.float32)),
    PlainSerializer(lambda mean: mean.tolist()),
]
"""Float32 that can be written as JSON, and is the same to the bit when it is read."""

Means: TypeAlias = Mapping[str, Mean]
"""Column of embeddings -> ``(d,)`` float32, the normalised mean of the best pairs' normalised vectors."""


def feedback_column(score: str) -> str:
    """Return the name of the column of feedback beside a column of cosines."""
    return FEEDBACK + score.removeprefix(PREFIX)


def means_of(places: Ints, shards: Shards, columns: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return the mean of some pairs in each space; a space in which none of them has a vector is left out.

    Args:
        places: ``(k, 2)`` shard number and row of each, best first.
        shards: with the embeddings.
        columns: column of cosines -> column of embeddings.
    """
    means = {}
    for column in dict.fromkeys(columns.values()):
        vectors = read_vectors(places, shards, column).astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        usable = np.isfinite(norms) & (norms > 0)
        mean = (vectors[usable] / norms[usable, None]).sum(0)
        length = float(np.sqrt((mean * mean).sum()))
        if length > 0:
            means[column] = torch.from_numpy((mean / length).astype(np.float32))
    return means


class FeedbackStep(Step):
    """Adds, per space, the cosine of each pair with the mean of the best pairs; null for a pair without a vector."""

    name = "feedback"

    def __init__(self, columns: Mapping[str, str], means: Means) -> None:
        """See `means_of` for both; spaces without a mean are left out."""
        self.columns = {score: column for score, column in columns.items() if column in means}
        self.means = {column: means[column] for column in self.columns.values()}
        self._device = "cpu"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The embeddings."""
        return dict.fromkeys(self.columns.values(), VECTOR)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column of cosines for every space."""
        return {feedback_column(score): pa.float32() for score in self.columns}

    def setup(self, device: str | None = None) -> None:  # noqa: D102
        self._device = pick_device(device)

    def identity(self) -> dict[str, Any]:
        """The means."""
        return {**super().identity(), "means": {name: mean.tolist() for name, mean in sorted(self.means.items())}}

    def process(self, rows: Frame) -> Added:
        """See `Step.process`.

        Raises:
            ConfigError: means of another dimension than the embeddings.
        """
        added: dict[str, Any] = {}
        for score, column in self.columns.items():
            vectors, mean = frames.vectors(rows, column, self._device), self.means[column]
            found = np.full(len(rows), np.nan, dtype=np.float32)
            if bool(vectors.valid.any()):
                if vectors.values.shape[1] != len(mean):
                    raise ConfigError(
                        f"feedback for {column!r} has {len(mean)} dimensions, the embeddings {vectors.values.shape[1]}"
                    )
                product = cosines(vectors.values, mean[None])[:, 0]
                found = torch.where(vectors.valid, product, float("nan")).cpu().numpy()
            added[feedback_column(score)] = pa.array(found, pa.float32(), mask=~np.isfinite(found))
        return Added(added)

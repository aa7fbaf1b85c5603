"""The step that scores pairs against the queries: one column of cosines per space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError, EmbeddingError, MissingColumnError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io.parquet import write_table
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.ranking.cosine import Combine, combine, cosines, rowwise
from nemo_mm_rank.ranking.given import Given
from nemo_mm_rank.schema import ERROR, FUSED, MODALITY, PAIR_ID, POOL, VECTOR, annotation_column, data_column
from nemo_mm_rank.steps import Added, Step

AGREEMENT = "agreement"
PREFIX = "cosine__"
"""Columns of cosines: ``cosine__<component>``, or ``cosine__<expert>__<model>`` where an expert has several spaces."""

GIVEN = "given__"
"""Columns of scores from elsewhere: ``given__<name>``."""

AGREES = "agreement__"
"""Columns of cosines of a pair's data with its own annotation: ``agreement__<component>`` as above."""


@dataclass(frozen=True)
class Space:
    """A column of embeddings, with the queries embedded in the space of that column.

    Attributes:
        component: what it counts as: ``fused``, ``annotation``, or an expert's name.
        column: the column with the embeddings.
        queries: ``(q, d)`` float, one row per query, of any norm.
    """

    component: str
    column: str
    queries: torch.Tensor

    @classmethod
    def fused(cls, queries: torch.Tensor) -> Space:
        """The fused embeddings; ``queries`` by the anchor."""
        return cls("fused", FUSED, queries)

    @classmethod
    def annotation(cls, anchor: str, queries: torch.Tensor) -> Space:
        """The annotations' embeddings by the anchor."""
        return cls("annotation", annotation_column(anchor), queries)

    @classmethod
    def expert(cls, name: str, queries: torch.Tensor, model: str | None = None) -> Space:
        """An expert's data embeddings, or those by one ``model`` of a fusion expert; both share a space with text."""
        return cls(name, data_column(name, model), queries)

    @property
    def score(self) -> str:
        """Name of the column of scores."""
        return score_column(self.component, self.column)


def score_column(component: str, column: str) -> str:
    """Return the name of the column of scores for the embeddings in ``column``, which count as ``component``."""
    own = data_column(component)
    return PREFIX + component + (column.removeprefix(own) if column.startswith(own) else "")


def component(score: str) -> str:
    """Return which component a column of scores counts as."""
    return score.removeprefix(PREFIX).removeprefix(GIVEN).split("__")[0]


@dataclass(frozen=True)
class Sides:
    """Both sides of a pair in one space.

    Attributes:
        name: the column for the cosine of the two.
        data: the column with the data's embeddings.
        annotation: the column with the annotations'.
        weakest: the column with those of each annotation's sentence that agrees least, which then stands for the
            annotation; null where the annotation itself does.
    """

    name: str
    data: str
    annotation: str
    weakest: str | None = None

    @property
    def columns(self) -> list[str]:
        """All columns of embeddings."""
        return [self.data, self.annotation, *([self.weakest] if self.weakest else [])]


def spoken(annotation: Vectors, weakest: Vectors | None) -> Vectors:
    """Return what speaks for the annotations, ``(n, d)``: the sentence that agrees least, where there is one."""
    if weakest is None or not bool(weakest.valid.any()):
        return annotation
    return Vectors(torch.where(weakest.valid[:, None], weakest.values, annotation.values), annotation.valid)


class ScoreStep(Step):
    """Adds, per space, the cosine of each pair with the queries (see `cosine.combine` for several of them).

    A pair without a vector in a space has a null there; one without any score at all, or with a vector that is zero
    or not finite, is quarantined. ``agreement`` (float in [-1, 1]) is taken over as a score where asked for. Besides,
    the cosine of each pair's two sides, and scores from elsewhere, null for a pair that has none.
    """

    name = "rank"

    def __init__(
        self,
        spaces: Sequence[Space],
        weights: Sequence[float],
        how: Combine = "mean",
        agreement: bool = False,
        sides: Sequence[Sides] = (),
        given: Sequence[Given] = (),
    ) -> None:
        """See `cosine.combine` for ``weights`` (one per query) and ``how``.

        Raises:
            ConfigError: no space, one named twice, or queries that cannot be combined.
        """
        self.spaces = tuple(spaces)
        if len({space.score for space in self.spaces}) < len(self.spaces):
            raise ConfigError(f"spaces must differ, not {[space.score for space in self.spaces]}")
        if not self.spaces:
            raise ConfigError("ranking needs at least one space that has the queries in it")
        self.weights, self.how, self.agreement = tuple(weights), how, agreement
        self.sides, self.given = tuple(sides), tuple(given)
        self._directions = {space.score: combine(space.queries, self.weights, how) for space in self.spaces}
        self._device = "cpu"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:  # noqa: D102
        both = [name for one in self.sides for name in one.columns]
        columns = dict.fromkeys([*(space.column for space in self.spaces), *both], VECTOR)
        agreement = {AGREEMENT: pa.float32()} if self.agreement else {}
        return {**columns, **agreement, **({PAIR_ID: pa.string()} if self.given else {})}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:  # noqa: D102
        names = [*self.cosines, *(one.name for one in self.sides)]
        return {**dict.fromkeys(names, pa.float32()), **{GIVEN + one.name: pa.float64() for one in self.given}}

    @property
    def cosines(self) -> list[str]:
        """The columns of cosines with the queries."""
        return [space.score for space in self.spaces] + [PREFIX + AGREEMENT] * self.agreement

    @property
    def scores(self) -> list[str]:
        """The columns that are ranked by: the cosines, and scores from elsewhere."""
        return [*self.cosines, *(GIVEN + one.name for one in self.given)]

    def setup(self, device: str | None = None) -> None:  # noqa: D102
        self._device = pick_device(device)

    def identity(self) -> dict[str, Any]:  # noqa: D102
        digest = hashlib.sha256()
        for space in self.spaces:
            digest.update(space.queries.detach().cpu().float().numpy().tobytes())
        names = {space.score: space.column for space in self.spaces}
        settings = {"weights": self.weights, "combine": self.how, "agreement": self.agreement}
        both = {one.name: one.columns for one in self.sides}
        given = {one.name: [one.column, one.digest] for one in self.given}
        return {
            **super().identity(),
            **{"spaces": names, "queries": digest.hexdigest(), "sides": both, "given": given},
            **settings,
        }

    def process(self, rows: Frame) -> Added:
        """See `Step.process`.

        Raises:
            ConfigError: queries of another dimension than the embeddings.
        """
        columns: dict[str, pa.Array | Vectors] = {}
        errors: dict[int, PairError] = {}
        scored = np.zeros(len(rows), dtype=bool)
        for space in self.spaces:
            scores, valid = self._score(frames.vectors(rows, space.column, self._device), space)
            for row in np.flatnonzero(valid & ~np.isfinite(scores)).tolist():
                errors[row] = EmbeddingError(f"the vector in {space.column!r} is zero or not finite")
            columns[space.score] = pa.array(scores, pa.float32(), mask=~np.isfinite(scores))
            scored |= valid
        if self.agreement:
            agreement = frames.array(rows, AGREEMENT).cast(pa.float32())
            for row in np.flatnonzero(~np.isfinite(agreement.fill_null(0).to_numpy(zero_copy_only=False))).tolist():
                errors[row] = EmbeddingError("the agreement is not finite")
            columns[PREFIX + AGREEMENT] = agreement
        for row in np.flatnonzero(~scored).tolist():
            errors[row] = EmbeddingError(f"no vector in any of {', '.join(space.column for space in self.spaces)}")
        for sides in self.sides:
            data, annotation, *weakest = (frames.vectors(rows, name, self._device) for name in sides.columns)
            both = rowwise(data, spoken(annotation, next(iter(weakest), None))).cpu().numpy()
            columns[sides.name] = pa.array(both, pa.float32(), mask=np.isnan(both))
        for given in self.given:
            columns[GIVEN + given.name] = given.of(frames.array(rows, PAIR_ID))
        return Added(columns, errors)

    def _score(self, vectors: Vectors, space: Space) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return ``(n,)`` float32 scores, NaN where there is no vector or no cosine, and which rows have a vector."""
        valid = vectors.valid.cpu().numpy()
        best, rest = self._directions[space.score]
        if not valid.any():
            return np.full(len(valid), np.nan, dtype=np.float32), valid
        if vectors.values.shape[1] != best.shape[1]:
            raise ConfigError(
                f"the queries for {space.column!r} have {best.shape[1]} dimensions, "
                f"the embeddings {vectors.values.shape[1]}"
            )
        scores = along(vectors.values, best, rest)
        return torch.where(vectors.valid, scores, float("nan")).cpu().numpy(), valid


def along(vectors: torch.Tensor, best: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return ``(n,)`` scores of ``vectors`` ``(n, d)`` along the directions of `cosine.combine`; NaN for a zero one."""
    products = cosines(vectors, torch.cat([best, rest]))
    scores = products[:, : len(best)].amax(1) if len(best) > 1 else products[:, 0]
    return scores + products[:, -1] if len(rest) else scores


def score_shard(shard: Path, part: Path, step: ScoreStep) -> None:
    """Score one shard: write ``part`` with the shard's rows in their order, quarantined ones too, without embeddings.

    Columns: ``pair_id, pool, modality, error`` and the step's scores. Independent of every other shard, so that an
    engine can map it.

    Raises:
        MissingColumnError: the shard lacks an embedding that is to be scored.
    """
    there = pq.read_schema(shard).names
    words = (PAIR_ID, POOL, MODALITY, ERROR)
    missing = [name for name in (PAIR_ID, POOL, MODALITY, *step.requires) if name not in there]
    if missing:
        raise MissingColumnError(f"{shard.name} lacks {', '.join(map(repr, missing))}")
    wanted = [name for name in dict.fromkeys((*words, *step.requires)) if name in there]
    frame = step(frames.from_table(pq.read_table(shard, columns=wanted, partitioning=None)))
    write_table(part, frames.to_table(frame[[*words, *step.provides]]))

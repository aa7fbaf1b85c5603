"""The step that scores pairs against queries: one column of cosines per space, and scores that come from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError, EmbeddingError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.ranking.examples import Likeness, Scores, read_by_keys
from nemo_mm_rank.schema import FUSED, PAIR_ID, VECTOR, annotation_column, data_column
from nemo_mm_rank.steps import Added, Step
from nemo_mm_rank.vectors import Combine, combine, cosines


@dataclass(frozen=True)
class Given:
    """One such score.

    Attributes:
        name: what it is called among the components.
        path: a Parquet file that every worker sees.
        column: the file's column.
        digest: of the file's bytes.
    """

    name: str
    path: str
    column: str
    digest: str

    @classmethod
    def open(cls, name: str, path: str, column: str) -> Given:
        """Check the file and take its digest.

        Raises:
            ConfigError: it cannot be read, lacks a column, names a pair twice, or holds something infinite.
        """
        try:
            schema = pq.read_schema(mirror.here(path))
        except (OSError, pa.ArrowInvalid) as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"ranking.scores.{name}: {path} cannot be read as Parquet: {line}") from error
        for wanted in (PAIR_ID, column):
            if wanted not in schema.names:
                raise ConfigError(f"ranking.scores.{name}: {path} has no column {wanted!r}; {', '.join(schema.names)}")
        kind = schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise ConfigError(f"ranking.scores.{name}: column {column!r} of {path} is {kind}, not a number")
        given = cls(name, path, column, file_digest(mirror.here(path)))
        ids, values = _read(path, column, given.digest)
        if pc.count_distinct(ids, mode="all").as_py() != len(ids):
            raise ConfigError(f"ranking.scores.{name}: {path} has a {PAIR_ID} twice, or a row without one")
        if np.isinf(values).any():
            raise ConfigError(f"ranking.scores.{name}: column {column!r} of {path} contains infinite values")
        return given

    def of(self, pair_ids: pa.Array) -> pa.Array:
        """Return the pairs' scores, ``(n,)`` float64, null for those that have none (or NaN)."""
        ids, values = _read(self.path, self.column, self.digest)
        places = pc.index_in(pair_ids.cast(pa.string()), value_set=ids)
        extended = np.append(values, np.nan)[places.fill_null(len(values)).to_numpy(zero_copy_only=False)]
        return pa.array(extended, pa.float64(), mask=np.isnan(extended))


@lru_cache(maxsize=4)
def _read(path: str, column: str, digest: str) -> tuple[pa.Array, npt.NDArray[np.float64]]:
    # The digest is part of the key so that a file that was written anew is read anew.
    table = pq.read_table(mirror.here(path), columns=[PAIR_ID, column], partitioning=None).combine_chunks()
    ids, values = (table[name].combine_chunks() for name in (PAIR_ID, column))
    return ids.cast(pa.string()), values.cast(pa.float64()).to_numpy(zero_copy_only=False)


PREFIX = "cosine__"
"""Columns of cosines: ``cosine__<component>``, or ``cosine__<expert>__<model>`` where an expert has several spaces."""

GIVEN = "given__"
"""Columns of scores from elsewhere: ``given__<name>``."""


@dataclass(frozen=True)
class Space:
    """A column of embeddings, with the queries embedded in the space of that column.

    Attributes:
        component: what it counts as: ``fused``, ``annotation``, or an expert's name.
        column: the column with the embeddings.
        queries: ``(q, d)`` float, one row per query in words, of any norm; ``(0, d)`` where none can enter the space.
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


class ScoreStep(Step):
    """Adds, per space, the cosine of each pair with the queries (see `cosine.combine` for several of them).

    A pair without a vector in a space has a null there; one without any score at all, or with a vector that is zero
    or not finite, is quarantined. Besides, scores from elsewhere, null for a pair that has none.
    """

    name = "rank"

    def __init__(
        self,
        spaces: Sequence[Space],
        weights: Sequence[float],
        how: Combine = "mean",
        given: Sequence[Given] = (),
        likes: Sequence[Likeness] = (),
    ) -> None:
        """See `cosine.combine` for ``weights`` (one per query in words) and ``how``.

        Raises:
            ConfigError: no space, one named twice, or queries that cannot be combined.
        """
        self.spaces = tuple(spaces)
        if len({space.score for space in self.spaces}) < len(self.spaces):
            raise ConfigError(f"spaces must differ, not {[space.score for space in self.spaces]}")
        if not self.spaces:
            raise ConfigError("ranking needs at least one space that has the queries in it")
        self.weights, self.how, self.given, self.likes = tuple(weights), how, tuple(given), tuple(likes)
        beside = [like.query.weight for like in self.likes]
        positive = [weight for weight in (*self.weights, *beside) if weight > 0]
        self._scale = (max if how == "max" else sum)(positive) if positive else 1.0
        self._directions = {
            space.score: combine(space.queries, self.weights, how, beside)
            for space in self.spaces
            if len(space.queries) or not self.likes
        }
        self._device = "cpu"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:  # noqa: D102
        columns = dict.fromkeys((space.column for space in self.spaces), VECTOR)
        return {**columns, **({PAIR_ID: pa.string()} if self.given else {})}

    @property
    def uses(self) -> tuple[str, ...]:  # noqa: D102
        near = dict.fromkeys(name for like in self.likes for name in like.reads)
        return (*near, *read_by_keys()) if self.likes else ()

    @property
    def provides(self) -> Mapping[str, pa.DataType]:  # noqa: D102
        cosines = dict.fromkeys(self.cosines, pa.float32())
        return {**cosines, **{GIVEN + score.name: pa.float64() for score in self.given}}

    @property
    def cosines(self) -> list[str]:
        """The columns of cosines with the queries."""
        return [space.score for space in self.spaces]

    @property
    def scores(self) -> list[str]:
        """The columns that are ranked by: the cosines, and scores from elsewhere."""
        return [*self.cosines, *(GIVEN + score.name for score in self.given)]

    def setup(self, device: str | None = None) -> None:  # noqa: D102
        self._device = pick_device(device)

    def identity(self) -> dict[str, Any]:  # noqa: D102
        digest = hashlib.sha256()
        for space in self.spaces:
            digest.update(space.queries.detach().cpu().float().numpy().tobytes())
        names = {space.score: space.column for space in self.spaces}
        settings = {"weights": self.weights, "combine": self.how}
        given = {score.name: [score.column, score.digest] for score in self.given}
        return {
            **super().identity(),
            **{"spaces": names, "queries": digest.hexdigest(), "given": given},
            **({"likes": [like.identity() for like in self.likes]} if self.likes else {}),
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
        likes = [(like.query.weight, like.scores(rows, self._device)) for like in self.likes]
        for space in self.spaces:
            vectors = frames.vectors(rows, space.column, self._device)
            valid = vectors.valid.cpu().numpy()
            own = [(weight, found[space.column]) for weight, found in likes if space.column in found]
            scores = self._score(vectors, space, own)
            broken = valid & ~np.isfinite(scores) if not likes else valid & ~_has_direction(vectors)
            for row in np.flatnonzero(broken).tolist():
                errors[row] = EmbeddingError(f"the vector in {space.column!r} is zero or not finite")
            columns[space.score] = pa.array(scores, pa.float32(), mask=~np.isfinite(scores))
            scored |= valid
        for row in np.flatnonzero(~scored).tolist():
            errors[row] = EmbeddingError(f"no vector in any of {', '.join(space.column for space in self.spaces)}")
        for given in self.given:
            columns[GIVEN + given.name] = given.of(frames.array(rows, PAIR_ID))
        return Added(columns, errors)

    def _score(self, vectors: Vectors, space: Space, likes: Sequence[tuple[float, Scores]]) -> Scores:
        """Return ``(n,)`` float32 scores, NaN where there is no vector, no cosine, or nothing to compare with."""
        nothing = np.full(len(vectors.valid), np.nan, dtype=np.float32)
        directions = self._directions.get(space.score)
        if not bool(vectors.valid.any()) or (directions is None and not likes):
            return nothing
        best, rest, added = nothing[:, None][:, :0], np.zeros_like(nothing), []
        if directions is not None:
            if vectors.values.shape[1] != directions[0].shape[1]:
                raise ConfigError(
                    f"the queries for {space.column!r} have {directions[0].shape[1]} dimensions, "
                    f"the embeddings {vectors.values.shape[1]}"
                )
            best, rest = (
                torch.where(vectors.valid[:, None], found, float("nan")).cpu().numpy()
                for found in products_along(vectors.values, *directions)
            )
            rest = rest.sum(1)
        for weight, found in likes:
            part = (found * np.float32(weight / self._scale)).astype(np.float32)
            if self.how == "max" and weight > 0:
                best = np.concatenate([best, part[:, None]], axis=1)
            else:
                added.append(part)
        total: Scores = best.max(axis=1) + rest if best.shape[1] else rest
        return sum(added, total)


def _has_direction(vectors: Vectors) -> npt.NDArray[np.bool_]:
    norms = vectors.values.norm(dim=1)
    good: npt.NDArray[np.bool_] = (torch.isfinite(norms) & (norms > 0)).cpu().numpy()
    return good


def products_along(vectors: torch.Tensor, best: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the products of ``vectors`` with the directions of `vectors.combine`: ``(n, p)`` and ``(n, r)``."""
    products = cosines(vectors, torch.cat([best, rest]))
    return products[:, : len(best)], products[:, len(best) :]


def along(vectors: torch.Tensor, best: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return ``(n,)`` scores of ``vectors`` ``(n, d)`` along the directions of `cosine.combine`; NaN for a zero one."""
    highest, added = products_along(vectors, best, rest)
    return highest.amax(1) + added.sum(1)

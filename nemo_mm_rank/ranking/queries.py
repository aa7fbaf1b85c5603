"""The queries, those in words embedded in every space that holds text, as the step that scores pairs against them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import ConfigError, EmbeddingError, PairError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.models.base import encode_queries
from nemo_mm_rank.models.expert import has_text, load_encoder, sources
from nemo_mm_rank.ranking.conditions import ConditionStep
from nemo_mm_rank.ranking.examples import Examples, Likeness, read_by_keys
from nemo_mm_rank.ranking.feedback import FeedbackStep
from nemo_mm_rank.ranking.query_scores import GIVEN, Given, ScoreStep, Space, score_column
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.schema import FUSED, MODALITY, PAIR_ID, VECTOR, annotation_column
from nemo_mm_rank.steps import Added, Step

SCORE = "score"
"""The one number that pairs of a run are ranked by (float64)."""


@dataclass(frozen=True)
class Target:
    """A space that queries can be embedded in.

    Attributes:
        component: what it counts as: ``fused``, ``annotation``, or an expert's name.
        column: the column with the pairs' embeddings.
        model: the model that embeds queries in words into it; None where there is none.
    """

    component: str
    column: str
    model: str | None


def targets(config: Config, models: Mapping[str, ModelSpec], likes: Sequence[Likeness] = ()) -> list[Target]:
    """Return the spaces that pairs are compared with queries in: the fused one, the annotations', those of experts.

    An expert's space is one that queries in words can be embedded in, where there are any, or that examples are in.
    """
    spaces = [
        Target("fused", FUSED, config.anchor),
        Target("annotation", annotation_column(config.anchor), config.anchor),
    ]
    shown = {name for like in likes for name in like.columns}
    words = not likes or any(query.text is not None for query in config.queries)
    for expert in config.experts:
        used = sources(expert)
        # A score that only some of an expert's modalities had would compare those with nothing: it would say more
        # about the modality than about the meaning.
        whole = words and all(has_text(source.model, models) for source in used)
        spaces += [
            Target(expert.name, source.column, source.model if whole else None)
            for source in used
            if whole or source.column in shown
        ]
    return spaces


def likenesses(config: Config, files: Sequence[Path]) -> list[Likeness]:
    """Return what scores pairs by the examples of queries, given the files of the embedded ones, query by query.

    Raises:
        ConfigError: there are no examples of a query, or none with the side that counts.
    """
    queries = [query for query in config.queries if query.like is not None]
    if len(files) != len(queries):
        raise ConfigError(
            f"queries: {queries[0].label!r} is a query by examples, which a run embeds: give the run, or use words"
            if queries
            else "queries: there are examples of no query"
        )
    similarity = config.ranking.duplicate_similarity
    return [
        Likeness(query, Examples.load(file), config.anchor, similarity)
        for query, file in zip(queries, files, strict=True)
    ]


def embed_queries(config: Config, model: str, models: Mapping[str, ModelSpec]) -> torch.Tensor:
    """Return the vectors by ``model`` of the queries in words, ``(q, d)`` float32 on the host.

    Raises:
        UserError: a query that cannot be embedded.
    """
    texts = [query.text for query in config.queries if query.text is not None]
    if not texts:
        return torch.zeros(0, 0)
    encoded = encode_queries(load_encoder(model, models), texts)
    for position, error in encoded.errors.items():
        raise UserError(f"query {texts[position]!r} cannot be embedded by {model!r}: {error}")
    return encoded.vectors.float().cpu()


def given_scores(config: Config) -> list[Given]:
    """Open the scores from elsewhere.

    Raises:
        ConfigError: a file that is not what it should be.
    """
    return [Given.open(name, score.path, score.column or name) for name, score in sorted(config.ranking.scores.items())]


def score_step(
    config: Config, models: Mapping[str, ModelSpec], columns: Container[str], likes: Sequence[Likeness] = ()
) -> ScoreStep:
    """Return the step that scores pairs in the fused space, by their annotations, and in each expert's own space.

    Args:
        config: queries, experts, anchor and ranking.
        models: the models as the pairs were embedded with, statistics and all.
        columns: what the shards have; an expert's space that is not among them is left out.
        likes: of the queries by examples.

    Raises:
        UserError: a query that cannot be embedded.
    """
    fused, annotation, *experts = targets(config, models, likes)
    used = [fused, annotation, *(target for target in experts if target.column in columns)]
    named = dict.fromkeys(one.model for one in used if one.model is not None)
    embedded = {model: embed_queries(config, model, models) for model in named}
    spaces = [
        Space(target.component, target.column, torch.zeros(0, 0) if target.model is None else embedded[target.model])
        for target in used
    ]
    weights = [query.weight for query in config.queries if query.text is not None]
    return ScoreStep(spaces, weights, config.ranking.combine, given_scores(config), likes)


class QueryStep(Step):
    """Scores pairs as `score_step` does, but embeds the queries where it runs: to be made needs no model.

    Args:
        config: queries, experts, anchor and ranking.
        models: the models as the pairs were embedded with, statistics and all.
        scoring: the statistics of a finished run; with them there is a ``score`` besides, the one that the run itself
            gives such a pair. A pair that they say nothing of is quarantined.
        examples: of its queries by examples, the files of the embedded ones (`run.finished.FinishedRun.examples`).
    """

    name = "rank"

    def __init__(
        self,
        config: Config,
        models: Mapping[str, ModelSpec],
        scoring: Scoring | None = None,
        examples: Sequence[Path] = (),
    ) -> None:
        self.config, self.models, self.scoring = config, dict(models), scoring
        self.likes = likenesses(config, examples)
        self._targets = targets(config, models, self.likes)
        self._cosines: ScoreStep | None = None
        self._more: list[Step] = []
        if scoring and scoring.means:
            self._more.append(FeedbackStep(self._columns, scoring.means))
        if scoring and config.ranking.computed:
            self._more.append(ConditionStep(config.ranking.computed))

    @property
    def _columns(self) -> dict[str, str]:
        return {score_column(target.component, target.column): target.column for target in self._targets}

    @property
    def query_models(self) -> list[str]:
        """The models that embed the queries."""
        return list(dict.fromkeys(target.model for target in self._targets if target.model is not None))

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The embeddings of every space, what conditions read, and the modality where there is a score."""
        columns = dict.fromkeys((target.column for target in self._targets), VECTOR)
        given = {PAIR_ID: pa.string()} if self.config.ranking.scores else {}
        read = {name: kind for step in self._more for name, kind in step.requires.items()}
        grouped = {MODALITY: pa.string()} if self.scoring else {}
        return {**read, **dict.fromkeys(self._chances, pa.float64()), **given, **columns, **grouped}

    @property
    def uses(self) -> tuple[str, ...]:
        """What tells which examples a pair is itself."""
        near = dict.fromkeys(name for like in self.likes for name in like.reads)
        return (*near, *read_by_keys()) if self.likes else ()

    @property
    def _chances(self) -> list[str]:
        """The columns of chances that are to be there already."""
        return [name for name in self.scoring.reads if name not in self.provides] if self.scoring else []

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column of cosines for every space, what feedback and conditions need, and the score."""
        given = [GIVEN + name for name in sorted(self.config.ranking.scores)]
        return {
            **dict.fromkeys(self._columns, pa.float32()),
            **dict.fromkeys(given, pa.float64()),
            **{name: kind for step in self._more for name, kind in step.provides.items()},
            **({SCORE: pa.float64()} if self.scoring else {}),
        }

    def setup(self, device: str | None = None) -> None:
        """Embed the queries, once."""
        if self._cosines is None:
            columns = [target.column for target in self._targets]
            self._cosines = score_step(self.config, self.models, columns, self.likes)
        self._cosines.setup(device)
        for step in self._more:
            step.setup(device)

    def identity(self) -> dict[str, Any]:
        """Those of the cosines; they say nothing of the statistics, so a score is not to be kept by them."""
        self.setup(self.device)
        assert self._cosines is not None  # noqa: S101 (setup has made it)
        return self._cosines.identity()

    def process(self, rows: Frame) -> Added:
        """See `ScoreStep.process`."""
        assert self._cosines is not None, "setup runs before every frame"  # noqa: S101
        added = self._cosines.process(rows)
        if self.scoring is None:
            return added
        for step in self._more:
            added.columns.update(step.process(rows).columns)
        modalities = frames.array(rows, MODALITY).cast(pa.string())
        errors: dict[int, PairError] = dict(added.errors)
        if self.scoring.by_modality:
            for row, modality in enumerate(modalities.to_pylist()):
                if modality not in self.scoring.counts[MODALITY]:
                    errors.setdefault(row, EmbeddingError(f"the run has ranked no {modality} to compare it with"))
        known = np.setdiff1d(np.arange(len(rows)), list(errors))
        there = {name: frames.array(rows, name) for name in self._chances}
        table = pa.table({MODALITY: modalities, **there, **added.columns}).take(pa.array(known))
        scores = np.full(len(rows), np.nan)
        scores[known] = self.scoring.scores(table, self.scoring.chances(table))
        column = pa.array(scores, pa.float64(), mask=np.isnan(scores))
        return Added({**added.columns, SCORE: column}, errors)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cosines": None}

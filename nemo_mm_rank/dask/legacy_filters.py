"""Filters and modifiers for NeMo Curator 0.9 that read several columns of a pair, a partition at a time.

Filters say in ``fields`` what to give ``ScoreFilter`` as ``text_field``; give it ``score_type=float`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import ConfigError, PairError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.ranking.queries import embed_queries, likenesses
from nemo_mm_rank.ranking.query_scores import ScoreStep, Space
from nemo_mm_rank.schema import ANNOTATION, CANONICAL, DATA, MODALITY, PAIR_ID, POOL, Modality
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.vectors import Combine, rowwise

try:
    from nemo_curator.datasets import DocumentDataset
    from nemo_curator.filters import DocumentFilter
    from nemo_curator.modifiers import DocumentModifier
    from nemo_curator.modules.base import BaseModule
    from nemo_curator.utils.decorators import batched
except ImportError as error:
    raise ImportError("this is for nemo-curator 0.9; for 1.4 and later there is nemo_mm_rank.curator") from error


F = TypeVar("F", bound=Callable[..., Any])


def _batched(function: F) -> F:
    """Mark, as Curator does, what takes a whole partition's column or frame."""
    marked: F = batched(function)
    return marked


class _Threshold(DocumentFilter):  # type: ignore[misc]  # Curator 0.9 is not where types are checked
    """Keeps pairs with a score of at least ``minimum``; a pair without a score goes.

    Attributes:
        fields: the columns that it reads.
    """

    def __init__(self, fields: Sequence[str], minimum: float) -> None:
        super().__init__()
        self.fields, self.minimum = list(fields), minimum

    @_batched
    def keep_document(self, scores: pd.Series[float]) -> pd.Series[bool]:
        """Return for each score whether it is high enough."""
        return scores >= self.minimum

    def _frame(self, pairs: Frame) -> Frame:
        """Return ``pairs`` as a frame with the fields (a single column comes as a series)."""
        frame = pairs.to_frame() if pairs.ndim == 1 else pairs
        frames.check_columns(frame, dict.fromkeys(self.fields), self.name)
        return frame


class PairAgreementFilter(_Threshold):
    """Keeps pairs whose two sides agree: the cosine of their embeddings in one space.

    Args:
        data: column of the data's embeddings, ``emb_fused`` for example.
        annotation: column of the annotation's embeddings, in the same space.
        minimum: least cosine.
    """

    def __init__(self, data: str, annotation: str, minimum: float) -> None:
        super().__init__([data, annotation], minimum)

    @_batched
    def score_document(self, pairs: Frame) -> pd.Series[float]:
        """Return the cosines, float32; NaN where a side has no embedding."""
        frame = self._frame(pairs)
        return pd.Series(rowwise(*(frames.vectors(frame, name) for name in self.fields)).numpy(), index=frame.index)


class ObjectiveFilter(_Threshold):
    """Keeps pairs that are close to what the ranking aims at, in one space.

    Args:
        space: the column of embeddings, and the queries in its space (`Space.fused`, `Space.annotation` ...).
        minimum: least score.
        weights: one per query; default: all the same.
        how: how several queries are combined, see `ranking.cosine.combine`.
    """

    def __init__(
        self, space: Space, minimum: float, weights: Sequence[float] | None = None, how: Combine = "mean"
    ) -> None:
        super().__init__([space.column], minimum)
        self._score = space.score
        self._step = ScoreStep([space], [1.0] * len(space.queries) if weights is None else weights, how)

    @classmethod
    def fused(cls, config: Config, minimum: float, models: Mapping[str, ModelSpec] | None = None) -> ObjectiveFilter:
        """Return the filter for the queries of ``config`` in the fused space.

        Raises:
            UserError: a query that cannot be embedded, or one by examples.
        """
        likenesses(config, [])  # refuses queries by examples
        queries = embed_queries(config, config.anchor, models or config.models)
        return cls(Space.fused(queries), minimum, [query.weight for query in config.queries], config.ranking.combine)

    @_batched
    def score_document(self, pairs: Frame) -> pd.Series[float]:
        """Return the scores, float32; NaN where there is no usable embedding."""
        scored = self._step(self._frame(pairs))
        return pd.Series(frames.array(scored, self._score).to_numpy(zero_copy_only=False), index=scored.index)


class BlendMembershipFilter(_Threshold):
    """Keeps the pairs of a finished blend; their score is 1 over their rank there.

    Args:
        blend: ``blend.parquet`` of a run.
    """

    def __init__(self, blend: str | Path) -> None:
        super().__init__([PAIR_ID], 0)
        chosen = read_table(Path(blend), [PAIR_ID, "rank"], our=False)
        self._rank = dict(zip(chosen[PAIR_ID].to_pylist(), chosen["rank"].to_pylist(), strict=True))

    @_batched
    def score_document(self, pairs: Frame) -> pd.Series[float]:
        """Return 1 for the best pair of the blend, 1/2 for the second ...; NaN for one that is not in it."""
        frame = self._frame(pairs)
        return 1 / pd.Series(frame[PAIR_ID].to_numpy(), index=frame.index).map(self._rank).astype("float64")


class SNSModifier(DocumentModifier):  # type: ignore[misc]
    """Trims annotations to the sentences that their data support, and leaves what it cannot judge as it is.

    It reads several columns, so it needs `ModifyPairs`: Curator 0.9's own ``Modify`` writes what it reads.

    Attributes:
        fields: the columns that it reads; where media are not below the current folder, add ``media_root``.
    """

    fields = tuple(CANONICAL)

    def __init__(self, config: Config, models: Mapping[str, ModelSpec] | None = None) -> None:
        super().__init__()
        self._step = _backward(config, models)

    @_batched
    def modify_document(self, pairs: Frame) -> pd.Series[str]:
        """Return the trimmed annotations."""
        return _trimmed(pairs, self._step)


class AnnotationSentenceModifier(DocumentModifier):  # type: ignore[misc]
    """Keeps the sentences of a text that fit another text: backward SNS without the data.

    With an ``objective``, the same for all, it goes into ``Modify``. Without one it reads two columns, the text and
    what says of each pair what it is about (a description, a transcript, a title), and goes into `ModifyPairs`.

    Args:
        config: its SNS settings and the expert that judges, which has to embed text.
        objective: what sentences have to fit.
        models: with the statistics of a pool, for example.
    """

    def __init__(
        self, config: Config, objective: str | None = None, models: Mapping[str, ModelSpec] | None = None
    ) -> None:
        super().__init__()
        self._objective, self._step = objective, _backward(config, models)

    @_batched
    def modify_document(self, texts: Frame) -> pd.Series[str]:
        """Return the trimmed texts.

        Raises:
            ConfigError: not one column where there is an objective, or not two where there is none.
        """
        columns = [texts] if texts.ndim == 1 else [texts[name] for name in texts.columns]
        if len(columns) != (1 if self._objective is not None else 2):
            raise ConfigError(
                "AnnotationSentenceModifier: give an objective and one field, or no objective and two fields, "
                f"not {len(columns)}"
            )
        about = columns[-1] if self._objective is None else self._objective
        rows = pd.DataFrame({ANNOTATION: columns[0], DATA: about, MODALITY: str(Modality.TEXT), PAIR_ID: "", POOL: ""})
        return _trimmed(rows, self._step)


def _backward(config: Config, models: Mapping[str, ModelSpec] | None) -> SNSStep:
    settings = config.sns.model_copy(update={"mode": "backward"})
    return SNSStep(settings, config.sns_expert, models or config.models, config.media)


def _trimmed(pairs: Frame, step: SNSStep) -> pd.Series[str]:
    """Return what is left of the annotations, and the whole of those that cannot be judged."""
    kept = annotation_texts(step(pairs), step.media)
    whole = frames.strings(pairs, ANNOTATION)
    texts = [old if isinstance(new, PairError) else new for new, old in zip(kept, whole, strict=True)]
    return pd.Series(texts, index=pairs.index, dtype=object)


class ModifyPairs(BaseModule):  # type: ignore[misc]
    """``Modify`` for modifiers that read several columns and write one.

    Args:
        modifier: with a batched ``modify_document`` that takes a frame.
        text_field: what it reads.
        output_field: what it writes.
    """

    def __init__(self, modifier: DocumentModifier, text_field: Sequence[str], output_field: str) -> None:
        super().__init__(input_backend=modifier.backend)
        self.modifier, self.text_field, self.output_field = modifier, list(text_field), output_field

    def call(self, dataset: DocumentDataset) -> DocumentDataset:
        """Return the dataset with the column written anew; nothing is computed yet.

        Raises:
            MissingColumnError: naming the columns that the dataset lacks.
        """
        collection = dataset.df
        frames.check_columns(collection, dict.fromkeys(self.text_field), self.name)
        modified = collection[self.text_field].map_partitions(self.modifier.modify_document, meta=(None, str))
        return DocumentDataset(collection.assign(**{self.output_field: modified}))

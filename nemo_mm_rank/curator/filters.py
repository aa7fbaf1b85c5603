"""Filters for Curator scripts made of ``Score``, ``Filter`` and ``ScoreFilter``.

Curator hands a filter one value of one column at a time. So these read what a stage of ours has put into a column,
and load what they compare it with once for each worker (``load_model``): give them to ``Score`` or ``ScoreFilter``,
since ``Filter`` loads nothing. A pair without a score (one that failed, say) goes: `QuarantineStage` comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nemo_curator.stages.text.filters import DocumentFilter

from nemo_mm_rank.curator.stages import Models, Queries, checked, classical_models
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.models import loader
from nemo_mm_rank.ranking.queries import embed_queries, likenesses
from nemo_mm_rank.ranking.query_scores import along
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import PAIR_ID
from nemo_mm_rank.vectors import combine


class _Threshold(DocumentFilter):
    """Keeps pairs with a score of at least ``minimum``; a pair without a score goes."""

    _loaded: Any = None
    """What scores are made from, once it is loaded; it does not travel with a pickled filter."""

    def __init__(self, minimum: float) -> None:
        super().__init__()
        self.minimum = minimum

    def keep_document(self, scores: float) -> bool:
        """Return whether the score is high enough."""
        return bool(scores >= self.minimum)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_loaded": None}


class PairAgreementFilter(_Threshold):
    """Keeps pairs whose data agree with their own annotation. Reads ``agreement_score``, which `ProjectionStage` adds.

    Args:
        minimum: least cosine of the fused data with the annotation, out of sample.
    """

    def score_document(self, text: float | None) -> float:
        """Return the agreement; NaN where there is none."""
        return float("nan") if pd.isna(text) else float(text)


class ObjectiveFilter(_Threshold):
    """Keeps pairs that are close to an objective, by one column of embeddings in a space that holds text.

    Reads ``emb_fused``, say, or ``emb_annotation__<model>``; the score is what `RankScoreStage` gives the pair there.

    Args:
        queries: the objective in plain words; several, with weights.
        minimum: least score: the cosine, for one query.
        models: the models by name.
        anchor: the model whose space the column lies in: the anchor, for fused embeddings.
        combine: how several queries are combined, ``mean`` or ``max``.

    Raises:
        ConfigError: settings that cannot be meant.
    """

    def __init__(
        self,
        queries: Queries,
        minimum: float,
        models: Models | None = None,
        anchor: str = "text",
        combine: str = "mean",
    ) -> None:
        super().__init__(minimum)
        models = classical_models() if models is None else models
        experts = [{"name": "none", "kind": "text-based", "encoder": anchor}]
        ranking = {"combine": combine}
        self._config = checked(queries=queries, models=models, anchor=anchor, experts=experts, ranking=ranking)
        likenesses(self._config, [])  # refuses queries by examples

    def model_check_or_download(self) -> None:
        """See that the model's files are on this machine."""
        loader.prefetch({self._config.anchor: self._config.models[self._config.anchor]})

    def load_model(self) -> None:
        """Embed the queries.

        Raises:
            UserError: a query that cannot be embedded, or a model that cannot be loaded.
        """
        config = self._config
        queries = embed_queries(config, config.anchor, config.models)
        self._loaded = combine(queries, [query.weight for query in config.queries], config.ranking.combine)

    def score_document(self, text: Any) -> float:
        """Return the score of an embedding (a list or array of floats); NaN where there is none.

        Raises:
            ConfigError: its dimension is not that of the queries.
        """
        if self._loaded is None:
            self.load_model()
        if text is None or np.ndim(text) == 0:
            return float("nan")
        vector = torch.from_numpy(np.array(text, dtype=np.float32))[None]
        best, rest = self._loaded
        if vector.shape[1] != best.shape[1]:
            raise ConfigError(
                f"{self.name}: the queries by {self._config.anchor!r} have {best.shape[1]} dimensions, "
                f"the embeddings {vector.shape[1]}"
            )
        return float(along(vector, best, rest))


class BlendMembershipFilter(_Threshold):
    """Keeps the pairs that a finished blend names. Reads ``pair_id``; the score is 1 over the pair's rank there.

    Args:
        blend: the folder of a finished run, or its ``blend.parquet``, on a file system that all nodes see.
    """

    def __init__(self, blend: str | Path) -> None:
        super().__init__(0.0)
        path = Path(blend).expanduser().absolute()
        self._file = RunFolder(path).blend if path.is_dir() else path

    def load_model(self) -> None:
        """Read the blend's ids.

        Raises:
            UserError: there is no such blend.
        """
        try:
            chosen = read_table(self._file, [PAIR_ID, "rank"], our=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._file}: this is not a blend: {' '.join(str(error).split())}") from error
        self._loaded = dict(zip(chosen[PAIR_ID].to_pylist(), chosen["rank"].to_pylist(), strict=True))

    def score_document(self, text: str) -> float:
        """Return 1 for the best pair of the blend, 1/2 for the second ...; NaN for one that is not in it."""
        if self._loaded is None:
            self.load_model()
        rank = self._loaded.get(text)
        return float("nan") if rank is None else 1 / rank

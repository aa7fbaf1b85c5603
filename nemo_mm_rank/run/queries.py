"""The queries, embedded in every space that holds text, as the step that scores pairs against them."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch

from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.experts.expert import has_text, load_encoder, sources
from nemo_mm_rank.models.base import encode_queries
from nemo_mm_rank.ranking.score import ScoreStep, Space


def score_step(config: Config, models: Mapping[str, ModelSpec], columns: Container[str]) -> ScoreStep:
    """Return the step that scores pairs in the fused space, by their annotations, and in each expert's own space.

    Args:
        config: queries, experts, anchor and ranking.
        models: the models as the pairs were embedded with, statistics and all.
        columns: what the shards have; a space that is not among them is left out.

    Raises:
        UserError: a query that cannot be embedded.
    """
    texts = [query.text for query in config.queries]
    embedded: dict[str, torch.Tensor] = {}

    def queries(model: str) -> torch.Tensor:
        if model not in embedded:
            encoded = encode_queries(load_encoder(model, models), texts)
            for position, error in encoded.errors.items():
                raise UserError(f"query {texts[position]!r} cannot be embedded by {model!r}: {error}")
            embedded[model] = encoded.vectors.float().cpu()
        return embedded[model]

    anchor = queries(config.anchor)
    spaces = [Space.fused(anchor), Space.annotation(config.anchor, anchor)]
    for expert in config.experts:
        # A score that only some of an expert's modalities had would compare those with nothing: it would say more
        # about the modality than about the meaning.
        if not all(has_text(source.model, models) for source in sources(expert)):
            continue
        for source in sources(expert):
            if source.column in columns:
                model = source.model if expert.kind == "fusion" else None
                spaces.append(Space.expert(expert.name, queries(source.model), model))
    agreement = bool(config.ranking.weights.get("agreement"))
    return ScoreStep(spaces, [query.weight for query in config.queries], config.ranking.combine, agreement)

"""Models trained on a blend to judge it: held-out perplexity is what a blend is worth downstream.

corpus = features({"pool": shards, "validation": held_out}, settings, config, folder, engine)
found = train(corpus, corpus.annotations, corpus.rows("pool", blend), corpus.rows("validation"), settings, seed)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_mm_rank.benchmark.downstream.features import Features, make_features
from nemo_mm_rank.benchmark.downstream.lm import train_lm
from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity
from nemo_mm_rank.benchmark.downstream.settings import (
    DownstreamSettings,
    LMSettings,
    OffSettings,
    SmallSettings,
    TrainedSettings,
    VLMSettings,
)
from nemo_mm_rank.benchmark.downstream.small import train_small
from nemo_mm_rank.benchmark.downstream.vlm.job import Job, Pairs, read_pairs
from nemo_mm_rank.benchmark.downstream.vlm.launch import perform
from nemo_mm_rank.benchmark.downstream.words import Words, make_words
from nemo_mm_rank.config import Config
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.run.store import ShardStore

__all__ = [
    "DownstreamSettings",
    "Features",
    "LMSettings",
    "OffSettings",
    "Pairs",
    "Perplexity",
    "SmallSettings",
    "TrainedSettings",
    "VLMSettings",
    "Words",
    "features",
    "train",
]


def features(
    parts: Mapping[str, ShardStore], settings: TrainedSettings, config: Config, folder: Path, engine: Engine
) -> Features | Pairs | Words:
    """Return what models are trained on and judged by: made once, shared by all strategies and seeds.

    Args:
        parts: name -> shards; first the pool as it is, then what else is learnt from or judged: trimmed variants of
            it, the validation pairs.
        settings: which model.
        config: of the ranking.
        folder: where what is made is kept, so that another run finds it.
        engine: where the work is done.
    """
    if isinstance(settings, VLMSettings):
        return read_pairs(parts, config.media)
    if isinstance(settings, LMSettings):
        return make_words(parts, settings, config, folder, engine)
    return make_features(parts, settings, config, folder, engine)


def train(
    features: Features | Pairs | Words,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: TrainedSettings,
    seed: int,
) -> Perplexity:
    """Train the model on some rows and judge it on others.

    Args:
        features: from `features`.
        annotations: as they are to be learnt, row by row; ``features.annotations`` has them trimmed where pairs are.
        blend_rows: which rows to learn from.
        validation_rows: which rows to judge; none that is learnt from.
        settings: which model, and for how long.
        seed: of everything that is drawn: strategies compared under one seed start alike.

    Raises:
        UserError: no usable pair to learn from or to judge, or validation pairs in the blend.
    """
    if isinstance(features, Pairs) and isinstance(settings, VLMSettings):
        return perform(Job.of(features, annotations, blend_rows, validation_rows, settings, seed))
    if isinstance(features, Words) and isinstance(settings, LMSettings):
        return train_lm(features, annotations, blend_rows, validation_rows, settings, seed)
    if not isinstance(features, Features) or not isinstance(settings, SmallSettings):
        raise TypeError("the features of one kind of model, and the settings of another")
    return train_small(features, annotations, blend_rows, validation_rows, settings, seed)

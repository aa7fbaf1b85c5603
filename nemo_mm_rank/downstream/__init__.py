"""Models trained on a blend to judge it: held-out perplexity is what a blend is worth downstream.

corpus = features({"pool": shards, "validation": held_out}, settings, config, folder, engine)
found = train(corpus, corpus.annotations, corpus.rows("pool", blend), corpus.rows("validation"), settings, seed)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_mm_rank.config import Config
from nemo_mm_rank.downstream.features import Features, make_features
from nemo_mm_rank.downstream.perplexity import Perplexity
from nemo_mm_rank.downstream.settings import DownstreamSettings, OffSettings, SmallSettings
from nemo_mm_rank.downstream.small import train_small
from nemo_mm_rank.run.engine import Engine
from nemo_mm_rank.run.store import Shards

__all__ = ["DownstreamSettings", "Features", "OffSettings", "Perplexity", "SmallSettings", "features", "train"]


def features(
    parts: Mapping[str, Shards], settings: SmallSettings, config: Config, folder: Path, engine: Engine
) -> Features:
    """Return what models are trained on and judged by: made once, shared by all strategies and seeds.

    Args:
        parts: name -> shards; first the pool as it is, then what else is learnt from or judged: trimmed variants of
            it, the validation pairs.
        settings: which model.
        config: of the ranking.
        folder: where what is made is kept, so that another run finds it.
        engine: where the work is done.
    """
    return make_features(parts, settings, config, folder, engine)


def train(
    features: Features,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: SmallSettings,
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
    return train_small(features, annotations, blend_rows, validation_rows, settings, seed)

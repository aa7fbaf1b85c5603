"""Models trained on a blend to judge it: held-out perplexity is what a blend is worth downstream.

corpus = features({"pool": shards, "validation": held_out}, settings, config, folder, engine)
found = train(corpus, corpus.annotations, corpus.rows("pool", blend), corpus.rows("validation"), settings, seed)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_mm_rank.benchmark.downstream.features import make_features
from nemo_mm_rank.benchmark.downstream.lm import train_lm
from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity
from nemo_mm_rank.benchmark.downstream.rows import Rows
from nemo_mm_rank.benchmark.downstream.settings import LMSettings, SmallSettings, TrainedSettings, VLMSettings
from nemo_mm_rank.benchmark.downstream.small import train_small
from nemo_mm_rank.benchmark.downstream.vlm.job import read_pairs
from nemo_mm_rank.benchmark.downstream.vlm.launch import train_vlm
from nemo_mm_rank.benchmark.downstream.words import make_words
from nemo_mm_rank.config import Config
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.run.store import ShardStore

_MAKE: dict[type, Any] = {SmallSettings: make_features, LMSettings: make_words, VLMSettings: read_pairs}
_TRAIN: dict[type, Any] = {SmallSettings: train_small, LMSettings: train_lm, VLMSettings: train_vlm}


def features(
    parts: Mapping[str, ShardStore], settings: TrainedSettings, config: Config, folder: Path, engine: Engine
) -> Rows:
    """Return what models are trained on and judged by: made once, shared by all strategies and seeds.

    Args:
        parts: name -> shards; first the pool as it is, then what else is learnt from or judged: trimmed variants of
            it, the validation pairs.
        settings: which model.
        config: of the ranking.
        folder: where what is made is kept, so that another run finds it.
        engine: where the work is done.
    """
    rows: Rows = _MAKE[type(settings)](parts, settings, config, folder, engine)
    return rows


def train(
    features: Rows,
    annotations: Sequence[str | None],
    blend_rows: Sequence[int],
    validation_rows: Sequence[int],
    settings: TrainedSettings,
    seed: int,
) -> Perplexity:
    """Train the model on some rows and judge it on others.

    Args:
        features: from `features`, by the same settings.
        annotations: as they are to be learnt, row by row; ``features.annotations`` has them trimmed where pairs are.
        blend_rows: which rows to learn from.
        validation_rows: which rows to judge; none that is learnt from.
        settings: which model, and for how long.
        seed: of everything that is drawn: strategies compared under one seed start alike.

    Raises:
        UserError: no usable pair to learn from or to judge, or validation pairs in the blend.
    """
    perplexity: Perplexity = _TRAIN[type(settings)](features, annotations, blend_rows, validation_rows, settings, seed)
    return perplexity

"""The matcher of a run, fitted on a bounded sample of its pairs, the same however the pool is sharded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.experts.expert import load_encoder
from nemo_mm_rank.matching.features import Pairs
from nemo_mm_rank.matching.matcher import JUDGES, Matcher, Sample
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.queries import matching_spaces
from nemo_mm_rank.run.sample import gather
from nemo_mm_rank.run.store import Shards, digest
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, MODALITY, annotation_column

PAIRS = 2048
"""Bound on the pairs of each modality that are read."""

VERSION = 1
"""Of what a fit does: one that is kept from another version is made anew."""


def fit_matcher(
    config: Config,
    models: Mapping[str, ModelSpec],
    shards: Shards,
    pairs: int,
    folder: Path,
    device: str,
    reporter: Reporter,
) -> Path:
    """Fit the matcher where that has not been done, and return its folder.

    Args:
        config: experts, anchor, bounds on texts, and the seed, which enters the hash that chooses the sample.
        models: as the pairs were embedded with.
        shards: with both sides' embeddings and the fused one.
        pairs: how many they hold.
        folder: what is fitted goes below it.
        device: where sentences are embedded.
        reporter: where progress goes.
    """
    spaces = matching_spaces(config, models)
    keys = [shards.key(part) for part in range(shards.count)]
    of = [[space.name, space.data, space.model] for space in spaces]
    target = folder / f"matching-{digest([VERSION, of, config.seed, keys])[:12]}"
    if (target / JUDGES).exists():
        return target
    text_models = list(dict.fromkeys([config.anchor, *(space.model for space in spaces)]))
    names = [*(space.data for space in spaces), *map(annotation_column, text_models)]
    texts = [MODALITY, ANNOTATION, *([ANNOTATION_SPANS] if ANNOTATION_SPANS in shards.columns() else [])]
    with reporter.step("match fit", pairs) as advance:
        words, columns = gather(shards, texts, list(dict.fromkeys(names)), PAIRS, config.seed, by=MODALITY)
        table = pa.table({name: pa.array(words[name].tolist(), shards.columns()[name]) for name in texts[1:]})
        read = annotation_texts(frames.from_table(table), config.media)
        used = [space for space in spaces if space.data in columns and annotation_column(space.model) in columns]
        sample = Sample(
            words[MODALITY],
            ["" if isinstance(text, PairError) else str(text) for text in read],
            Pairs(
                {space.name: columns[space.data] for space in used},
                {
                    model: columns[annotation_column(model)]
                    for model in text_models
                    if annotation_column(model) in columns
                },
            ),
        )
        encoder = load_encoder(config.anchor, models, device)
        Matcher.fit(sample, used, config.anchor, encoder, config.seed).save(target)
        advance(pairs)
    return target

"""Everything that was measured, in long form: one row for each value."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.benchmark.blends import Blend
from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity
from nemo_mm_rank.benchmark.planting.donors import joined
from nemo_mm_rank.benchmark.strategies import Bench
from nemo_mm_rank.measures.gaps import geometry
from nemo_mm_rank.measures.selection import Labels, overlap, selection, shares, total_variation
from nemo_mm_rank.measures.statistics import Interval
from nemo_mm_rank.media.segment import Span
from nemo_mm_rank.models.expert import sources
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.sampling import folds_of
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, FUSED, MODALITY, PAIR_ID, annotation_column
from nemo_mm_rank.text.split import sentence_spans, split_sentences

SCHEMA = pa.schema(
    [
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("measure", pa.string()),
        ("step", pa.int64()),
        ("modality", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
"""``step`` is that of training, where a value belongs to one; ``low`` and ``high`` a bootstrap interval."""

COSTS = ("seconds", "pairs_per_second", "peak_bytes", "model_items", "train_seconds")
"""Measures that differ from run to run."""

POOL = "pool"
"""Stands in place of a strategy for what is said of the pool itself."""

KEPT = 0.9
"""The share of the own sentences that has to be left in an annotation that is repaired."""

MEASURED = 4096
"""Most pairs that geometry is measured on: recall costs their square."""

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as `SCHEMA`."""
    return pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], SCHEMA)


def of_blends(
    blends: Sequence[Blend],
    labels: Labels,
    modality: Mapping[str, str],
    seed: int,
    repaired: Mapping[str, Collection[str]],
) -> Iterator[Row]:
    """Yield what every blend is worth, how it is mixed, and what it shares with the others of its seed.

    Args:
        blends: of all strategies and seeds.
        labels: of the pool.
        modality: of every pair.
        seed: that rows of the pool carry.
        repaired: strategy -> the pairs that it has rid of what was planted.
    """
    pool = shares(list(modality.values()))
    for name, share in pool.items():
        yield {"strategy": POOL, "seed": seed, "measure": "share", "modality": name, "value": share}
    worth = labels.wanted / len(labels.pair_ids)
    yield {"strategy": POOL, "seed": seed, "measure": "precision", "value": worth}
    for blend in blends:
        row: Row = {"strategy": blend.strategy, "seed": blend.seed}
        for name, value in selection(blend.pair_ids, labels, repaired.get(blend.strategy, ())).items():
            yield {**row, "measure": name, "value": value}
        mix = shares([modality[pair_id] for pair_id in blend.pair_ids])
        for name in pool:
            yield {**row, "measure": "share", "modality": name, "value": mix.get(name, 0.0)}
        yield {**row, "measure": "mix_distance", "value": total_variation(mix, pool)}
        for other in blends:
            if other.seed == blend.seed and other.strategy != blend.strategy:
                name = f"overlap__{other.strategy}"
                yield {**row, "measure": name, "value": overlap(blend.pair_ids, other.pair_ids)}


def of_costs(blends: Sequence[Blend], pairs: int) -> Iterator[Row]:
    """Yield what every blend has cost to choose; later seeds find what the first has embedded."""
    for blend in blends:
        values = {
            "seconds": blend.cost.seconds,
            "pairs_per_second": pairs / max(blend.cost.seconds, 1e-9),
            "peak_bytes": blend.cost.peak_bytes,
            "model_items": blend.cost.model_items,
        }
        for name, value in values.items():
            if value is not None:
                yield {"strategy": blend.strategy, "seed": blend.seed, "measure": name, "value": float(value)}


def of_training(results: Mapping[tuple[str, int], Perplexity]) -> Iterator[Row]:
    """Yield held-out perplexity at every step, and the best of each run."""
    for (strategy, seed), found in results.items():
        row: Row = {"strategy": strategy, "seed": seed}
        for step, value, tokens in zip(found.steps, found.values, found.tokens, strict=True):
            yield {**row, "measure": "perplexity", "step": step, "value": value}
            yield {**row, "measure": "tokens", "step": step, "value": float(tokens)}
        yield {**row, "measure": "best_perplexity", "value": found.best}
        yield {**row, "measure": "skipped", "value": float(found.skipped)}
        yield {**row, "measure": "train_seconds", "value": found.seconds}


def of_spaces(bench: Bench, strategy: str, shards: ShardStore, seed: int) -> Iterator[Row]:
    """Yield the geometry of the fused space and of every expert's that holds annotations, on clean pairs.

    Fused embeddings are cross-fitted, so each pair was projected by a network that has not seen it; experts have not
    seen any. ``<measure>__<space>``, with bootstrap intervals.

    Args:
        bench: the benchmark.
        strategy: whose shards.
        shards: embedded and projected.
        seed: of the fit.
    """
    config = bench.config
    spaces = {"fused": (FUSED, annotation_column(config.anchor))}
    for expert in config.experts:
        for source in sources(expert):
            spaces[source.column.removeprefix("emb_data__")] = (source.column, annotation_column(source.model))
    clean = {pair for pair, ok in zip(bench.labels.pair_ids, bench.labels.clean.tolist(), strict=True) if ok}
    present = shards.columns()
    for space, columns in spaces.items():
        if not all(column in present for column in columns):
            continue
        frame = frames.from_table(shards.table([PAIR_ID, ANNOTATION, MODALITY, *columns]))
        data, annotation = (frames.vectors(frame, column) for column in columns)
        good = (data.valid & annotation.valid).numpy() & np.array([p in clean for p in frames.strings(frame, PAIR_ID)])
        rows = np.flatnonzero(good)
        if len(rows) > MEASURED:
            rows = np.sort(np.random.default_rng([config.seed, 3]).choice(rows, MEASURED, replace=False))
        if len(rows) < 2:
            continue
        modality = [str(value) for value in np.asarray(frames.strings(frame, MODALITY), dtype=object)[rows]]
        texts = np.asarray(frames.strings(frame, ANNOTATION), dtype=object)[rows].tolist()
        folds = folds_of(texts, config.projection.folds, seed)
        intervals: dict[str, Interval] = geometry(
            data.values[rows], annotation.values[rows], modality, config.seed, config.bootstrap, folds, texts
        )
        for measure, interval in intervals.items():
            values = {"value": interval.value, "low": interval.low, "high": interval.high}
            yield {"strategy": strategy, "seed": seed, "measure": f"{measure}__{space}", **values}


def repaired(own: str, spoilt: str, spans: Sequence[Span] | None) -> bool:
    """Whether what is kept of an annotation with a foreign sentence is as good as the annotation was.

    >>> repaired("A dog runs", "A dog runs. Fish swim.", [[0, 11]])
    True
    >>> repaired("A dog runs", "A dog runs. Fish swim.", None)
    False

    Args:
        own: the annotation before the sentence was planted.
        spoilt: the annotation with it.
        spans: characters of ``spoilt`` that are kept; None is all.
    """
    own_sentences = set(split_sentences(joined(split_sentences(own))))
    whole = [(0, len(spoilt))] if spans is None else spans
    left = {True: 0, False: 0}
    for start, end in sentence_spans(spoilt):
        left[spoilt[start:end] in own_sentences] += any(begin <= start and end <= stop for begin, stop in whole)
    return not left[False] and left[True] >= KEPT * sum(spoilt[a:b] in own_sentences for a, b in sentence_spans(spoilt))


def repaired_pairs(originals: Mapping[str, str], trimmed: ShardStore) -> set[str]:
    """Return the ids of the pairs that are repaired.

    Args:
        originals: pair id -> its annotation before a foreign sentence was planted in it.
        trimmed: the pool as a run has trimmed it.
    """
    pair_ids = set()
    for part in range(trimmed.count):
        for row in trimmed.read(part, [PAIR_ID, ANNOTATION, ANNOTATION_SPANS]).to_pylist():
            own = originals.get(row[PAIR_ID])
            if own is not None and repaired(own, row[ANNOTATION], row[ANNOTATION_SPANS]):
                pair_ids.add(row[PAIR_ID])
    return pair_ids

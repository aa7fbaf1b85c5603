"""The text-only baseline: what a NeMo Curator user has today, as a Curator pipeline and as a strategy.

Judged is the annotation, of every modality; the data side is never looked at, not even of text and code, so that all
pairs are measured alike. The row filters are Curator's own classes, thresholds and order those of the English cascade
that Curator ships (``nemo_curator/config/text/heuristic_filter_english_pipeline.yaml``, version 1.4). One of them is
made repeatable (`top_ngrams`), one reads its file by another library where that is installed (`language`):

| filter (Curator's name)    | keeps                                                                            |
|----------------------------|----------------------------------------------------------------------------------|
| alpha_numeric              | at most .25 of the characters no letters, digits or ``.,!?``                      |
| symbol_to_word             | at most .1 of the words ``#`` or an ellipsis                                      |
| numbers_ratio              | at most .15 of the characters digits                                              |
| urls_ratio                 | at most .2 of the characters in URLs                                              |
| white_space                | at most .25 of the characters white space                                         |
| parentheses_ratio          | at most .1 of the characters brackets                                             |
| boilerplate_string_ratio   | at most .4 of the paragraphs boilerplate                                          |
| repeated_lines             | at least .7 of the lines left without repeated ones                               |
| repeated_paragraphs        | at least .7 of the paragraphs, likewise                                           |
| repeated_lines_char        | at least .8 of the characters left without repeated lines                         |
| repeated_paragraphs_char   | at least .8 of the characters, likewise                                           |
| word_count                 | 50 to 100,000 words                                                               |
| punctuation                | at most .85 of the lines without an end mark                                      |
| words_without_alphabets    | at least .8 of the words with a letter                                            |
| common_english_words       | at least 2                                                                        |
| mean_word_length           | 3 to 10 characters                                                                |
| max_word_length            | at most 1,000 characters                                                          |
| ellipsis                   | at most .3 of the lines end with an ellipsis                                      |
| repeating_top_{n}grams     | at most .2, .18, .16 of the characters in the most frequent 2-, 3-, 4-gram        |
| repeating_dup_{n}gram      | at most .15, .14 ... .10 of the characters in repeated 5-, 6- ... 10-grams        |
| bullet_ratio               | at most .9 of the lines begin with a bullet                                       |
| lang_id                    | confidence at least .3 (only where a fastText file is given)                      |
| exact_duplicate            | one of equal annotations                                                          |
| near_duplicate             | one of near-equal ones: MinHash, 24-character shingles, 20 bands of 13 hashes     |

They were made for documents: 50 words are more than most captions have, and in a short text any n-gram is a large
share. That is how it is, and why the strategy counts filters instead of demanding all.

The strategy: score = number of filters passed + margin, ties by ``pair_id``. The margin (`step.TraditionalStep`) is
below 1, so it only decides between pairs that pass equally many. It is made of scores that are shares of the text's
own size, so length as such does not count in it, beyond what the word count asks for; only the shares of n-grams fall
as a text grows. Each filter judges every pair by itself. Of a group of duplicates stays the pair with most row filters
passed, then the greatest margin, then the lowest ``pair_id``; all others fail, so that an exact duplicate fails both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Budget
from nemo_mm_rank.errors import MissingColumnError, require
from nemo_mm_rank.quality import text_filters as filters
from nemo_mm_rank.quality.duplicates import Keepers, join
from nemo_mm_rank.quality.text_filters import LANGUAGE, MARGIN, ROW_FILTERS_PASSED, TraditionalSettings
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.shards import Shards, attach_rows, live
from nemo_mm_rank.topk import TopK

EXACT, NEAR = "exact_duplicate", "near_duplicate"
FILTERS_PASSED, SCORE, REASON = "filters_passed", "score", "reason"
_WORDS = (PAIR_ID, POOL, MODALITY)
_PART, _ROW, _NUMBER = "_part", "_row", "_number"
_BANDS = 5
"""Bands whose keys are held at a time (as Curator's workflow does by default)."""


def curator_stages(
    settings: TraditionalSettings, text_field: str = ANNOTATION, duplicates: Path | None = None
) -> list[Any]:
    """Return the Curator stages that a Curator user would write: a ``ScoreFilter`` for each filter, scores kept.

    Curator finds duplicates by workflows over files, on a GPU, and removes them by a stage, which is the last one here.
    It reads a Parquet file (or a folder of them) with the ``pair_id`` of those to remove: `Choice.duplicates` written
    to a file, such as the ``duplicates.parquet`` of a job's folder.

    Args:
        settings: which filters, and their thresholds.
        text_field: the column to judge.
        duplicates: that file; None: there is no such stage.

    Raises:
        UserError: Curator is not installed.
    """
    require("nemo_curator", "curator")
    from nemo_curator.stages.text.deduplication.removal import TextDuplicatesRemovalStage
    from nemo_curator.stages.text.filters import ScoreFilter

    stages: list[Any] = [
        ScoreFilter(rule.make(), text_field=text_field, score_field=filters.score_column(rule.name))
        for rule in filters.rules(settings)
    ]
    if duplicates is not None:
        stages.append(TextDuplicatesRemovalStage(str(duplicates), id_field=PAIR_ID, duplicate_id_field=PAIR_ID))
    return stages


@dataclass(frozen=True)
class Choice:
    """A blend, without the users' own columns. All but ``places`` is the same however the pool is sharded.

    Attributes:
        chosen: best first: ``pair_id, pool, modality, rank`` (from 1), ``score``, ``filters_passed``, of each filter
            ``traditional__<filter>`` (its score) and ``traditional__<filter>__passed``, and the ``reason`` in words.
        places: ``(k, 2)`` shard number and row of each.
        duplicates: ``filter, pair_id, kept``: pairs that fail a filter of duplicates, and which one stays for them.
        counts: modality -> ``pairs``, ``passed_all``, and ``passed``: filter -> pairs; JSON-able.
    """

    chosen: pa.Table
    places: Ints
    duplicates: pa.Table
    counts: dict[str, Any]


def choose(shards: Shards, settings: TraditionalSettings, budget: Budget) -> Choice:
    """Fill the budget from shards that have been through `step.TraditionalStep`.

    Reads small columns, one shard at a time. Memory on top of a shard's: about 100 bytes per pair for the groups of
    duplicates and the keys of a few bands, the ids of pairs that have a duplicate, and twice the blend's rows.

    Args:
        shards: with ``pair_id, pool, modality, error`` and what the step provides.
        settings: those of the step.
        budget: how many, or from which score on.

    Raises:
        MissingColumnError: a shard lacks a column.
    """
    pairs = sum(len(rows) for _, rows, _ in _live(shards, _WORDS))
    keepers = _keepers(shards, settings, pairs)
    top = TopK(budget.pairs(pairs))
    counts: dict[str, Any] = {}
    doubles: dict[str, list[pa.Table]] = {name: [] for name in keepers}
    for table in _verdicts(shards, settings, keepers):
        scores = table[SCORE].to_numpy()
        inside = np.flatnonzero(scores >= (-np.inf if budget.threshold is None else budget.threshold))
        good = table.take(pa.array(inside))
        top.add(scores[inside], good[PAIR_ID], good)
        _count(counts, table, [rule.name for rule in filters.rules(settings)] + list(keepers))
        for name, keeper in keepers.items():
            failed = table.filter(pc.invert(table[filters.passed_column(name)]))
            kept = keeper.keeper(failed[_NUMBER].to_numpy())
            failed_filter = pa.array([name] * len(kept), pa.string())
            doubles[name].append(pa.table({"filter": failed_filter, PAIR_ID: failed[PAIR_ID], "kept": kept}))
        nothing = table.slice(0, 0)
    best = top.result()
    rows = nothing if best is None else best[2]
    places = np.stack([rows[_PART].to_numpy(), rows[_ROW].to_numpy()], axis=1)
    duplicates = pa.concat_tables([_NO_DUPLICATES, *(table for tables in doubles.values() for table in tables)])
    chosen = _chosen(rows, places, shards, settings, keepers)
    return Choice(chosen, places, duplicates.combine_chunks(), dict(sorted(counts.items())))


_NO_DUPLICATES = pa.schema([(name, pa.string()) for name in ("filter", PAIR_ID, "kept")]).empty_table()


def _live(shards: Shards, columns: Sequence[str]) -> Iterator[tuple[int, Ints, pa.Table]]:
    """Yield the live rows as `ranking.pool.live` does, and see that no column is missing."""
    for part, rows, table in live(shards, columns):
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise MissingColumnError(f"traditional: shard {part} lacks {', '.join(map(repr, missing))}")
        # pandas makes large strings of them, and shards are to fit each other.
        words = [pa.field(f.name, pa.string()) if f.name in _WORDS else f for f in table.schema]
        yield part, rows, table.cast(pa.schema(words))


def _keepers(shards: Shards, settings: TraditionalSettings, pairs: int) -> dict[str, Keepers]:
    """Return who stays of each group of exact, and of near duplicates, over the whole pool."""
    keys = {EXACT: [filters.EXACT_KEY] if settings.exact_duplicates else [], NEAR: filters.band_columns(settings)}
    keepers = {}
    for name, columns in keys.items():
        groups = np.arange(pairs)
        for start in range(0, len(columns), _BANDS):
            band = columns[start : start + _BANDS]
            held = pa.concat_tables([table for _, _, table in _live(shards, band)])
            for column in band:
                groups = join(groups, held[column].to_numpy())
        if columns:
            keepers[name] = Keepers(groups)
    number = 0
    for _, rows, table in _live(shards, [PAIR_ID, ROW_FILTERS_PASSED, MARGIN]) if keepers else ():
        scores = table[ROW_FILTERS_PASSED].to_numpy() + table[MARGIN].to_numpy()
        for keeper in keepers.values():
            keeper.add(number, scores, table[PAIR_ID])
        number += len(rows)
    return keepers


def _verdicts(shards: Shards, settings: TraditionalSettings, keepers: Mapping[str, Keepers]) -> Iterator[pa.Table]:
    """Yield per shard its live pairs with score, number of filters passed, all verdicts, and where each pair lies."""
    row_filters = [filters.passed_column(rule.name) for rule in filters.rules(settings)]
    kept = {filters.passed_column(name): keeper.kept for name, keeper in keepers.items()}
    number = 0
    for part, rows, table in _live(shards, [*_WORDS, ROW_FILTERS_PASSED, MARGIN, *row_filters]):
        numbers = np.arange(number, number + len(rows))
        number += len(rows)
        passed = table[ROW_FILTERS_PASSED].to_numpy().astype(np.int32)
        for stays in kept.values():
            passed += stays[numbers]
        added = {SCORE: passed + table[MARGIN].to_numpy(), FILTERS_PASSED: passed}
        added |= {name: stays[numbers] for name, stays in kept.items()}
        added |= {_PART: np.full(len(rows), part), _ROW: rows, _NUMBER: numbers}
        table = table.drop_columns([ROW_FILTERS_PASSED, MARGIN])
        for name, values in added.items():
            table = table.append_column(name, pa.array(values))
        yield table.combine_chunks()


def _count(counts: dict[str, Any], table: pa.Table, names: Sequence[str]) -> None:
    """Add a shard's pairs to the counts by modality."""
    table = table.append_column("all", pc.equal(table[FILTERS_PASSED], len(names)))
    sums = [(column, "sum") for column in ("all", *map(filters.passed_column, names))]
    for group in table.group_by(MODALITY).aggregate([([], "count_all"), *sums]).to_pylist():
        entry = counts.setdefault(group[MODALITY], {"pairs": 0, "passed_all": 0, "passed": dict.fromkeys(names, 0)})
        entry["pairs"] += group["count_all"]
        entry["passed_all"] += group["all_sum"]
        for name in names:
            entry["passed"][name] += group[f"{filters.passed_column(name)}_sum"]


def _chosen(
    rows: pa.Table, places: Ints, shards: Shards, settings: TraditionalSettings, keepers: Mapping[str, Keepers]
) -> pa.Table:
    """Return the chosen pairs with the filters' scores and a reason, columns in their order."""
    names = [rule.name for rule in filters.rules(settings)]
    labels = [filters.LABEL] if LANGUAGE in names else []
    rows = rows.append_column("rank", pa.array(np.arange(1, rows.num_rows + 1)))
    rows = attach_rows(rows, places, shards, [*map(filters.score_column, names), *labels])
    rows = rows.append_column(REASON, pa.array(_reasons(rows, settings, keepers), pa.string()))
    columns = [*_WORDS, "rank", SCORE, FILTERS_PASSED]
    for name in names:
        columns += [filters.score_column(name), *(labels if name == LANGUAGE else []), filters.passed_column(name)]
    return rows.select([*columns, *map(filters.passed_column, keepers), REASON])


def _reasons(rows: pa.Table, settings: TraditionalSettings, keepers: Mapping[str, Keepers]) -> list[str]:
    """Return lines like ``27 of 29 filters passed; failed: word_count 12 (from 50 to 100,000), ...``."""
    failed: list[list[str]] = [[] for _ in range(rows.num_rows)]
    judges = filters.rules(settings)
    for rule in judges:
        where = np.flatnonzero(~rows[filters.passed_column(rule.name)].to_numpy())
        scores = rows[filters.score_column(rule.name)].to_numpy()[where].tolist()
        labels = rows[filters.LABEL].take(pa.array(where)).to_pylist() if rule.name == LANGUAGE else [""] * len(where)
        for row, score, label in zip(where.tolist(), scores, labels, strict=True):
            reading = f"{label} {score:.3g}" if label else f"{score:.3g}"
            failed[row].append(f"{rule.name} {reading} ({rule.bound})")
    for name, keeper in keepers.items():
        where = np.flatnonzero(~rows[filters.passed_column(name)].to_numpy())
        kept = keeper.keeper(rows[_NUMBER].to_numpy()[where]).to_pylist()
        for row, pair_id in zip(where.tolist(), kept, strict=True):
            failed[row].append(f"{name} of {pair_id}")
    total = len(judges) + len(keepers)
    return [
        f"{passed} of {total} filters passed" + (f"; failed: {', '.join(why)}" if why else "")
        for passed, why in zip(rows[FILTERS_PASSED].to_pylist(), failed, strict=True)
    ]

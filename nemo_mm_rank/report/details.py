"""Pairs in full: both sides with what was trimmed, copies of their media, and what their score is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.media.preview import copy
from nemo_mm_rank.media.segment import Span
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.ranking.query_scores import PREFIX
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    DATA_SPANS,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
    SNS_REASON,
    WEAKEST_SENTENCE,
    description_column,
)
from nemo_mm_rank.shards import attach_rows

Piece = list[str | bool]
"""``[text, kept]``."""


def pieces(text: str, spans: Sequence[Span] | None, limit: int) -> list[Piece]:
    """Return a text as pieces that were kept or not, in order; together they are the text up to ``limit`` characters.

    White space between kept parts counts as kept: it is no loss.

    Args:
        text: the whole text.
        spans: ``[start, end]`` in characters of what was kept; None is all.
        limit: most characters; where more are left, the last piece ends in an ellipsis.
    """
    bounds = [(0, len(text))] if spans is None else sorted((max(0, int(a)), min(len(text), int(b))) for a, b in spans)
    parts: list[Piece] = []
    place = 0

    def add(end: int, kept: bool) -> None:
        nonlocal place
        end = min(end, limit)
        if end <= place:
            return
        piece = text[place:end]
        kept = kept or not piece.strip()
        if parts and parts[-1][1] == kept:
            parts[-1][0] = f"{parts[-1][0]}{piece}"
        else:
            parts.append([piece, kept])
        place = end

    for start, end in bounds:
        add(start, False)
        add(end, True)
    add(len(text), False)
    if len(text) > limit:
        parts.append(["\N{HORIZONTAL ELLIPSIS}", True])
    return parts


def excerpt(text: str, limit: int) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[: 2 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


MAX_MEDIA, MAX_MEDIA_BYTES = 240, 12_000_000
"""Copies of media that a page carries, and the characters that they take together."""

_DATA, _ANNOTATION, _VALUE = 1500, 1000, 200  # characters
_OWN = 12  # of the user's own columns
_PLACE = "\0place"
"""A column of no pool's."""

_AT_ONCE = 64  # pairs whose contents are held
_CONTENT = (
    *(MODALITY, DATA, ANNOTATION, DATA_SPANS, ANNOTATION_SPANS),
    *(SNS_REASON, MEDIA_ROOT, DATA_BYTES, DATA_PARTS),
)

Detail = dict[str, Any]


class Details:
    """Shows pairs in full, until there are copies of enough media.

    Attributes:
        copies: of media so far.
        left_out: media that came after there were enough.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.copies, self.left_out, self._bytes = 0, 0, 0

    def ranked(self, positions: Ints) -> Iterator[Detail]:
        """Yield what the page shows of ranked pairs, in order; contents of a bounded number are held at a time."""
        run = self._run
        reasons = dict(zip(*(run.ranking.chosen[name].to_pylist() for name in (PAIR_ID, "reason")), strict=True))
        doubles = dict(zip(*(run.ranking.duplicates[name].to_pylist() for name in (PAIR_ID, "kept")), strict=True))
        for start in range(0, len(positions), _AT_ONCE):
            batch = positions[start : start + _AT_ONCE]
            table = attach_rows(pa.table({_PLACE: batch}), run.scored.places[batch], run.shards, self._columns)
            parts, chances = contributions(run.scoring, table), run.scoring.chances(table)
            for place, row in enumerate(table.to_pylist()):
                detail = self._content(row)
                detail["parts"] = [[name, round(float(values[place]), 3)] for name, values in parts.items()]
                detail["facts"] = [*_facts(row, run.scoring, chances, place), *self._own(row)]
                if row[PAIR_ID] in reasons:
                    detail["reason"] = reasons[row[PAIR_ID]]
                if row[PAIR_ID] in doubles:
                    detail["double"] = doubles[row[PAIR_ID]]
                yield detail

    def lost(self, entries: Sequence[Mapping[str, Any]]) -> Iterator[Detail]:
        """Yield what the page shows of pairs that were not ranked, with their contents where the pool has them.

        Args:
            entries: of the quarantine.
        """
        contents = self._failed([entry[PAIR_ID] for entry in entries if entry["file"] is None])
        for entry in entries:
            row = contents.get(entry[PAIR_ID]) if entry["file"] is None else None
            detail = self._content(row) if row else {"data": []}
            # What cannot be opened says so itself; once is enough.
            detail["data"] = [part for part in detail["data"] if part.get("missing") != entry["message"]]
            detail["lost"] = [entry["step"], entry["error"], entry["message"]]
            if entry["file"] is not None:
                detail["place"] = f"{entry['file'].rsplit('/', 1)[-1]}, line {entry['line']}"
            yield detail

    @cached_property
    def _columns(self) -> list[str]:
        columns = self._run.shards.columns()
        descriptions = [name for name in columns if name.startswith(description_column(""))]
        ours = [*_CONTENT, WEAKEST_SENTENCE, *descriptions, *self._run.scoring.reads]
        names = dict.fromkeys([PAIR_ID, *ours, *self._own_columns])
        return [name for name in names if name in columns]

    @cached_property
    def _own_columns(self) -> list[str]:
        """The user's own columns of plain values, a few of them."""
        pool = ShardStore(self._run.shards.stages[:1], self._run.shards.count).columns()
        plain = [
            name
            for name, kind in pool.items()
            if name not in (PAIR_ID, POOL, ERROR, *_CONTENT)
            and (pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_primitive(kind))
        ]
        return plain[:_OWN]

    def _own(self, row: Mapping[str, Any]) -> list[list[str]]:
        return [[name, excerpt(str(row[name]), _VALUE)] for name in self._own_columns if row[name] is not None]

    def _content(self, row: Mapping[str, Any]) -> Detail:
        """Return both sides of a pair, with what was trimmed, and what describers said."""
        detail: Detail = {
            "data": [self._side(row, *part) for part in parts_of(row)],
            "annotation": pieces(row.get(ANNOTATION) or "", row.get(ANNOTATION_SPANS), _ANNOTATION),
        }
        prefix = description_column("")
        detail["told"] = [
            [name.removeprefix(prefix), excerpt(text, _VALUE)]
            for name, text in row.items()
            if name.startswith(prefix) and text
        ]
        if row.get(SNS_REASON) is not None:
            detail["sns"] = row[SNS_REASON]
        return detail

    def _side(self, row: Mapping[str, Any], modality: str, data: str, spans: list[list[float]] | None) -> Detail:
        """Return one part of the data."""
        if not is_media(modality):
            return {"kind": modality, "pieces": pieces(data, spans, _DATA)}
        name = {"name": excerpt(data, _VALUE)}
        if self.copies >= MAX_MEDIA or self._bytes >= MAX_MEDIA_BYTES:
            self.left_out += 1
            return {**name, "missing": "not shown, because this page has reached its limit for media"}
        root, content = row.get(MEDIA_ROOT) or ".", row.get(DATA_BYTES)
        shown = copy(data or "data_bytes", modality, spans, root, content, self._run.config.media)
        self.copies += "src" in shown
        self._bytes += len(shown.get("src", ""))
        return {**name, **shown}

    def _failed(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of pairs that failed in a step, by id."""
        by_id: dict[str, dict[str, Any]] = {}
        if not ids:
            return by_id
        shards, pair_ids = self._run.shards, pa.array(ids, pa.string())
        columns = [name for name in (PAIR_ID, *_CONTENT) if name in shards.columns()]
        for part in range(shards.count):
            words = shards.read(part, [PAIR_ID, ERROR])
            mask = pc.and_(pc.is_valid(words[ERROR]), pc.is_in(words[PAIR_ID], value_set=pair_ids))
            rows = np.flatnonzero(mask.to_numpy())
            if len(rows):
                table = shards.read(part, columns).take(pa.array(rows))
                by_id.update({row[PAIR_ID]: row for row in table.to_pylist()})
        return by_id


def contributions(scoring: Scoring, table: pa.Table) -> dict[str, Floats]:
    """Return what each component and condition adds to the scores, ``(n,)``, before they are calibrated.

    Args:
        scoring: from cosines to scores.
        table: what it reads, of ``n`` pairs.
    """
    gains = scoring.topic.contributions(*scoring.columns(table))
    costs = scoring.costs(scoring.chances(table))
    return {**gains, **{f"if {name}": cost for name, cost in costs.items()}}


def _facts(
    row: Mapping[str, Any], scoring: Scoring, chances: Mapping[str, Floats], place: int
) -> Iterator[tuple[str, str]]:
    for name, values in chances.items():
        yield f"probability of {name}", "not known" if np.isnan(values[place]) else f"{100 * values[place]:.0f} %"
    if sentence := row.get(WEAKEST_SENTENCE):
        yield "least likely sentence", excerpt(sentence, _VALUE)
    for name, moments in scoring.topic.narrow.moments.items():
        if row[name] is not None:
            title = "cosine " + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name
            yield title.replace("__", " "), f"{row[name]:.3f} (pool {moments.mean:.3f})"


def parts_of(row: Mapping[str, Any]) -> list[tuple[str, str, list[list[float]] | None]]:
    """Return the parts of a pair's data, each with its modality and what was kept of it (None: all)."""
    spans = row.get(DATA_SPANS)
    if not row.get(DATA_PARTS):
        return [(row[MODALITY], row.get(DATA) or "", spans)]
    parts = []
    for number, part in enumerate(row[DATA_PARTS]):
        kept = [span[1:] for span in spans or () if int(span[0]) == number]
        parts.append((part["modality"], part["data"], kept or None))
    return parts

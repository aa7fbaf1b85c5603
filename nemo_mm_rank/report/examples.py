"""What queries by examples are made of: the examples themselves, a few of each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemo_mm_rank.config import Config
from nemo_mm_rank.media.preview import copy
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.report import content
from nemo_mm_rank.report.content import Example, counted
from nemo_mm_rank.report.details import excerpt
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_PARTS, MEDIA_ROOT, MODALITY, PAIR_ID

SHOWN = 24
"""Examples of each query that a page shows."""

_TEXT = 240  # characters


def examples(run: Run) -> Iterator[content.Part]:
    """Yield what each query by examples is made of; the first of them, with copies of their media."""
    for like in State.load(run.folder).likes(run.folder):
        rows = like.examples.rows
        query = like.query
        asked = "what should not be picked" if query.weight < 0 else "what is asked for"
        near = "the nearest one" if query.norm == "inf" else "all of them"
        sides = (
            "data and annotations" if query.side == "both" else query.side if query.side == "data" else "annotations"
        )
        note = f"{counted(len(rows), 'example')} of {asked}; pairs are compared with {near}, by {sides}"
        if like.examples.failed:
            note += f"; {len(like.examples.failed):,} more could not be embedded ({like.examples.failed[0]})"
        if len(rows) > SHOWN:
            note += f"; the first {SHOWN} are shown"
        shown = [_example(row, run.config) for row in rows.slice(0, SHOWN).to_pylist()]
        yield content.Examples(f"Un{query.label}" if query.weight < 0 else query.label.capitalize(), shown, f"{note}.")


def _example(row: Mapping[str, Any], config: Config) -> Example:
    modality, data, said = row[MODALITY], row[DATA] or "", row[ANNOTATION] or ""
    if not is_media(modality) or row.get(DATA_PARTS):
        text = data if data == said else f"{data} \N{EM DASH} {said}"
        return Example(row[PAIR_ID], excerpt(text, _TEXT))
    found = copy(data, modality, None, row.get(MEDIA_ROOT) or ".", None, config.media)
    text = excerpt(said or found.get("missing", ""), _TEXT)
    return Example(row[PAIR_ID], text, found.get("kind", "") if "src" in found else "", found.get("src", ""))

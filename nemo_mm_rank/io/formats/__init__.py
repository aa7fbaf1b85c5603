"""Formats that pools come in besides rows of ours: one registry, asked in its order what a manifest is written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.fields import ANNOTATION_PATH, DATA_PATH
from nemo_mm_rank.io.formats.base import About, Format, looked_at
from nemo_mm_rank.io.formats.captions import CAPTIONED
from nemo_mm_rank.io.formats.conversations import CONVERSATIONS
from nemo_mm_rank.io.formats.hub import HUB
from nemo_mm_rank.io.formats.speech import SPEECH
from nemo_mm_rank.io.rows import Rows, uncollected
from nemo_mm_rank.schema import ANNOTATION


def _is_rows(rows: Rows, about: About) -> bool:
    """Whether there is a column of annotations, or what says where they are; lists are captions.

    Where sides are named by their files, which only rows of pairs have, a list is one bad row.
    """
    annotation, *paths = (about.source.fields.get(name, name) for name in (ANNOTATION, ANNOTATION_PATH, DATA_PATH))
    if annotation in rows.columns and not any(isinstance(value, list) for value in looked_at(rows, annotation)):
        return True
    return paths[0] in rows.columns or (annotation in rows.columns and paths[1] in rows.columns)


def _as_they_are(rows: Rows, _: About) -> Rows:
    return rows


ROWS = Format("rows", "rows of pairs", _is_rows, _as_they_are)

FORMATS: tuple[Format, ...] = (HUB, ROWS, *CONVERSATIONS, SPEECH, *CAPTIONED)


def converted(
    batches: Iterator[Rows],
    source: PoolSource,
    pool: str,
    told: Mapping[str, Any],
    among: Sequence[Format] = FORMATS,
) -> Iterator[tuple[Rows, Format]]:
    """Yield rows of ours, with the format that the first of them show the manifest to be in.

    Args:
        batches: the rows of one manifest as they are read.
        source: the pool's settings, which may name the ``format``.
        pool: its name, for ids.
        told: what a ``dataset_info.json`` says of the manifest.
        among: what it may be written in; of one nothing is asked.
    """
    about = About(source, pool, told)
    named = among if len(among) == 1 else [each for each in FORMATS if each.name == source.format]
    found = next(iter(named), None)
    for rows in batches:
        if found is None and len(rows.lines):
            found = next((each for each in among if each.fits(rows, about)), ROWS)
        known = found or ROWS
        with uncollected():
            read = known.read(rows, about) if len(rows.lines) else rows
        yield read, known

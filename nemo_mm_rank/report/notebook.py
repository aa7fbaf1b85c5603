"""What a notebook shows of a finished run: the first pairs of its blend, and its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path, PosixPath
from typing import Any

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.media.preview import copy
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.report.details import excerpt, parts_of
from nemo_mm_rank.run.finished import rows_of
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ANNOTATION, DATA_BYTES, MEDIA_ROOT, MODALITY, PAIR_ID

SHOWN = 12
"""Pairs of a blend in a gallery."""

_TEXT = 160  # characters of a side
_CARDS = "display: flex; flex-wrap: wrap; gap: 16px; margin: 8px 0"
_CARD = "width: 200px; font-size: 12px; line-height: 1.4; overflow-wrap: anywhere"
_MEDIUM = "display: block; max-width: 100%; max-height: 150px; margin: 4px 0"


class ReportPath(PosixPath):
    """The path of a report; a notebook shows the page itself, in a frame that reaches nothing outside of it."""

    def _repr_html_(self) -> str:
        # Links within the page would else lead to the notebook, whose address such a frame inherits.
        page = self.read_text(encoding="utf-8").replace("<head>", '<head><base href="about:srcdoc">', 1)
        style = "width: 100%; height: 800px; border: 1px solid #8888"
        return f'<iframe title="report" sandbox="allow-scripts" style="{style}" srcdoc="{escape(page)}"></iframe>'


def gallery(folder: Path) -> str:
    """Return the first pairs of a run's blend as HTML: small copies of their media, and excerpts, all of it escaped.

    Args:
        folder: of a finished run.
    """
    run = RunFolder(folder)
    first = read_table(run.blend).slice(0, SHOWN)
    pool, settings = rows_of(run, first[PAIR_ID]), run.load_config().media
    roots = dict(zip(pool[PAIR_ID].to_pylist(), pool[MEDIA_ROOT].to_pylist(), strict=True))
    cards = (_card(row | {MEDIA_ROOT: roots[row[PAIR_ID]]}, settings) for row in first.to_pylist())
    return f'<div style="{_CARDS}">{"".join(cards)}</div>'


def _card(row: Mapping[str, Any], settings: MediaSettings) -> str:
    head = escape(f"{row['rank']}. {row[MODALITY]}, score {row['score']:+.2f}")
    said = escape(excerpt(row[ANNOTATION], _TEXT))
    return f'<div style="{_CARD}"><strong>{head}</strong>{"".join(_sides(row, settings))}<em>{said}</em></div>'


def _sides(row: Mapping[str, Any], settings: MediaSettings) -> Iterator[str]:
    for modality, data, spans in parts_of(row):
        if not is_media(modality):
            yield f"<p>{escape(excerpt(data, _TEXT))}</p>"
            continue
        found = copy(data or DATA_BYTES, modality, spans, row[MEDIA_ROOT] or ".", row.get(DATA_BYTES), settings)
        source, name = escape(found.get("src", "")), escape(excerpt(data, _TEXT))
        match found.get("kind"):
            case "image":
                yield f'<img style="{_MEDIUM}" alt="{name}" src="{source}">'
            case "audio" | "video" as kind:
                yield f'<{kind} style="{_MEDIUM}" controls preload="metadata" src="{source}"></{kind}>'
            case _:
                yield f"<p>{name}: {escape(found.get('missing', ''))}</p>"

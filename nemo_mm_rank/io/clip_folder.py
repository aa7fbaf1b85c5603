"""The folder that Curator's `ClipWriterStage` leaves as a manifest: a JSON file for each clip, and the clips beside.

Every caption model has a column ``<model>_caption`` (or ``<model>_enhanced_caption``) with what it says of the clip's
windows, line by line; the annotation is the first of them, enhanced ones first, unless the field map names another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.json_text import NOT_AN_OBJECT, json_object, why_not
from nemo_mm_rank.io.rows import BATCH_ROWS, MAX_LINE_BYTES, Rows, gathered
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, PAIR_ID, Modality

_METAS, _CLIPS, _FILTERED = "metas/v0", "clips", "filtered_clips"
_CAPTION, _ENHANCED = "_caption", "_enhanced_caption"


def clip_metas(folder: str) -> str | None:
    """Return where the metadata is in such a folder, None where it is another."""
    metas = os.path.join(folder, _METAS)
    return metas if os.path.isdir(metas) else None


def clip_files(metas: str) -> list[str]:
    """Return the JSON files of the clips, in the order of their names.

    Raises:
        PoolError: there is none.
    """
    found = sorted(name for name in os.listdir(metas) if name.endswith(".json") and not name.startswith("."))
    if not found:
        raise PoolError(f"{metas}: the folder contains no clips")
    return [os.path.join(metas, name) for name in found]


def clip_root(metas: str) -> str:
    """Return the folder that ``metas`` lies in, which references are relative to."""
    return os.path.abspath(metas).removesuffix(_METAS.replace("/", os.sep)).rstrip(os.sep)


def clip_rows(metas: str, source: PoolSource) -> Iterator[Rows]:
    """Stream the clips that are not filtered as rows, numbered from 1 in the order of their names.

    Args:
        metas: the folder of their metadata.
        source: the pool's configuration: field map.

    Raises:
        PoolError: the folder cannot be read, or has no clip.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    for number, file in enumerate(clip_files(metas), 1):
        try:
            with open(file, "rb") as handle:
                told = json_object(handle.read(MAX_LINE_BYTES + 1))
        except NOT_AN_OBJECT as error:
            bad.append(BadRow(file, 1, "row", "a JSON object", why_not(error)))
        except OSError as error:
            raise PoolError(f"{file}: cannot be read: {error.strerror}") from error
        else:
            if f"/{_FILTERED}/" not in str(told.get("clip_location")):
                rows.append(_row(told, source))
                lines.append(number)
        if len(rows) + len(bad) == BATCH_ROWS:
            yield gathered(metas, rows, lines, bad)
            rows, lines, bad = [], [], []
    yield gathered(metas, rows, lines, bad)


def _row(told: Mapping[str, Any], source: PoolSource) -> dict[str, Any]:
    name = told.get("span_uuid")
    captions = _captions(told.get("windows"))
    first = next((said for key, said in captions.items() if key.endswith(_ENHANCED)), None)
    ours = {
        PAIR_ID: name,
        MODALITY: str(Modality.VIDEO),
        DATA: f"{_CLIPS}/{name}.mp4" if isinstance(name, str) else None,
        ANNOTATION: first or next(iter(captions.values()), None),
    }
    theirs = {key: value for key, value in told.items() if key not in ours and key != "windows"}
    return {**theirs, **captions, **{key: value for key, value in ours.items() if key not in source.fields}}


def _captions(windows: Any) -> dict[str, str]:
    """Return what each model says, under the key that the windows have for it."""
    said: dict[str, list[str]] = {}
    for window in windows if isinstance(windows, list) else ():
        for key, text in window.items() if isinstance(window, dict) else ():
            if key.endswith(_CAPTION) and isinstance(text, str) and text.strip():
                said.setdefault(key, []).append(text.strip())
    return {key: "\n".join(texts) for key, texts in said.items()}

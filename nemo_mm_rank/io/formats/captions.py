"""Media beside captions: Hugging Face data sets and folders, COCO, img2dataset's output, tables of URLs.

A row has one medium and one caption or several, by the names that such tables use. What several captions make is the
pool's setting: a pair each, one pair of all, or one of the first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.coco_rows import COCO_CAPTIONS
from nemo_mm_rank.io.formats.base import About, FaultError, Format, kept, listed, looked_at
from nemo_mm_rank.io.rows import Column, Rows, taken
from nemo_mm_rank.modality import by_extension
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, PAIR_ID, Modality

CAPTIONS = (
    *("caption", "captions", "text", "texts", "TEXT", "sentence", "sentences", "transcription", "transcript"),
    *("alt_text", "description", "raw", "label_text"),
)
MEDIA = {
    **dict.fromkeys(("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"), Modality.IMAGE),
    **dict.fromkeys(("audio", "speech", "wav", "flac", "mp3"), Modality.AUDIO),
    **dict.fromkeys(("video", "mp4", "clip"), Modality.VIDEO),
}
"""Names of columns -> the modality of what is in them."""
FILES = ("file_name", "image_file_name", "audio_file_name", "video_file_name", "image_path", "audio_path", "video_path")
URLS = ("url", "URL", "image_url", "audio_url", "video_url")
_FEATURES = {"Image": Modality.IMAGE, "Audio": Modality.AUDIO, "Video": Modality.VIDEO}
_EXTENSIONS = ("jpg", "png", "webp", "jpeg")


def _captions(rows: Rows, about: About) -> str | None:
    """Return the column with captions: the one that the field map names, or the first of a usual name."""
    wanted = about.source.fields.get(ANNOTATION)
    names = (wanted,) if wanted else (ANNOTATION, *CAPTIONS)
    return next((name for name in names if name in rows.columns), None)


def _media(rows: Rows, about: About) -> tuple[str, Modality | None] | None:
    """Return the column with media, and their modality where the column says it."""
    wanted = about.source.fields.get(DATA)
    if wanted in rows.columns and wanted is not None:
        return wanted, _kind(rows, wanted)
    for name in rows.columns:
        if name in rows.features or (name in MEDIA and _is_medium(rows.columns[name])):
            return name, _kind(rows, name)
    return next(((name, _kind(rows, name)) for name in (*FILES, DATA) if name in rows.columns), None)


def _kind(rows: Rows, name: str) -> Modality | None:
    said = next((kind for kind in MEDIA if name.startswith(f"{kind}_")), name)
    return _FEATURES.get(rows.features.get(name, "")) or MEDIA.get(said)


def _is_medium(column: Column) -> bool:
    """Whether values are paths, contents, or both as Hugging Face data sets keep them."""
    if not isinstance(column, pa.Array):
        return any(isinstance(value, str) for value in column)
    kind = column.type
    both = pa.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}
    return bool(both) or pa.types.is_binary(kind) or pa.types.is_string(kind)


def _made(
    rows: Rows, about: About, captions: str, data: Column, modality: Column, dropped: Sequence[str],
    faults: dict[int, FaultError],
) -> Rows:  # fmt: skip
    """Return rows with these sides, a row for each caption where each is to make a pair."""
    texts = listed(rows, captions)
    if not any(isinstance(text, list) for text in texts):
        made: dict[str, Column] = {MODALITY: modality, DATA: data, ANNOTATION: rows.columns[captions]}
        return kept(rows, made, [*dropped, captions], faults)
    which: list[int] = []
    annotation: list[str] = []
    for row, text in enumerate(texts):
        several = text if isinstance(text, list) else [text]
        if not several or not all(isinstance(one, str) for one in several):
            faults.setdefault(row, FaultError(captions, "a caption or a list of captions", shown(text)))
        if row in faults:
            several = [""]
        elif about.source.captions != "each":
            several = several[:1] if about.source.captions == "first" else ["\n".join(several)]
        which += [row] * len(several)
        annotation += several
    places = np.array(which, dtype=np.int64)
    firsts = np.searchsorted(places, places)
    columns = {name: taken(column, places) for name, column in rows.columns.items()}
    own = about.source.fields.get(PAIR_ID, PAIR_ID)
    if own in columns:
        again = (np.arange(len(places)) - firsts).tolist()
        ids = listed(rows, own)
        columns[own] = [f"{ids[row]}#{n}" if n else ids[row] for row, n in zip(which, again, strict=True)]
    spread = Rows(rows.file, rows.lines[places], columns, rows.bad)
    made = {MODALITY: taken(modality, places), DATA: taken(data, places), ANNOTATION: annotation}
    return kept(spread, made, [*dropped, captions], {which.index(row): fault for row, fault in faults.items()})


def _read_captions(rows: Rows, about: About) -> Rows:
    found, captions = _media(rows, about), _captions(rows, about)
    if found is None:  # none of these rows has a medium, which others of the manifest have
        found = next(((name, MEDIA[name]) for name in rows.columns if name in MEDIA), None)
    if found is None or captions is None:
        return rows
    name, kind = found
    column = rows.columns[name]
    return _made(rows, about, captions, column, _modalities(rows, name, kind, about), [name], {})


def _modalities(rows: Rows, name: str, kind: Modality | None, about: About) -> list[str | None]:
    """Return the modality of each row: the pool's, the column's, or what the file's name ends in says."""
    n = len(rows.lines)
    said = about.source.fields.get(MODALITY, MODALITY)
    if said in rows.columns:
        default = about.source.modality or kind
        return [default if value is None else value for value in listed(rows, said)]
    if about.source.modality is not None or kind is not None:
        return [str(about.source.modality or kind)] * n
    return [
        by_extension(value.rpartition(".")[2].lower()) if isinstance(value, str) else None
        for value in listed(rows, name)
    ]


def _has_captions(rows: Rows, about: About) -> bool:
    return _media(rows, about) is not None and _captions(rows, about) is not None


def _is_coco(rows: Rows, _: About) -> bool:
    return COCO_CAPTIONS in rows.columns


def _read_coco(rows: Rows, about: About) -> Rows:
    modality: Column = [Modality.IMAGE] * len(rows.lines)
    return _made(rows, about, COCO_CAPTIONS, rows.columns["file_name"], modality, ["file_name"], {})


def _is_img2dataset(rows: Rows, about: About) -> bool:
    return {"key", "status", "url"} <= rows.columns.keys() and _captions(rows, about) is not None


def _read_img2dataset(rows: Rows, about: About) -> Rows:
    """Take the rows whose download succeeded; the files of ``00012.parquet`` lie in a folder ``00012``."""
    stem = os.path.splitext(rows.file)[0]
    shard = os.path.basename(stem)
    faults: dict[int, FaultError] = {}
    data: list[str | None] = []
    for row, (key, status, why) in enumerate(
        zip(listed(rows, "key"), listed(rows, "status"), listed(rows, "error_message"), strict=True)
    ):
        data.append(f"{shard}/{key}.{_EXTENSIONS[0]}")
        if status != "success":
            faults[row] = FaultError("status", "a download that succeeded", f"{shown(status)}: {shown(why)}")
            continue
        there = (one for one in _EXTENSIONS if os.path.lexists(os.path.join(stem, f"{key}.{one}")))
        data[row] = f"{shard}/{key}.{next(there, _EXTENSIONS[0])}"
    modality: Column = [str(about.source.modality or Modality.IMAGE)] * len(data)
    return _made(rows, about, str(_captions(rows, about)), data, modality, [], faults)


def _urls(rows: Rows) -> str | None:
    return next((name for name in URLS if name in rows.columns), None)


def _is_urls(rows: Rows, about: About) -> bool:
    name = _urls(rows)
    return (
        name is not None and _captions(rows, about) is not None and any("://" in str(u) for u in looked_at(rows, name))
    )


def _read_urls(rows: Rows, about: About) -> Rows:
    name, captions = _urls(rows), _captions(rows, about)
    if name is None or captions is None:
        return rows
    kind = _kind(rows, name) or Modality.IMAGE
    modality: Column = [str(about.source.modality or kind)] * len(rows.lines)
    return _made(rows, about, captions, rows.columns[name], modality, [name], {})


CAPTIONED = (
    Format("coco", "captions as of COCO", _is_coco, _read_coco),
    Format("img2dataset", "what img2dataset downloaded", _is_img2dataset, _read_img2dataset),
    Format("captions", "media with captions, as of Hugging Face data sets", _has_captions, _read_captions),
    Format("urls", "a table of URLs with captions", _is_urls, _read_urls),
)

"""What every export needs: the rows of a blend one by one, their media put in place, what they say as turns."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import PairError, UserError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.formats.base import About, FaultError
from nemo_mm_rank.io.formats.conversations import spoken
from nemo_mm_rank.io.formats.speech import FILE as NEMO_FILE
from nemo_mm_rank.media.cut_video import cut_video
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import annotation_text, spans_of
from nemo_mm_rank.media.source import Roots, is_local, is_url, open_source
from nemo_mm_rank.media.spans import kept_text
from nemo_mm_rank.media.tar import place_of
from nemo_mm_rank.media.window import window_of, without_window
from nemo_mm_rank.modality import is_media, modalities_of, of
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    DATA_SPANS,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SOURCE_RECORD,
    Modality,
)

Row = dict[str, Any]
MEDIA = "media"
"""Folder of an export that media are copied to."""
PLACES = ("copy", "link", "keep")
_CUT: dict[str, str] = {Modality.IMAGE: "png", Modality.AUDIO: "wav", Modality.VIDEO: "mp4"}
"""What a part of a medium is written as."""
_EXTENSION = re.compile(r"[a-z0-9]{1,16}")
_ROWS = 256


@dataclass(frozen=True)
class Settings:
    """How a blend is written.

    Attributes:
        media: which references may be opened, and how large.
        place: one of `PLACES`: copy media into the export, link to them, or keep references to where they are.
        trimmed: write what SNS kept of each pair, and no more.
        max_samples: most pairs of a file, where there are several.
        max_bytes: most bytes of a file, where there are several.
        pools: name of a pool -> what is known of its records.
        arrays: pools whose records stood in one JSON array.
        card: what a data card says of the blend: how it was made, digests, versions.
        plane: ``(n, 2)`` coordinates of the pairs on a map; None where there are none.
        vectors: ``(n, d)`` of the fused space; None where there are none.
    """

    media: MediaSettings = field(default_factory=MediaSettings)
    place: str = "copy"
    trimmed: bool = False
    max_samples: int = 10_000
    max_bytes: int = 2**30
    pools: Mapping[str, About] = field(default_factory=dict)
    arrays: frozenset[str] = frozenset()
    card: Mapping[str, Any] = field(default_factory=dict)
    plane: pa.Array | None = None
    vectors: pa.Array | None = None


@dataclass(frozen=True)
class Export:
    """One format that blends are written in: its name, what it is, and what fills a folder with a blend."""

    name: str
    title: str
    write: Callable[[pa.Table, Path, Settings], None]


@dataclass(frozen=True)
class Medium:
    """A medium of a pair.

    Attributes:
        kind: its modality.
        reference: as the pool names it.
        root: what that is relative to.
        content: what the row carries itself.
        spans: what is to be kept of it; None is all.
    """

    kind: str
    reference: str
    root: str
    content: bytes | None = None
    spans: Sequence[Sequence[float]] | None = None

    def open(self, settings: MediaSettings) -> IO[bytes]:
        """Open it, or what is to be kept of it: an image is cropped (PNG), a recording or a video cut (WAV, MP4).

        Raises:
            PairError: it cannot be opened.
        """
        if not self.is_cut:
            return open_source(self.reference, self.root, settings, self.content)
        spans = window_of(self.reference) if self.spans is None else [list(span) for span in self.spans]
        if self.kind == Modality.VIDEO:
            with open_source(self.reference, self.root, settings, self.content) as source:
                return cut_video(source, spans or [], settings)
        found: Any = Opener(settings).open(self.reference, self.kind, spans, self.root, self.content)
        if self.kind == Modality.AUDIO:
            return BytesIO(wav(found.samples, found.rate))
        cropped = BytesIO()
        found.pixels.save(cropped, "PNG")
        cropped.seek(0)
        return cropped

    @property
    def is_cut(self) -> bool:
        """Whether what is written is made from the file, and is not the file."""
        cut = self.spans is not None or window_of(self.reference) is not None
        return cut and self.kind in _CUT

    @property
    def extension(self) -> str:
        """The extension that it had, or the usual one of its modality."""
        if self.is_cut:
            return _CUT[self.kind]
        place = place_of(self.reference)
        name = without_window(self.reference) if place is None else place.name
        stem, _, extension = name.split("?")[0].rpartition("/")[2].lower().rpartition(".")
        usual = of(self.kind).extensions.split()
        return extension if stem and _EXTENSION.fullmatch(extension) and extension in usual else usual[0]


def rows_of(blend: pa.Table) -> Iterator[Row]:
    """Yield the rows of a blend one by one: contents that they carry are large."""
    for batch in blend.to_batches(max_chunksize=_ROWS):
        for position in range(batch.num_rows):
            yield batch.slice(position, 1).to_pylist()[0]


@dataclass(frozen=True)
class Talk:
    """A pair as a conversation.

    Attributes:
        turns: ``(role, text)``, with a mark such as ``<image>`` for each medium where it stands.
        media: in the order of their marks, those of each modality by themselves.
        system: what the system is told, "" for nothing.
        others: what else its record holds.
    """

    turns: list[tuple[str, str]]
    media: list[Medium]
    system: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)


def talk_of(row: Row, settings: Settings) -> Talk:
    """Return a pair as a conversation: the one that its record is, or the one exchange that it makes.

    Raises:
        UserError: a record that cannot be read any more.
    """
    record = row.get(SOURCE_RECORD)
    media = media_of(row, settings)
    if record is not None and not settings.trimmed:
        values = json.loads(record)
        if NEMO_FILE not in values:
            try:
                found = spoken(values, settings.pools.get(row[POOL]), {medium.kind for medium in media})
            except FaultError as error:
                raise UserError(f"pair {row[PAIR_ID]!r}: its record is not a conversation any more: {error}") from error
            return Talk(found.turns, media, found.system, found.others)
    spans = row.get(ANNOTATION_SPANS) if settings.trimmed else None
    said = row[ANNOTATION] if spans is None else annotation_text(row[ANNOTATION], spans, settings.media.max_text_chars)
    texts = [text for _, text in texts_of(row, settings)]
    marks = "".join(f"<{medium.kind}>" for medium in media)
    return Talk([("user", "\n".join(filter(None, [marks, *texts]))), ("assistant", said)], media)


def texts_of(row: Row, settings: Settings) -> list[tuple[str, str]]:
    """Return the texts and code of a pair's data, each with its modality, cut where trimmed pairs are written."""
    return [
        (kind, data if spans is None else kept_text(data, spans, "\n", settings.media.max_text_chars))
        for kind, data, spans in parts_of(row, settings.trimmed)
        if not is_media(kind)
    ]


def parts_of(row: Row, trimmed: bool) -> list[tuple[str, str, list[list[float]] | None]]:
    """Return the parts of a pair's data, each with its modality and what is to be kept of it (None: all)."""
    spans = row.get(DATA_SPANS) if trimmed else None
    kinds = modalities_of(row[MODALITY])
    if len(kinds) == 1:
        return [(kinds[0], row[DATA], spans)]
    return [(part[MODALITY], part[DATA], spans_of(spans, at)) for at, part in enumerate(row[DATA_PARTS])]


def media_of(row: Row, settings: Settings) -> list[Medium]:
    """Return the media of a pair, all that it has; of one that is cut those that it was ranked by."""
    root, content, every = row.get(MEDIA_ROOT) or ".", row.get(DATA_BYTES), row.get(SOURCE_MEDIA)
    if not every or (settings.trimmed and row.get(DATA_SPANS)):
        own = [(kind, data, spans) for kind, data, spans in parts_of(row, settings.trimmed) if is_media(kind)]
    else:
        own = [(one[MODALITY], one[DATA], None) for one in every]
    if several := row.get(SOURCE_CONTENTS):
        carried = {one[DATA]: held for one, held in zip(every or (), several, strict=True)}
    else:
        carried = {own[0][1]: content} if own else {}  # one at most is in the row
    return [Medium(kind, data, root, carried.get(data), spans) for kind, data, spans in own]


class Placer:
    """Puts media where an export's records say that they are.

    Args:
        folder: of the export.
        settings: copy, link or keep.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self._known: dict[tuple[Any, ...], str] = {}

    def put(self, pair_id: str, medium: Medium) -> str:
        """Return where a medium is to be found: relative to the export, or absolute where it is kept.

        What lies in an archive or in a row, or is cut, is copied, whatever was asked for.

        Raises:
            UserError: it cannot be opened; naming the pair.
        """
        at_home = medium.content is None and not medium.is_cut and place_of(medium.reference) is None
        place = self._settings.place if at_home else "copy"
        try:
            if place == "keep":
                return self._home(medium)
            spans = None if medium.spans is None else json.dumps(medium.spans)
            key = (medium.root, medium.reference, spans, medium.kind, pair_id if medium.content is not None else None)
            if key not in self._known:
                name = f"{MEDIA}/{len(self._known):08d}.{medium.extension}"
                (self._folder / MEDIA).mkdir(exist_ok=True)
                if place == "link" and "://" not in (home := self._home(medium)):
                    os.symlink(home, self._folder / name)
                else:
                    with medium.open(self._settings.media) as source, open(self._folder / name, "xb") as target:
                        shutil.copyfileobj(source, target)
                self._known[key] = name
            return self._known[key]
        except (PairError, OSError) as error:
            said = f"{shown(medium.reference)} {error}"
            raise UserError(f"pair {pair_id!r}: {said}; nothing was exported") from error

    def _home(self, medium: Medium) -> str:
        if not is_local(medium.reference):
            return medium.reference
        if is_url(medium.root.split("\n")[0]):
            return f"{medium.root.split(chr(10))[0].rstrip('/')}/{medium.reference}"
        return Roots.of(medium.root).find(medium.reference)


def told(row: Row) -> Row:
    """Return what an export says of a pair beside its record."""
    return {name: row[name] for name in (PAIR_ID, "rank", "score") if name in row}

"""A copy of a pool with noise of known truth."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Ints, Pixels
from nemo_mm_rank.benchmark.planting.donors import NONE, nearly_text, rarity, without_key
from nemo_mm_rank.benchmark.planting.donors import divisible as is_divisible
from nemo_mm_rank.benchmark.planting.plan import Kind, PlantSettings, Short, make_plan
from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.demo import make_pair
from nemo_mm_rank.demo.images import mp4
from nemo_mm_rank.errors import PairError, UserError
from nemo_mm_rank.io import files, mirror
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.pool import manifests, read_pools
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Audio, Image, Segment, Video
from nemo_mm_rank.media.source import Roots, is_local, is_url, open_source
from nemo_mm_rank.media.tar import place_of
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.run.store import digest
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, MODALITY, PAIR_ID

HEAD = 16
"""Bytes that are left of a corrupt file: enough to say what it is, too few to decode anything (a WAV of 44 bytes and
zeros would be silence)."""


def encoded(segment: Segment) -> tuple[bytes, str]:
    """Return a segment as a file, and the suffix of its name: JPEG, WAV or MP4 (without audio)."""
    if isinstance(segment, Image):
        return _jpeg(segment.pixels, 90), ".jpg"
    if isinstance(segment, Audio):
        return wav(segment.samples, segment.rate), ".wav"
    return mp4(_even(_video(segment).frames), _rate(_video(segment))), ".mp4"


def _video(segment: Segment) -> Video:
    if not isinstance(segment, Video):
        raise TypeError(f"{type(segment).__name__} cannot be written as a file")
    return segment


def cropped(segment: Segment, keep: float, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a window of ``keep`` of each side or of the duration, somewhere in it, as a file."""
    if isinstance(segment, Image):
        size = segment.pixels.size
        width, height = (max(8, round(keep * side)) for side in size)
        left, upper = (int(rng.integers(max(1, side - part))) for side, part in zip(size, (width, height), strict=True))
        return encoded(segment.part((left, upper, width, height)))
    recording = segment if isinstance(segment, Audio) else _video(segment)
    length = keep * recording.duration
    start = rng.uniform(0, recording.duration - length)
    return encoded(recording.part((start, start + length)))


def padded(segment: Segment, other: Segment) -> tuple[bytes, str]:
    """Return a segment with another of its kind beside it (images) or behind it, as a file."""
    if isinstance(segment, Image) and isinstance(other, Image):
        height = min(segment.pixels.height, other.pixels.height)
        both = [_scaled(one.pixels, height) for one in (segment, other)]
        canvas = PILImage.new("RGB", (sum(one.width for one in both), height))
        canvas.paste(both[0], (0, 0))
        canvas.paste(both[1], (both[0].width, 0))
        return _jpeg(canvas, 90), ".jpg"
    if isinstance(segment, Audio) and isinstance(other, Audio):
        return wav(np.concatenate([segment.samples, other.samples]), segment.rate), ".wav"
    if isinstance(segment, Video) and isinstance(other, Video):
        frames = _even(segment.frames)
        height, width = frames.shape[1:3]
        behind = np.stack([np.asarray(PILImage.fromarray(frame).resize((width, height))) for frame in other.frames])
        return mp4(np.concatenate([frames, behind]), _rate(segment)), ".mp4"
    raise TypeError(f"{type(segment).__name__} cannot be padded with {type(other).__name__}")


def nearly(segment: Segment) -> tuple[bytes, str]:
    """Return a segment re-encoded: an image a little smaller and coarser, audio a little softer."""
    if isinstance(segment, Image):
        return _jpeg(_scaled(segment.pixels, max(8, round(0.95 * segment.pixels.height))), 75), ".jpg"
    if isinstance(segment, Audio):
        return wav(np.float32(0.9) * segment.samples, segment.rate), ".wav"
    return encoded(segment)


def corrupted(content: bytes) -> bytes:
    """Return a file of the same length that holds nothing after its first bytes."""
    return content[:HEAD] + bytes(max(1, len(content) - HEAD))


def _jpeg(image: PILImage.Image, quality: int) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _scaled(image: PILImage.Image, height: int) -> PILImage.Image:
    return image.resize((max(8, round(image.width * height / image.height)), height))


def _even(frames: Pixels) -> Pixels:
    """Return frames with sides that the codec takes."""
    height, width = (max(2, side - side % 2) for side in frames.shape[1:3])
    return np.ascontiguousarray(frames[:, :height, :width])


def _rate(video: Video) -> int:
    """Return whole frames per second, at least one."""
    span = float(video.times[-1] - video.times[0])
    return max(1, round((len(video.frames) - 1) / span)) if span else 1


FRAMES = 32
"""Frames that are kept of a video that is cropped or padded."""

TRUTH = pa.schema(
    [(PAIR_ID, pa.string()), ("clean", pa.bool_()), ("kinds", pa.list_(pa.string())), ("donor", pa.string())]
)
_FORMAT = 2


@dataclass(frozen=True)
class Planted:
    """A spoilt pool.

    Attributes:
        pool: its manifest; everything it refers to lies below its folder.
        truth: ``pair_id, clean, kinds, donor`` (`TRUTH`), in the manifest's order. ``clean``: nothing was planted.
            ``donor``: the pair that something was taken from, where it was from one.
        short: where fewer pairs than asked for could be spoilt in a way, and why; each reads as a sentence.
    """

    pool: PoolSource
    truth: pa.Table
    short: tuple[Short, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return kind -> number of pairs that it was planted in, as the truth says."""
        counts = Counter(kind for kinds in self.truth["kinds"].to_pylist() for kind in kinds)
        return {str(kind): counts[str(kind)] for kind in Kind if counts[str(kind)]}


def plant(
    pool: PoolSource | Sequence[PoolSource] | str | Path,
    folder: Path,
    settings: PlantSettings | None = None,
    seed: int = 0,
    media: MediaSettings | None = None,
    without: Collection[str] = (),
    overwrite: bool = False,
) -> Planted:
    """Write a noisy copy of a pool to ``folder``: ``pool.jsonl``, ``truth.parquet``, and the media.

    Each modality has `PlantSettings.total` of its pairs spoilt, each in one way, as `plan.make_plan` decides; what
    cannot be planted is said in `Planted.short`. Number, order and ids of the pairs stay, and the users' own columns (a
    near-duplicate has those of the pair it copies). Media that nothing was planted in are hard links, copies where the
    file system has none. Bad rows of the pool are left out. A medium that should be changed and cannot be opened stays
    as it is, and the truth calls it corrupt.

    The same arguments give the same files; a folder that has them already is left as it is.

    Args:
        pool: one or several manifests.
        folder: made where it is not there; if it is, empty or with a planted pool.
        settings: how much of what; default: 40 %, all kinds.
        seed: another one spoils other pairs.
        media: how media are opened.
        without: ids of pairs that are left out (to be validated with, say).
        overwrite: whether another planted pool in the folder may be replaced.

    Raises:
        UserError: a folder that holds something else.
        PoolError: the pool cannot be read.
    """
    settings, media = settings or PlantSettings(), media or MediaSettings()
    pools = _pools(pool)
    folder = Claim("planted", pools, overwrite=overwrite).make(folder)
    key = digest(
        [
            _FORMAT,
            seed,
            settings.model_dump(mode="json"),
            media.identity(),
            [source.model_dump(mode="json") for source in pools],
            [files.file_digest(manifest.file) for source in pools for manifest in manifests(source)],
            sorted(without),
        ]
    )
    truth_file, made = folder / "truth.parquet", PoolSource(path=str(folder / "pool.jsonl"))
    if files.is_sound(truth_file):
        note = files.read_note(truth_file) or {}
        if note.get("key") == key:
            return Planted(made, files.read_table(truth_file), tuple(Short.of(one) for one in note["short"]))
        if not overwrite:
            raise UserError(
                f"{folder} holds another planted pool; give this one a folder of its own, or have it replaced with "
                "--overwrite (in Python: overwrite=True)"
            )
        mirror.unlink(truth_file)
    work = _Planting(_rows(pools, set(without)), folder, settings, media, seed)
    work.spoil()
    work.write()
    truth, short = work.truth(), work.plan.short
    files.write_table(truth_file, truth, {"key": key, "short": [asdict(one) for one in short]})
    return Planted(made, truth, short)


def _pools(pool: PoolSource | Sequence[PoolSource] | str | Path) -> Sequence[PoolSource]:
    if isinstance(pool, (str, Path)):
        return [PoolSource(path=str(pool))]
    return [pool] if isinstance(pool, PoolSource) else pool


def _rows(pools: Sequence[PoolSource], without: set[str]) -> list[dict[str, Any]]:
    """Read the pools' pairs as rows."""
    remaining: list[dict[str, Any]] = []
    for batch in read_pools(pools):
        columns = {**batch.pairs, **batch.extras}
        values = [column if isinstance(column, list) else column.to_pylist() for column in columns.values()]
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))
        remaining += [row for row in rows if row[PAIR_ID] not in without]
    return remaining


@dataclass
class _Planting:
    """The rows on their way from the pool that was to the pool that will be."""

    rows: list[dict[str, Any]]
    folder: Path
    settings: PlantSettings
    media: MediaSettings
    seed: int
    corrupt: set[int] = field(default_factory=set)
    """Rows whose medium should have been changed and could not be opened."""
    files: dict[int, str] = field(default_factory=dict)
    """row -> its new file."""

    def __post_init__(self) -> None:
        self.was = [dict(row) for row in self.rows]
        self.rng = np.random.default_rng(self.seed)
        modality, annotation = ([row[name] for row in self.was] for name in (MODALITY, ANNOTATION))
        divisible = None
        if Kind.KEY_SENTENCE in self.settings.weights:
            divisible = np.array([is_divisible(row[MODALITY], row[DATA]) for row in self.was], dtype=bool)
        data = [(row[MEDIA_ROOT] if is_media(row[MODALITY]) else "", str(row[DATA])) for row in self.was]
        self.plan = make_plan(modality, annotation, self.settings, self.rng, data, divisible)

    def spoil(self) -> None:
        """Do what was planned."""
        for row, annotation in zip(self.rows, self.plan.annotation, strict=True):
            row[ANNOTATION] = annotation
        do: dict[Kind, Callable[[Ints], None]] = {
            Kind.KEY_SENTENCE: self._remove_parts,
            Kind.CROPPED: self._crop,
            Kind.PADDED: self._pad,
            Kind.NEAR_DUPLICATE: self._duplicate,
            Kind.CORRUPT: self._corrupt,
            Kind.OFF_TOPIC: self._replace,
        }
        for kind, change in do.items():
            change(self.plan.rows(kind))

    def truth(self) -> pa.Table:
        """Return what was planted where."""
        kinds = [Kind.CORRUPT if row in self.corrupt else kind for row, kind in enumerate(self.plan.kind)]
        donors = [None if row in self.corrupt or donor == NONE else donor for row, donor in enumerate(self.plan.donor)]
        columns: dict[str, list[Any]] = {
            PAIR_ID: [row[PAIR_ID] for row in self.was],
            "clean": [kind is None for kind in kinds],
            "kinds": [[] if kind is None else [str(kind)] for kind in kinds],
            "donor": [None if donor is None else self.was[donor][PAIR_ID] for donor in donors],
        }
        return pa.table(columns, TRUTH)

    def write(self) -> None:
        """Write the manifest, and put the media below it."""
        roots = {root: place for place, root in enumerate(dict.fromkeys(row[MEDIA_ROOT] for row in self.rows))}
        lines = []
        for place, row in enumerate(self.rows):
            below = f"media/{roots[row[MEDIA_ROOT]]}"
            if place in self.files:
                row[DATA] = self.files[place]
            elif parts := row.get(DATA_PARTS):
                row[DATA] = [{**part, DATA: self._kept(place, {**row, **part}, below)} for part in parts]
            else:
                row[DATA] = self._kept(place, row, below)
            record = {name: value for name, value in row.items() if name not in (MEDIA_ROOT, DATA_BYTES, DATA_PARTS)}
            lines.append(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        files.write_text(self.folder / "pool.jsonl", "".join(lines))

    def _remove_parts(self, rows: Ints) -> None:
        rare = rarity([row[ANNOTATION] for row in self.was])
        for row in rows.tolist():
            was = self.was[row]
            self.rows[row][DATA] = without_key(was[MODALITY], was[DATA], was[ANNOTATION], rare)

    # Media.

    def _crop(self, rows: Ints) -> None:
        for row in rows.tolist():
            self._change(row, lambda own: cropped(own, self.settings.keep, self.rng))

    def _pad(self, rows: Ints) -> None:
        for row in rows.tolist():
            self._change(row, partial(self._padded, self.was[self.plan.donor[row]]))

    def _padded(self, donor: dict[str, Any], own: Segment) -> tuple[bytes, str]:
        return padded(own, self._open(donor))

    def _corrupt(self, rows: Ints) -> None:
        for row in rows.tolist():
            with suppress(PairError):  # one that cannot be read is corrupt as it is
                content = corrupted(self._content(self.was[row]))
                self._put(row, content, os.path.splitext(self.was[row][DATA])[1])

    def _change(self, row: int, change: Callable[[Segment], tuple[bytes, str]]) -> None:
        """Put what becomes of the row's medium in its place; one that cannot be opened is corrupt as it is."""
        try:
            self._put(row, *change(self._open(self.rows[row])))
        except PairError:
            self.corrupt.add(row)

    # Whole pairs.

    def _duplicate(self, rows: Ints) -> None:
        for row in rows.tolist():
            copied = self.was[self.plan.donor[row]]
            self.rows[row] = {**copied, PAIR_ID: self.was[row][PAIR_ID]}
            if is_media(copied[MODALITY]):
                self._change(row, nearly)
            else:
                self.rows[row][DATA] = nearly_text(copied[MODALITY], copied[DATA], self.rng)

    def _replace(self, rows: Ints) -> None:
        for number, row in enumerate(rows.tolist()):
            modality = self.was[row][MODALITY]
            random = Random(f"{self.seed} off-topic {number}")  # noqa: S311 (nothing secret)
            content, annotation, suffix = make_pair(modality, random, number)
            self.rows[row][ANNOTATION] = annotation
            if isinstance(content, bytes):
                self._put(row, content, suffix)
            else:
                self.rows[row][DATA] = content

    # What these need.

    def _open(self, row: dict[str, Any]) -> Segment:
        opener = Opener(self.media, row[MEDIA_ROOT], FRAMES)
        return opener.open(row[DATA], row[MODALITY], content=row.get(DATA_BYTES))

    def _content(self, row: dict[str, Any]) -> bytes:
        with open_source(row[DATA], row[MEDIA_ROOT], self.media, row.get(DATA_BYTES)) as file:
            return file.read()

    def _put(self, row: int, content: bytes, suffix: str) -> None:
        """Write the row's new file."""
        name = f"planted/{row:06d}{suffix}"
        _write(self.folder / name, content)
        self.files[row] = name

    def _kept(self, place: int, row: dict[str, Any], below: str) -> str:
        """Return the row's own data; a file is put below the new folder."""
        root, ref = row[MEDIA_ROOT], str(row[DATA])
        if not is_media(row[MODALITY]) or not is_local(ref):
            return ref
        elsewhere = ref.startswith("/") or is_url(ref) or ".." in ref.split("/")
        if row.get(DATA_BYTES) is not None or is_url(root) or place_of(ref) is not None or elsewhere:
            name = f"{below}/{place:06d}{os.path.splitext(ref)[1]}"
            _write(self.folder / name, self._content(row))
            return name
        name = f"{below}/{ref}"
        target = self.folder / name
        source = Roots.of(root).find(ref)
        if not (target.exists() and target.samefile(source)):
            target.parent.mkdir(parents=True, exist_ok=True)
            link = mirror.temporary_name(target)
            try:
                os.link(source, link)
                link.replace(target)
            except OSError:  # another file system, or one without links
                _write(target, Path(source).read_bytes())
        return name


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:  # a new time would look like a change
        files.write_bytes(path, content)  # not into what is there, which may be a link to somebody's file

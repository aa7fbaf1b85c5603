"""From a reference and its kept spans to a decoded segment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from av.error import FFmpegError

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.audio import decode_audio, to_samples
from nemo_mm_rank.media.image import decode_image
from nemo_mm_rank.media.segment import Audio, Image, Segment, Span, Video, part_key
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.spans import merge, union
from nemo_mm_rank.media.video import decode_video
from nemo_mm_rank.schema import Modality


@dataclass(frozen=True)
class Opener:
    """Opens media references one by one; cheap to make and to pickle, safe for several threads.

    Attributes:
        settings: bounds, rate and sampling.
        root: the folder or URL that references are below, where `open` is not told; default: the current folder.
        frames: frames of a video, in place of ``settings.video_frames``.
    """

    settings: MediaSettings = field(default_factory=MediaSettings)
    root: str | None = None
    frames: int | None = None

    def open(
        self,
        ref: str,
        modality: str,
        spans: Sequence[Span] | None = None,
        root: str | None = None,
        content: bytes | None = None,
    ) -> Segment:
        """Decode what ``ref`` names, or the parts of it that ``spans`` keep.

        The segment's ``key`` is a digest (BLAKE2b, 128 bits) of the content, the modality, what decoding depends on
        and the spans: equal bytes under two names have one key.

        Args:
            ref: a path below the root, an fsspec URL where the settings allow it, or with ``content`` just a name.
            modality: image, audio or video.
            spans: image: ``[x, y, w, h]`` boxes in pixels of the upright picture, of which the union is cropped to;
                audio and video: ``[start, end]`` windows in seconds. None keeps all.
            root: the folder or URL that ``ref`` is below.
            content: the bytes themselves.

        Raises:
            MediaError: one line that names ``ref`` as it was given.
        """
        name = without_passwords(repr(ref if len(ref) <= 200 else f"{ref[:200]}..."))
        try:
            with open_source(ref, root or self.root or ".", self.settings, content) as file:
                return self._decode(file, modality, spans)
        except MediaError as error:
            raise MediaError(f"{name}: {error}") from error
        except FFmpegError as error:  # before OSError: some of FFmpeg's are both, and name files
            raise MediaError(f"{name}: cannot be decoded: {error.strerror}") from error
        except OSError as error:
            raise MediaError(f"{name}: cannot be read: {error.strerror or type(error).__name__}") from error

    def _decode(self, file: IO[bytes], modality: str, spans: Sequence[Span] | None) -> Segment:
        settings = self.settings
        if modality == Modality.IMAGE:
            image = Image(_key(file, modality), decode_image(file, settings.max_pixels))
            return image if spans is None else image.part(union(spans))
        windows = None if spans is None else merge(spans)
        if modality == Modality.AUDIO:
            rate, limit = settings.sample_rate, settings.max_seconds
            ranges = to_samples(windows, rate, limit)
            samples = decode_audio(file, rate, ranges)
            key = _key(file, modality, rate, limit)
            if windows is None:
                return Audio(key, samples, rate)
            return Audio(part_key(key, *_bounds(ranges, len(samples))), samples, rate, ranges[0][0] / rate)
        if modality == Modality.VIDEO:
            count, side = self.frames or settings.video_frames, settings.video_side
            frames, times, duration = decode_video(
                file, count, side, windows, settings.max_seconds, settings.max_pixels
            )
            key = _key(file, modality, count, side, settings.max_seconds)
            if windows is not None:
                key = part_key(key, "seconds", *(bound for window in windows for bound in window))
            return Video(key, frames, times, duration)
        raise MediaError(f"cannot be opened as {modality!r}: media are image, audio or video")


def _key(file: IO[bytes], *decoding: Any) -> str:
    """Return the digest of a file, read in blocks, and of what decoding depends on; the file is at its start again."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    digest.update(f"|{decoding}".encode())
    file.seek(0)
    return digest.hexdigest()


def _bounds(ranges: Sequence[tuple[int, int]], total: int) -> list[int]:
    """Return the ends of ``ranges`` as they came out: ``total`` samples, so that the last may have been shorter."""
    bounds: list[int] = []
    for first, last in ranges:
        taken = min(last - first, total)
        if taken > 0:
            bounds += [first, first + taken]
        total -= taken
    return bounds

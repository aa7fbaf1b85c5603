"""Decoded media: what an encoder is handed. Each knows how to cut a part out of itself without decoding again.

The part that is all of a segment is the segment itself, so that no model sees the same twice under two keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import MediaError

if TYPE_CHECKING:  # vectors can be computed and ranked where Pillow is not installed
    from PIL import Image as PILImage

Span: TypeAlias = Sequence[float]
"""``[start, end]`` in seconds (audio, video) or characters (text), or ``[x, y, w, h]`` in pixels (image)."""


def part_key(key: str, *bounds: float | str) -> str:
    """Return the key of the part of ``key``'s segment that ``bounds`` describe: 32 hexadecimal digits (BLAKE2b)."""
    return hashlib.blake2b(f"{key}@{','.join(map(str, bounds))}".encode(), digest_size=16).hexdigest()


def content_key(file: IO[bytes], *decoding: Any) -> str:
    """Return the digest of a file, read in blocks, and of what decoding depends on; the file is at its start again."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
    digest.update(f"|{decoding}".encode())
    file.seek(0)
    return digest.hexdigest()


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        key: digest of the content and of the part, equal for equal pixels from equal bytes.
        pixels: RGB, EXIF orientation applied.
    """

    key: str
    pixels: PILImage.Image

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return 3 * self.pixels.width * self.pixels.height

    def part(self, box: Span) -> Image:
        """Crop to ``[x, y, w, h]`` in pixels, clipped to the image.

        Raises:
            MediaError: where nothing of the box lies within the image.
        """
        x, y, w, h = box
        width, height = self.pixels.size
        left, upper = max(0, int(x)), max(0, int(y))
        right, lower = min(width, round(x + w)), min(height, round(y + h))
        if left >= right or upper >= lower:
            raise MediaError(f"box {list(box)} lies outside the image of {width} x {height} pixels")
        bounds = (left, upper, right, lower)
        if bounds == (0, 0, width, height):
            return self
        return Image(part_key(self.key, *bounds), self.pixels.crop(bounds))


@dataclass(frozen=True)
class Audio:
    """A mono waveform.

    Attributes:
        key: digest of the content, the rate and the part.
        samples: ``(n,)`` float32 in [-1, 1].
        rate: samples per second.
        start: seconds into the recording of the first sample.
    """

    key: str
    samples: npt.NDArray[np.float32]
    rate: int
    start: float = 0.0

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(self.samples.nbytes)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    def part(self, window: Span) -> Audio:
        """Cut to ``[start, end]`` in seconds of the recording; a view, not a copy.

        Raises:
            MediaError: where nothing of the window lies within the waveform.
        """
        first = max(0, round((window[0] - self.start) * self.rate))
        last = min(len(self.samples), round((window[1] - self.start) * self.rate))
        if first >= last:
            raise MediaError(f"window {list(window)} lies outside the recording, which lasts {self.duration:.3f} s")
        if (first, last) == (0, len(self.samples)):
            return self
        return replace(
            self,
            key=part_key(self.key, first, last),
            samples=self.samples[first:last],
            start=self.start + first / self.rate,
        )


@dataclass(frozen=True)
class Video:
    """Frames sampled from a video (its audio is not part of it).

    Attributes:
        key: digest of the content, the sampling and the part.
        frames: ``(n, h, w, 3)`` uint8 RGB.
        times: ``(n,)`` float64 seconds of each frame.
        duration: length in seconds of the recording.
    """

    key: str
    frames: npt.NDArray[np.uint8]
    times: npt.NDArray[np.float64]
    duration: float

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(self.frames.nbytes)

    def part(self, window: Span) -> Video:
        """Keep the frames within ``[start, end]`` seconds; where there is none, the one nearest to the middle."""
        inside: npt.NDArray[Any] = np.flatnonzero((self.times >= window[0]) & (self.times <= window[1]))
        if not len(inside):
            inside = np.array([int(np.abs(self.times - (window[0] + window[1]) / 2).argmin())])
        first, last = int(inside[0]), int(inside[-1]) + 1
        if (first, last) == (0, len(self.frames)):
            return self
        return replace(
            self, key=part_key(self.key, first, last), frames=self.frames[first:last], times=self.times[first:last]
        )


class Segment(Protocol):
    """What a modality's files are decoded to: `Image`, `Audio`, `Video`, or what a user's own modality returns."""

    @property
    def key(self) -> str:
        """Digest of the content and of what decoding depends on: 32 hexadecimal digits (see `content_key`)."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        ...


Item: TypeAlias = str | Segment
"""One side of a pair, decoded: text and code are plain strings."""

Items: TypeAlias = tuple[Item, ...]
"""Data of several parts, in the order of `modality.names`."""

"""Decoded media: what an encoder is handed. Each knows how to cut a part out of itself without decoding again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

Span: TypeAlias = Sequence[float]
"""``[start, end]`` in seconds (audio, video) or characters (text), or ``[x, y, w, h]`` in pixels (image)."""


@dataclass(frozen=True)
class Image:
    """A still picture.

    Attributes:
        key: digest of the content and of the part, equal for equal pixels from equal bytes.
        pixels: RGB, EXIF orientation applied.
    """

    key: str
    pixels: PILImage.Image

    @property
    def nbytes(self) -> int:
        """Memory that the pixels take."""
        return self.pixels.width * self.pixels.height * 3

    def part(self, box: Span) -> Image:
        """Crop to ``[x, y, w, h]`` in pixels, clipped to the picture."""
        x, y, w, h = box
        width, height = self.pixels.size
        left, upper = max(0, int(x)), max(0, int(y))
        right, lower = min(width, round(x + w)), min(height, round(y + h))
        return Image(f"{self.key}@{left},{upper},{right},{lower}", self.pixels.crop((left, upper, right, lower)))


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
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def nbytes(self) -> int:
        """Memory that the samples take."""
        return self.samples.nbytes

    def part(self, window: Span) -> Audio:
        """Cut to ``[start, end]`` in seconds of the recording; a view, not a copy."""
        first = max(0, round((window[0] - self.start) * self.rate))
        last = max(first, round((window[1] - self.start) * self.rate))
        return replace(
            self,
            key=f"{self.key}@{first},{last}",
            samples=self.samples[first:last],
            start=self.start + first / self.rate,
        )


@dataclass(frozen=True)
class Video:
    """Frames sampled from a moving picture (its sound is not part of it).

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
        """Memory that the frames take."""
        return self.frames.nbytes

    def part(self, window: Span) -> Video:
        """Keep the frames within ``[start, end]`` seconds; where there is none, the one nearest to the middle."""
        inside: npt.NDArray[Any] = np.flatnonzero((self.times >= window[0]) & (self.times <= window[1]))
        if not len(inside):
            inside = np.array([int(np.abs(self.times - (window[0] + window[1]) / 2).argmin())])
        return replace(
            self,
            key=f"{self.key}@{inside[0]},{inside[-1]}",
            frames=self.frames[inside[0] : inside[-1] + 1],
            times=self.times[inside[0] : inside[-1] + 1],
        )


Segment: TypeAlias = Image | Audio | Video

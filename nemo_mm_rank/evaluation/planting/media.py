"""Media that are cropped, padded with another's content, re-encoded, or broken off."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Pixels
from nemo_mm_rank.demo.pictures import mp4
from nemo_mm_rank.media.segment import Audio, Image, Segment, Video
from nemo_mm_rank.models.wav import wav

HEAD = 16
"""Bytes that are left of a corrupt file: enough to say what it is, too few to decode anything (a WAV of 44 bytes and
zeros would be silence)."""


def encoded(segment: Segment) -> tuple[bytes, str]:
    """Return a segment as a file, and the suffix of its name: JPEG, WAV or MP4 (without sound)."""
    if isinstance(segment, Image):
        return _jpeg(segment.pixels, 90), ".jpg"
    if isinstance(segment, Audio):
        return wav(segment.samples, segment.rate), ".wav"
    return mp4(_even(segment.frames), _rate(segment)), ".mp4"


def cropped(segment: Segment, keep: float, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a window of ``keep`` of each side or of the duration, somewhere in it, as a file."""
    if isinstance(segment, Image):
        size = segment.pixels.size
        width, height = (max(8, round(keep * side)) for side in size)
        left, upper = (int(rng.integers(max(1, side - part))) for side, part in zip(size, (width, height), strict=True))
        return encoded(segment.part((left, upper, width, height)))
    length = keep * segment.duration
    start = rng.uniform(0, segment.duration - length)
    return encoded(segment.part((start, start + length)))


def padded(segment: Segment, other: Segment) -> tuple[bytes, str]:
    """Return a segment with another of its kind beside it (pictures) or behind it, as a file."""
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
    """Return a segment re-encoded: a picture a little smaller and coarser, sound a little softer."""
    if isinstance(segment, Image):
        return _jpeg(_scaled(segment.pixels, max(8, round(0.95 * segment.pixels.height))), 75), ".jpg"
    if isinstance(segment, Audio):
        return wav(np.float32(0.9) * segment.samples, segment.rate), ".wav"
    return encoded(segment)


def corrupted(content: bytes) -> bytes:
    """Return a file of the same length that holds nothing after its first bytes."""
    return content[:HEAD] + bytes(max(1, len(content) - HEAD))


def _jpeg(picture: PILImage.Image, quality: int) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _scaled(picture: PILImage.Image, height: int) -> PILImage.Image:
    return picture.resize((max(8, round(picture.width * height / picture.height)), height))


def _even(frames: Pixels) -> Pixels:
    """Return frames with sides that the codec takes."""
    height, width = (max(2, side - side % 2) for side in frames.shape[1:3])
    return np.ascontiguousarray(frames[:, :height, :width])


def _rate(video: Video) -> int:
    """Return whole frames per second, at least one."""
    span = float(video.times[-1] - video.times[0])
    return max(1, round((len(video.frames) - 1) / span)) if span else 1

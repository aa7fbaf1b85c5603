"""Media as a chat message carries them: small pictures as data URLs, sound as WAV, equal bytes for equal media."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

from PIL import Image as PILImage
from pydantic import Field

from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import EmbeddingError
from nemo_mm_rank.media.segment import Audio
from nemo_mm_rank.models.base import Item
from nemo_mm_rank.models.parts import at_rate, pictures
from nemo_mm_rank.models.wav import wav

SMALLEST = 64
"""Pixels of the longer side below which a picture is not shrunk to fit."""

Part = dict[str, Any]


class MediaLimits(Settings):
    """How large what is sent may be."""

    image_format: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(90, ge=1, le=95, description="of a JPEG")
    max_side: int = Field(1024, ge=SMALLEST, description="longer side in pixels that pictures are scaled down to")
    max_bytes: int = Field(
        4 * 2**20, ge=1024, description="of one encoded picture; larger ones are scaled down further"
    )
    sample_rate: int = Field(16_000, ge=8_000, description="Hz that sound is sent at")
    max_seconds: float = Field(600, gt=0, description="a longer recording is refused")


def content(item: Item, limits: MediaLimits) -> list[Part]:
    """Return the parts of a message that show ``item``: one picture, each frame of a video, or a sound.

    Raises:
        EmbeddingError: it is larger than ``limits`` allow.
        ModelError: it is text.
    """
    if isinstance(item, Audio):
        return [{"type": "input_audio", "input_audio": {"data": _base64(_wav(item, limits)), "format": "wav"}}]
    return [{"type": "image_url", "image_url": {"url": _data_url(picture, limits)}} for picture in pictures(item)]


def _data_url(picture: PILImage.Image, limits: MediaLimits) -> str:
    side = limits.max_side
    while True:
        encoded = _encoded(picture, side, limits)
        if len(encoded) <= limits.max_bytes:
            return f"data:image/{limits.image_format};base64,{_base64(encoded)}"
        side = min(side, max(picture.size)) * 3 // 4
        if side < SMALLEST:
            raise EmbeddingError(f"no picture of {SMALLEST} pixels or more fits the {limits.max_bytes:,} bytes allowed")


def _encoded(picture: PILImage.Image, side: int, limits: MediaLimits) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    # A new image: what else the file said of it (profiles, comments) is not sent.
    small = PILImage.frombytes("RGB", small.size, small.tobytes())
    buffer = io.BytesIO()
    if limits.image_format == "png":
        small.save(buffer, "PNG")
    else:
        small.save(buffer, "JPEG", quality=limits.quality)
    return buffer.getvalue()


def _wav(sound: Audio, limits: MediaLimits) -> bytes:
    if sound.duration > limits.max_seconds:
        raise EmbeddingError(
            f"{sound.duration:,.0f} s of sound are more than the {limits.max_seconds:,.0f} allowed (media.max_seconds)"
        )
    return wav(at_rate(sound, limits.sample_rate), limits.sample_rate)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

"""What a multimodal language model sees of pictures and videos and hears of sound, given to its processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.errors import require
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models.parts import at_rate, picture

SHORTEST_SOUND = 0.1
"""Seconds; of less the audio tower makes no token, and silence is added up to this."""

Content: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any]]
"""The parts of a message, and the media that its processor is to put into them."""


@dataclass(frozen=True)
class Sight:
    """What a model sees of pictures and videos.

    Attributes:
        image: pixels of a picture, at least and at most; None: what its processor says.
        video: the same of a video's frame.
        shrunk: pixels that a frame is scaled down (or up) to before that, at least and at most.
        rate: frames per second.
        frames: of a video, at least and at most.
    """

    image: tuple[int, int] | None = None
    video: tuple[int, int] | None = None
    shrunk: tuple[int, int] | None = None
    rate: float = 1.0
    frames: tuple[int, int] = (4, 12)


def content(media: Image | Video | Audio, sight: Sight, sampling_rate: int) -> Content:
    """Return how a message shows ``media``.

    Args:
        media: with pixels, frames or samples.
        sight: what is seen of it.
        sampling_rate: of the sound that the processor takes.
    """
    if isinstance(media, Audio):
        samples = at_rate(media, sampling_rate)
        samples = np.pad(samples, (0, max(0, round(SHORTEST_SOUND * sampling_rate) - len(samples))))
        return [{"type": "audio", "audio": ""}], {"audio": [samples]}
    if isinstance(media, Image):
        size = {"images_kwargs": _size(sight.image)} if sight.image else {}
        return [{"type": "image", "image": ""}], {"images": [picture(media.pixels)], **size}
    chosen, rate = choose_frames(media, sight.rate, *sight.frames)
    frames = torch.from_numpy(media.frames[chosen]).permute(0, 3, 1, 2)
    settings: dict[str, Any] = {"do_sample_frames": False, "fps": rate, "cap_pixels_per_frame": False}
    if sight.shrunk:
        frames = _shrunk(frames, *sight.shrunk)
    if sight.video:
        settings.update(_size(sight.video))
    return [{"type": "video", "video": ""}], {"videos": [frames], "videos_kwargs": settings}


def choose_frames(video: Video, rate: float, least: int, most: int) -> tuple[npt.NDArray[np.int64], float]:
    """Choose among a video's frames, at even distances from its first to its last.

    As many as ``rate`` makes of its length, at least ``least`` and at most ``most``, and an even number, because models
    of this kind take frames in pairs. A video that has no more is taken whole: how many frames it has says
    `media.video_frames`.

    Args:
        video: at least one frame.
        rate: frames per second.
        least: frames.
        most: frames.

    Returns:
        ``(k,)`` int64 positions, and how many frames that is per second.
    """
    n = len(video.frames)
    # Frames stand in the middle of equal slices: all of them last one slice longer than from the first to the last.
    seconds = float(video.times[-1] - video.times[0]) * n / (n - 1) if n > 1 else video.duration
    wanted = min(max(int(seconds * rate), least), most) // 2 * 2
    chosen = np.linspace(0, n - 1, min(wanted, n)).round().astype(np.int64)
    return chosen, len(chosen) / seconds if seconds > 0 else rate


def _shrunk(frames: torch.Tensor, least: int, most: int) -> torch.Tensor:
    resized = require("transformers.models.qwen2_vl.video_processing_qwen2_vl", "models").smart_resize
    functional = require("torchvision.transforms.v2.functional", "models")
    size = resized(*frames.shape[-2:], 28, least, most)
    smaller: torch.Tensor = functional.resize(
        frames, list(size), interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    return smaller


def _size(pixels: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}

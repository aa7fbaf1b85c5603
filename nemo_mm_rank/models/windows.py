"""What a model that sees one image, or hears some seconds, makes of a video or a longer recording: parts, pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Samples
from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Item, Video

POOLINGS = ("mean", "medoid")
"""``mean``: of the parts' vectors (parameter-free, as in CLIP4Clip, Luo et al. 2021, section 3.3). ``medoid``: the one
vector that is most like all others, which a title or a black frame does not move."""

MAX_ASPECT = 200
"""Longer to shorter side: resized to a model's size, an image of one pixel's height would be many gigabytes."""

Pixels: TypeAlias = PILImage.Image | npt.NDArray[np.uint8]


def shots(item: Item) -> list[Pixels]:
    """Return an image, or the frames of a video, as they lie in memory; `as_image` makes images of them one by one.

    Raises:
        EmbeddingError: it is far longer in one direction than in the other, or contains no frames.
        ModelError: it is neither.
    """
    if isinstance(item, Image):
        width, height = item.pixels.size
    elif isinstance(item, Video):
        height, width = item.frames.shape[1:3]
    else:
        raise ModelError(f"images and videos are expected, not {type(item).__name__}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise EmbeddingError(f"{width} x {height} pixels: more than {MAX_ASPECT} times as long as it is wide")
    if isinstance(item, Image):
        return [item.pixels]
    if not len(item.frames):
        raise EmbeddingError("contains no frames")
    return list(item.frames)


def as_image(shot: Pixels) -> PILImage.Image:
    """Return one of `shots` as Pillow has it."""
    return shot if isinstance(shot, PILImage.Image) else PILImage.fromarray(shot)


def as_images(item: Item) -> list[PILImage.Image]:
    """Return an image, or the frames of a video, all as images; raises as `shots` does."""
    return [as_image(shot) for shot in shots(item)]


def windows(item: Item, seconds: float, most: int) -> list[Audio]:
    """Return a recording as it is, or, if it is longer than ``seconds``, windows of that length, spread evenly.

    They cover all of it where that takes no more than ``most``.

    Raises:
        EmbeddingError: it contains no samples.
        ModelError: it is no audio.
    """
    if not isinstance(item, Audio):
        raise ModelError(f"audio is expected, not {type(item).__name__}")
    if not len(item.samples):
        raise EmbeddingError("contains no samples")
    if item.duration <= seconds:
        return [item]
    count = min(most, math.ceil(item.duration / seconds))
    free = item.duration - seconds
    starts = [item.start + free * (number / (count - 1) if count > 1 else 0.5) for number in range(count)]
    return [item.part([start, start + seconds]) for start in starts]


def at_rate(audio: Audio, rate: int) -> Samples:
    """Return the samples of ``audio`` at ``rate`` Hz: ``(n,)`` float32."""
    if audio.rate == rate:
        return audio.samples
    from scipy.signal import resample_poly  # takes a moment, and most sounds come at the rate that is wanted

    common = math.gcd(audio.rate, rate)
    resampled: Samples = resample_poly(audio.samples, rate // common, audio.rate // common).astype(np.float32)
    return resampled


def pool(vectors: torch.Tensor, counts: Sequence[int], pooling: str) -> torch.Tensor:
    """Pool the vectors of each item's parts.

    Args:
        vectors: ``(m, d)`` float32, L2-normalised, the items' parts in order.
        counts: how many of them each of the ``n`` items has, at least one; their sum is ``m``.
        pooling: one of `POOLINGS`.

    Returns:
        ``(n, d)`` float32, L2-normalised; NaN for items of which a part is.
    """
    if all(count == 1 for count in counts):
        return vectors
    lengths = torch.tensor(counts, device=vectors.device)
    means = torch.segment_reduce(vectors, "mean", lengths=lengths)
    if pooling == "mean":
        return F.normalize(means, dim=1)
    # The sum of a part's similarities to all of its item's parts is its product with their sum.
    alike = (vectors * means.repeat_interleave(lengths, dim=0)).sum(dim=1)
    best = torch.stack([own.argmax() for own in torch.split(alike, list(counts))])
    return vectors[lengths.cumsum(0) - lengths + best]

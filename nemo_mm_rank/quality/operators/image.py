"""How a picture looks, as CleanVision judges it: scores from 0 to 1, higher is better.

The formulas are CleanVision's (version 0.3.7, ``issue_managers/image_property.py`` and its default parameters), whose
scores these equal to 1e-10 for the same RGB picture. What differs is the work: a picture's brightness is an integer
here (its square, times a thousand), of which only the two order statistics are drawn that the scores need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageFilter

Integers: TypeAlias = npt.NDArray[np.int32]

BLUR_SIDE = 64
"""Pixels on the longer side of the picture that blur is measured on."""
BLUR_SCALE, GREY_FLOOR = 0.01, 0.18
ENTROPY_SCALE = 0.1
DARK_PERCENTILE, LIGHT_PERCENTILE = 99, 5


def blurry(picture: PILImage.Image) -> float:
    """Return ``min(b + s, 1)``: how strong the edges are, and how uneven the histogram of greys is.

    Both are measured on the picture scaled to 64 pixels: b = 1 - exp(-.01 sqrt(variance of its edges)), and s the
    same of the standard deviation of the histogram, nothing where it is at most .18. That deviation grows with flat
    areas, so that drawings and screenshots are sharp by it, whatever their edges are like.
    """
    ratio = max(picture.size) / BLUR_SIDE
    if ratio > 1:
        picture = picture.resize((max(int(picture.width // ratio), 1), max(int(picture.height // ratio), 1)))
    grey = picture.convert("L")
    edges = np.asarray(grey.filter(ImageFilter.FIND_EDGES), dtype=np.float64)
    sharp = 1 - np.exp(-BLUR_SCALE * edges.std())
    uneven = 1 - np.exp(-BLUR_SCALE * np.std(grey.histogram()))
    return float(min(sharp + (uneven if uneven > GREY_FLOOR else 0.0), 1.0))


def dark_and_light(picture: PILImage.Image) -> tuple[float, float]:
    """Return the 99th percentile of the pixels' brightness, and 1 - the 5th.

    Brightness is sqrt(.241 R^2 + .691 G^2 + .068 B^2) / 255 (Finley 2006, the HSP model), percentiles are interpolated
    as `numpy.percentile` does.
    """
    squares = _squared_brightness(picture)
    ranks = [(len(squares) - 1) * share / 100 for share in (DARK_PERCENTILE, LIGHT_PERCENTILE)]
    places = [min(int(rank) + step, len(squares) - 1) for rank in ranks for step in (0, 1)]
    squares.partition(sorted(set(places)))
    brightness = np.sqrt(squares[places] / 1000.0) / 255
    dark, light = (
        low + (high - low) * (rank - int(rank))
        for rank, (low, high) in zip(ranks, brightness.reshape(2, 2).tolist(), strict=True)
    )
    return dark, 1 - light


def _squared_brightness(picture: PILImage.Image) -> Integers:
    """Return ``(pixels,)`` 241 R^2 + 691 G^2 + 68 B^2, below 2^26."""
    squares: Integers = np.zeros(picture.width * picture.height, dtype=np.int32)
    channels = (picture if picture.mode == "RGB" else picture.convert("RGB")).split()
    for weight, channel in zip((241, 691, 68), channels, strict=True):
        values = np.array(channel, dtype=np.int32).reshape(-1)
        values *= values
        values *= weight
        squares += values
    return squares


def low_information(picture: PILImage.Image) -> float:
    """Return a tenth of the entropy in bits of the histogram over all channels, at most 1."""
    return min(ENTROPY_SCALE * picture.entropy(), 1.0)


def geometric(picture: PILImage.Image) -> float:
    """Return the shorter side over the longer one (CleanVision's odd aspect ratio, EcoDatum's geometric operator)."""
    return min(picture.size) / max(picture.size)


def resolution(picture: PILImage.Image) -> float:
    """Return the shorter side in pixels, which DataComp's basic filter asks to be 200."""
    return float(min(picture.size))


SCORES: dict[str, Callable[[PILImage.Image], float]] = {
    "blurry": blurry,
    "low_information": low_information,
    "geometric": geometric,
    "resolution": resolution,
}
"""Those that are a number each; `dark_and_light` are found together."""

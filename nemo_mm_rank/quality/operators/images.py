"""How images look, as CleanVision judges it: scores from 0 to 1, higher is better; for a video its frames' mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as PILImage
from PIL import ImageFilter

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.media.segment import Image, Item, Video
from nemo_mm_rank.models.batching import ahead
from nemo_mm_rank.models.windows import as_image
from nemo_mm_rank.quality.operators.media import Judged
from nemo_mm_rank.quality.operators.settings import ImageScore, column
from nemo_mm_rank.schema import Modality

Integers: TypeAlias = npt.NDArray[np.int32]

BLUR_SIDE = 64
"""Pixels on the longer side of the image that blur is measured on."""
BLUR_SCALE, GREY_FLOOR = 0.01, 0.18
ENTROPY_SCALE = 0.1
DARK_PERCENTILE, LIGHT_PERCENTILE = 99, 5


def blurry(picture: PILImage.Image) -> float:
    """Return ``min(b + s, 1)``: how strong the edges are, and how uneven the histogram of greys is.

    Both are measured on the image scaled to 64 pixels: b = 1 - exp(-.01 sqrt(variance of its edges)), and s the
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


@dataclass(frozen=True)
class ImageScores:
    """Adds a column per score. Frames of a video come scaled down, so it has no ``resolution``.

    Args:
        scores: which.
        threads: that look at images at a time.
    """

    scores: Sequence[ImageScore]
    threads: int = 2

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per score."""
        return {column(name): pa.float32() for name in self.scores}

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def takes(self, modality: str) -> bool:
        """Images and videos."""
        return modality in (Modality.IMAGE, Modality.VIDEO)

    def identity(self) -> dict[str, Any]:
        """The scores."""
        return {"images": list(self.scores), "version": 1}

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Look at each image, and at each frame of a video."""
        seen = list(ahead(partial(_look, self.scores), items, self.threads, 2 * self.threads))
        values = np.array(seen, dtype=np.float32).reshape(len(items), len(self.scores))
        return Judged(
            {
                column(name): pa.array(np.ascontiguousarray(values[:, place]), from_pandas=True)
                for place, name in enumerate(self.scores)
            }
        )


def _look(names: Sequence[ImageScore], item: Item) -> Floats:
    """Return ``(k,)`` scores; NaN where one does not apply."""
    if isinstance(item, Video):
        seen = np.array([image_scores(as_image(frame), names) for frame in item.frames])
        means: Floats = seen.mean(axis=0)
        means[[name == "resolution" for name in names]] = np.nan
        return means
    assert isinstance(item, Image)  # noqa: S101 (nothing else is taken)
    return image_scores(item.pixels, names)


def image_scores(pixels: PILImage.Image, names: Iterable[ImageScore]) -> Floats:
    """Return ``(k,)`` scores of an image, in the order of ``names``."""
    asked = list(names)
    scores: dict[str, float] = {}
    if "dark" in asked or "light" in asked:
        scores["dark"], scores["light"] = dark_and_light(pixels)
    for name, score in SCORES.items():
        if name in asked:
            scores[name] = score(pixels)
    return np.array([scores[name] for name in asked])

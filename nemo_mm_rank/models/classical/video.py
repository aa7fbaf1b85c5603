"""Videos as what their frames look like, and how they move."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Floats, Pixels
from nemo_mm_rank.media.segment import Item, Video
from nemo_mm_rank.models.base import FeatureEncoder, of_kind
from nemo_mm_rank.models.classical import image
from nemo_mm_rank.models.classical.image import AT_ONCE, image_features, luma, squares
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import join_blocks

CELLS = 8
FLOORS = (0.0, 0.1, 8.0)
"""Lengths of the blocks of mean, deviation and motion that are next to nothing."""
DIM = 2 * image.DIM + CELLS**2


class VideoFeatures(FeatureEncoder):
    """Embeds videos: mean and standard deviation of their frames' image features, and where they move."""

    name = "video-features"
    modalities = frozenset({Modality.VIDEO})
    dim = DIM

    def _features(self, item: Item) -> Floats:
        pixels = squares(frames(item), image.SIDE)
        looks = np.concatenate([image_features(pixels[at : at + AT_ONCE]) for at in range(0, len(pixels), AT_ONCE)])
        blocks = [looks.mean(axis=0), looks.std(axis=0), motion(pixels, CELLS)]
        return join_blocks([block[None] for block in blocks], FLOORS)


def frames(item: Item) -> list[PILImage.Image]:
    """Return a video's frames as images."""
    return [PILImage.fromarray(frame) for frame in of_kind(item, Video).frames]


def motion(pixels: Pixels, cells: int) -> Floats:
    """Return the mean absolute change of luma from frame to frame in each cell: ``(cells * cells,)``, 0 to 255.

    Of one frame alone it is zero.

    Args:
        pixels: ``(n, side, side, 3)`` uint8, ``side`` a multiple of ``cells``.
        cells: a side.
    """
    if len(pixels) < 2:
        return np.zeros(cells * cells)
    n, side = pixels.shape[:2]
    changes: npt.NDArray[np.int64] = np.abs(np.diff(luma(pixels), axis=0)).sum(axis=0, dtype=np.int64)
    sums = changes.reshape(cells, side // cells, cells, side // cells).sum(axis=(1, 3))
    mean: Floats = sums.reshape(-1) / (1000 * (n - 1) * (side // cells) ** 2)
    return mean

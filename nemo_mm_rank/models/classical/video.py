"""Moving pictures as what their frames look like, and how they move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Floats, Pixels
from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.media.segment import Item, Video
from nemo_mm_rank.models.base import Encoded, encoded, support
from nemo_mm_rank.models.classical import image
from nemo_mm_rank.models.classical.image import AT_ONCE, luma, picture_features, squares
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import join_blocks

CELLS = 8
FLOORS = (0.0, 0.1, 8.0)
"""Lengths of the blocks of mean, deviation and motion that are next to nothing."""
DIM = 2 * image.DIM + CELLS**2


class VideoFeatures:
    """Embeds videos: mean and standard deviation of their frames' picture features, and where they move.

    Args:
        name: what the configuration calls it.
        device: where the vectors are put.
    """

    modalities: frozenset[str] = frozenset({Modality.VIDEO})
    revision = "1"
    dim = DIM

    def __init__(self, name: str = "video-features", device: str = "cpu") -> None:
        self.name = name
        self._device = device

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed videos, each by itself: its frames are the batch."""
        support(self, modality)
        features = np.full((len(items), DIM), np.nan)
        for row, item in enumerate(items):
            pixels = squares(frames(item), image.SIDE)
            looks = np.concatenate(
                [picture_features(pixels[at : at + AT_ONCE]) for at in range(0, len(pixels), AT_ONCE)]
            )
            blocks = [looks.mean(axis=0), looks.std(axis=0), motion(pixels, CELLS)]
            features[row] = join_blocks([block[None] for block in blocks], FLOORS)
        return encoded(features, self.name, self._device)


def frames(item: Item) -> list[PILImage.Image]:
    """Return a video's frames as pictures.

    Raises:
        ModelError: it is no video.
    """
    if not isinstance(item, Video):
        raise ModelError(f"a video was expected, not {type(item).__name__}")
    return [PILImage.fromarray(frame) for frame in item.frames]


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

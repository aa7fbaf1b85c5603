"""Images as colour, gradient-orientation and low-frequency features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from scipy.fft import dct

from nemo_mm_rank.arrays import Floats, Pixels
from nemo_mm_rank.media.segment import Image, Item
from nemo_mm_rank.models.base import FeatureEncoder, of_kind
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import join_blocks

SIDE = 128
LEVELS, COLOUR_CELLS = 4, 3
ORIENTATIONS, GRADIENT_CELLS = 8, 4
THUMB, FREQUENCIES = 32, 8

DIM = LEVELS**3 + 6 * COLOUR_CELLS**2 + ORIENTATIONS * GRADIENT_CELLS**2 + 3 * FREQUENCIES**2
AT_ONCE = 32
"""Images worked on at a time: bounds the memory, and cannot change a result."""


class ImageFeatures(FeatureEncoder):
    """Embeds images by how they look: 438 features in four blocks of equal weight, see `image_features`."""

    name = "image-features"
    modalities = frozenset({Modality.IMAGE})
    dim = DIM

    def _features(self, item: Item) -> Floats:
        return image_features(squares([of_kind(item, Image).pixels], SIDE))


def squares(images: Sequence[PILImage.Image], side: int) -> Pixels:
    """Return images scaled to ``(n, side, side, 3)`` uint8 RGB, whatever their shape."""
    if not images:
        return np.empty((0, side, side, 3), dtype=np.uint8)
    scaled = [one.convert("RGB").resize((side, side), PILImage.Resampling.BILINEAR, reducing_gap=2.0) for one in images]
    return np.stack([np.asarray(one) for one in scaled])


def image_features(pixels: Pixels) -> Floats:
    """Return ``(n, DIM)`` features of ``(n, SIDE, SIDE, 3)`` pixels, in blocks of unit length.

    Sums run over integers, or over one image's values in a fixed order: the features of an image are the same to
    the bit in every batch.

    * the histogram of 64 colours, square root (Arandjelovic and Zisserman, Three things ..., 2012, section 3);
    * mean and standard deviation of each channel in 3 x 3 cells (Stricker and Orengo, Similarity of Color Images,
      1995, equation 2), about middle grey;
    * gradient orientations without sign in 4 x 4 cells, weighted by magnitude, square root (after Dalal and Triggs,
      Histograms of Oriented Gradients, 2005, section 6);
    * the lowest 8 x 8 coefficients of the cosine transform of luma and two colour differences.
    """
    return join_blocks([_histogram(pixels), _moments(pixels), _orientations(pixels), _frequencies(pixels)])


def luma(pixels: Pixels) -> npt.NDArray[np.int32]:
    """Return 1000 times the luma of RGB pixels (ITU-R BT.601, section 2.5.1), exact in integers."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    weighted: npt.NDArray[np.int32] = 299 * red + 587 * green + 114 * blue
    return weighted


def _histogram(pixels: Pixels) -> Floats:
    n = len(pixels)
    red, green, blue = np.moveaxis(pixels // (256 // LEVELS), -1, 0).astype(np.int64)
    colour = (red * LEVELS + green) * LEVELS + blue + LEVELS**3 * np.arange(n)[:, None, None]
    counts = np.bincount(colour.reshape(-1), minlength=n * LEVELS**3).reshape(n, LEVELS**3)
    root: Floats = np.sqrt(counts)
    return root


def _moments(pixels: Pixels) -> Floats:
    n = len(pixels)
    edges = np.linspace(0, SIDE, COLOUR_CELLS + 1).astype(int)[:-1]
    sizes = np.diff(edges, append=SIDE)
    area = (sizes[:, None] * sizes[None, :])[None, :, :, None]

    def cells(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.add.reduceat(np.add.reduceat(values, edges, axis=1), edges, axis=2)

    values = pixels.astype(np.int64)
    mean = cells(values) / area
    spread = np.sqrt(np.maximum(cells(values * values) / area - mean * mean, 0))
    return np.concatenate([(mean - 127.5).reshape(n, -1), spread.reshape(n, -1)], axis=1)


def _orientations(pixels: Pixels) -> Floats:
    n = len(pixels)
    grey = luma(pixels)
    across = np.zeros_like(grey)
    down = np.zeros_like(grey)
    across[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    magnitude = np.sqrt(across.astype(np.float64) ** 2 + down.astype(np.float64) ** 2)
    angle = np.arctan2(down, across) % np.pi  # 0 to pi: an edge has no direction along itself
    orientation = np.minimum((angle * (ORIENTATIONS / np.pi)).astype(np.int64), ORIENTATIONS - 1)
    cell = np.arange(SIDE) // (SIDE // GRADIENT_CELLS)
    place = (np.arange(n)[:, None, None] * GRADIENT_CELLS + cell[:, None]) * GRADIENT_CELLS + cell
    place = place * ORIENTATIONS + orientation
    bins = n * GRADIENT_CELLS**2 * ORIENTATIONS
    weights = np.bincount(place.reshape(-1), magnitude.reshape(-1), minlength=bins)
    root: Floats = np.sqrt(weights.reshape(n, GRADIENT_CELLS**2 * ORIENTATIONS))
    return root


def _frequencies(pixels: Pixels) -> Floats:
    n, step = len(pixels), SIDE // THUMB
    sums = pixels.reshape(n, THUMB, step, THUMB, step, 3).astype(np.int32).sum(axis=(2, 4), dtype=np.int32)
    red, green, blue = np.moveaxis(sums, -1, 0)
    planes = np.stack(
        [299 * red + 587 * green + 114 * blue, 1000 * (red - green), 500 * (red + green) - 1000 * blue], 1
    )
    planes[:, 0] -= 127_500 * step * step
    basis = _cosines()
    # One small product per plane, of one shape: no batch changes how it is summed up.
    coefficients = basis @ planes.astype(np.float64) @ basis.T
    return coefficients.reshape(n, -1)


@lru_cache(maxsize=1)
def _cosines() -> Floats:
    """Return the first rows of the orthonormal DCT-II matrix, ``(FREQUENCIES, THUMB)``."""
    return np.ascontiguousarray(dct(np.eye(THUMB), axis=0, norm="ortho")[:FREQUENCIES])

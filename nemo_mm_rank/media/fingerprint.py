"""Perceptual hashes of media: 64 bits, few of which differ between near duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from scipy.fft import dct

from nemo_mm_rank.arrays import Floats, UInt64s
from nemo_mm_rank.media.segment import Audio
from nemo_mm_rank.media.spectrogram import BANDS, log_mel

Pixels: TypeAlias = PILImage.Image | npt.NDArray[np.uint8]

SIDE = 32
"""Of what is transformed, in each direction."""
KEPT, KEPT_OF_FILMS = 8, 4
"""Lowest frequencies in each direction: 8^2 = 4^3 = 64."""
RANGE = 3.0
"""Powers of ten below the loudest span and band: what is softer is mostly the noise of recording and coding."""
_NOISE = 6
"""Decimals of a coefficient that say something: what a video that stands still has of motion is to be zero."""


def phash(image: Pixels) -> np.uint64:
    """Return the hash of one image, as `phashes` does."""
    return np.uint64(phashes([image])[0])


def phashes(images: Sequence[Pixels]) -> UInt64s:
    """Return ``(n,)`` perceptual hashes, equal to the bit to those of imagededup's ``PHash`` (version 0.3.3).

    An image is scaled to 32 x 32 (Lanczos), then made grey. Of its DCT (type 2) the lowest 8 x 8 coefficients are
    kept; a bit is set where one is at least their median without the first. The first coefficient is the highest bit.

    Args:
        images: RGB or grey, as Pillow has them or ``(h, w, 3)`` or ``(h, w)`` uint8.
    """
    spectrum = dct(dct(small(images), axis=1), axis=2)
    return _bits(spectrum[:, :KEPT, :KEPT])


def small(images: Sequence[Pixels]) -> Floats:
    """Return images ``(n, 32, 32)``: scaled down, and grey from 0 to 255."""
    found = np.empty((len(images), SIDE, SIDE))
    for row, image in enumerate(images):
        picture = image if isinstance(image, PILImage.Image) else PILImage.fromarray(image)
        found[row] = np.asarray(picture.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS).convert("L"))
    return found


def video_hash(frames: npt.NDArray[np.uint8]) -> np.uint64:
    """Return the hash of a video by its frames ``(n, h, w, 3)``, at least one.

    Of the DCT over time and both directions the lowest 4 x 4 x 4 coefficients are kept.
    """
    times = np.linspace(0, len(frames) - 1, max(len(frames), KEPT_OF_FILMS)).round().astype(int)
    spectrum = small(list(frames))[times]
    for axis in range(3):
        spectrum = dct(spectrum, axis=axis, norm="ortho")
    lowest = spectrum[None, :KEPT_OF_FILMS, :KEPT_OF_FILMS, :KEPT_OF_FILMS]
    return np.uint64(_bits(lowest.round(_NOISE))[0])


def audio_hash(audio: Audio) -> np.uint64:
    """Return the hash of a recording: its log-mel spectrogram, averaged over 32 equal spans of time and pairs of bands.

    What lies more than 30 dB below the loudest of these is taken for as loud as that.
    """
    blocks = list(log_mel(audio))
    count = sum(map(len, blocks))
    sums, sizes = np.zeros((SIDE, BANDS)), np.zeros(SIDE)
    start = 0
    for block in blocks:
        spans = np.arange(start, start + len(block)) * SIDE // count
        np.add.at(sums, spans, block)
        sizes += np.bincount(spans, minlength=SIDE)
        start += len(block)
    # A recording shorter than 32 frames repeats them.
    filled = np.maximum.accumulate(np.where(sizes > 0, np.arange(SIDE), 0))
    means = (sums / np.maximum(sizes, 1)[:, None])[filled].reshape(SIDE, SIDE, BANDS // SIDE).mean(axis=2)
    audible = np.maximum(means, means.max() - RANGE)
    spectrum = dct(dct(audible, axis=0, norm="ortho"), axis=1, norm="ortho")
    return np.uint64(_bits(spectrum[None, :KEPT, :KEPT].round(_NOISE))[0])


def _bits(coefficients: npt.NDArray[np.float64]) -> UInt64s:
    """Return ``(n,)`` 64 bits each: where a coefficient is at least the median of all but the first."""
    flat = coefficients.reshape(len(coefficients), 64)
    set_bits = flat >= np.median(flat[:, 1:], axis=1, keepdims=True)
    words: UInt64s = np.packbits(set_bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)
    return words

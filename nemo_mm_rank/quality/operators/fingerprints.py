"""Keys by which duplicates are found: perceptual hashes of media, and the annotation's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from PIL import Image as PILImage
from scipy.fft import dct

from nemo_mm_rank.arrays import Floats, UInt64s
from nemo_mm_rank.media.segment import Audio, Image, Item, Video
from nemo_mm_rank.models.batching import ahead
from nemo_mm_rank.models.classical.audio import BANDS, log_mel
from nemo_mm_rank.quality.operators.media import Judged
from nemo_mm_rank.schema import Modality

Pixels: TypeAlias = PILImage.Image | npt.NDArray[np.uint8]

SIDE = 32
"""Of what is transformed, in each direction."""
KEPT, KEPT_OF_VIDEOS = 8, 4
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
        image = image if isinstance(image, PILImage.Image) else PILImage.fromarray(image)
        found[row] = np.asarray(image.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS).convert("L"))
    return found


def video_hash(frames: npt.NDArray[np.uint8]) -> np.uint64:
    """Return the hash of a video by its frames ``(n, h, w, 3)``, at least one.

    Of the DCT over time and both directions the lowest 4 x 4 x 4 coefficients are kept.
    """
    times = np.linspace(0, len(frames) - 1, max(len(frames), KEPT_OF_VIDEOS)).round().astype(int)
    spectrum = small(list(frames))[times]
    for axis in range(3):
        spectrum = dct(spectrum, axis=axis, norm="ortho")
    lowest = spectrum[None, :KEPT_OF_VIDEOS, :KEPT_OF_VIDEOS, :KEPT_OF_VIDEOS]
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
    # Audio shorter than 32 frames repeats them.
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


DATA_KEY, ANNOTATION_KEY = "fingerprint__data", "fingerprint__annotation"
"""64-bit keys (uint64). Of media the data's is a perceptual hash, so that near ones differ by few bits; of text and
code, and of annotations, equal keys mean equal texts, white space aside, and other keys nothing."""


@dataclass(frozen=True)
class Fingerprints:
    """Adds the keys, for every modality.

    Args:
        threads: that look at media at a time.
    """

    threads: int = 2

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Both keys."""
        return {DATA_KEY: pa.uint64(), ANNOTATION_KEY: pa.uint64()}

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def takes(self, modality: Modality) -> bool:
        """All."""
        return True

    def identity(self) -> dict[str, Any]:
        """The definition's version."""
        return {"fingerprints": 2}

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: Modality) -> Judged:
        """Hash each item, and each annotation."""
        if modality.is_media:
            keys = np.fromiter(ahead(_hash, items, self.threads, 2 * self.threads), np.uint64, len(items))
        else:
            keys = _text_keys([str(item) for item in items])
        return Judged({DATA_KEY: pa.array(keys), ANNOTATION_KEY: pa.array(_text_keys(texts))})


def _hash(item: Item) -> np.uint64:
    if isinstance(item, Image):
        return phash(item.pixels)
    if isinstance(item, Video):
        return video_hash(item.frames)
    assert isinstance(item, Audio)  # noqa: S101 (texts have no perceptual hash)
    return audio_hash(item)


def _text_keys(texts: Sequence[str]) -> Any:
    spaced = [" ".join(text.split()) for text in texts]
    return pd.util.hash_array(np.array(spaced, dtype=object), categorize=False)

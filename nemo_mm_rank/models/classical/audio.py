"""Sounds as statistics of their log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len, rfft
from scipy.signal.windows import hann
from scipy.sparse import csr_array

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models.base import FeatureEncoder, of_kind
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import join_blocks

WINDOW, HOP = 0.025, 0.010
"""Seconds, as in speech recognition."""
BANDS, LOWEST = 64, 50.0
FLOOR = 1e-10
"""Power that counts as none."""
MIDDLE, SCALE = -6.0, 2.0
"""Log10 power that counts as neither loud nor quiet, and the spread of common sounds about it."""
FRAMES_AT_ONCE = 4096
"""Frames worked on at a time: bounds the memory of an hour's recording."""

FLOORS = (0.0, 1.0, 0.5)
"""Lengths of the blocks of mean, deviation and change that are next to nothing, in units of log10 power."""

DIM = 3 * BANDS


class AudioFeatures(FeatureEncoder):
    """Embeds audio by its log-mel statistics: 192 features in three blocks of equal weight, see `mel_statistics`."""

    name = "audio-features"
    modalities = frozenset({Modality.AUDIO})
    dim = DIM

    def _features(self, item: Item) -> Floats:
        return join_blocks([block[None] for block in mel_statistics(of_kind(item, Audio))], FLOORS)


def mel_statistics(audio: Audio) -> tuple[Floats, Floats, Floats]:
    """Return three ``(BANDS,)`` blocks: mean, standard deviation and mean absolute change of log10 mel power.

    The mean is taken about a fixed level, so that silence is a direction of its own and not nothing.
    """
    total, squares, change = np.zeros(BANDS), np.zeros(BANDS), np.zeros(BANDS)
    frames = 0
    last: Floats | None = None
    for block in log_mel(audio):
        total += block.sum(axis=0)
        squares += np.square(block - MIDDLE).sum(axis=0)
        joined = block if last is None else np.concatenate([last, block])
        change += np.abs(np.diff(joined, axis=0)).sum(axis=0)
        last = block[-1:]
        frames += len(block)
    mean = total / frames - MIDDLE
    spread = np.sqrt(np.maximum(squares / frames - mean * mean, 0))
    return mean / SCALE, spread, change / max(1, frames - 1)


def log_mel(audio: Audio) -> Iterator[Floats]:
    """Yield the log10 mel power spectrogram ``(frames, BANDS)`` in blocks, of one frame at least in all.

    The peak of a full-scale sine is 0. Sounds shorter than a window are padded.
    """
    for power in power_frames(audio):
        bands = _mel_filters(audio.rate) @ power.T
        yield np.ascontiguousarray(np.log10(np.maximum(bands, FLOOR)).T)


def power_frames(audio: Audio) -> Iterator[Floats]:
    """Yield the power spectrum ``(frames, bins)`` of Hann-windowed frames, in blocks."""
    size, hop = round(WINDOW * audio.rate), round(HOP * audio.rate)
    samples = audio.samples
    if len(samples) < size:
        samples = np.pad(samples, (0, size - len(samples)))
    framed = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    window = _window(audio.rate)
    for start in range(0, len(framed), FRAMES_AT_ONCE):
        spectrum: npt.NDArray[Any] = rfft(framed[start : start + FRAMES_AT_ONCE] * window, _length(audio.rate))
        yield spectrum.real**2 + spectrum.imag**2


def levels(power: Floats, rate: int) -> Floats:
    """Return each frame's level in dB: that of a full-scale sine is 0 (AES17-2015, section 3.12.1).

    Args:
        power: ``(frames, bins)`` from `power_frames`.
        rate: samples per second.
    """
    window = _window(rate)
    # Windowing and padding spread a sine's power over so many bins, and noise no less.
    spread = _length(rate) * np.square(window).sum() / window.sum() ** 2
    decibels: Floats = 10 * np.log10(np.maximum(power.sum(axis=1) / spread, FLOOR))
    return decibels


def frequencies(rate: int) -> Floats:
    """Return the frequency in hertz of each bin of `power_frames`."""
    length = _length(rate)
    bins: Floats = np.arange(length // 2 + 1, dtype=np.float64) * (rate / length)
    return bins


def _window(rate: int) -> Floats:
    window: Floats = hann(round(WINDOW * rate), sym=False)
    window *= 2 / window.sum()
    return window


def _length(rate: int) -> int:
    return int(next_fast_len(round(WINDOW * rate) * 2, real=True))


@lru_cache(maxsize=8)
def _mel_filters(rate: int) -> Any:
    """Return triangular filters ``(BANDS, bins)``, evenly spaced on the mel scale of O'Shaughnessy (HTK's).

    mel = 2595 log10(1 + f / 700). Sparse, so that each band is summed in one order, whatever the number of threads.
    """
    low, high = (2595 * np.log10(1 + f / 700) for f in (LOWEST, rate / 2))
    corners = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    bins = frequencies(rate)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return csr_array(np.maximum(np.minimum(rising, falling), 0))

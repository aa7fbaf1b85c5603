"""Power spectra of audio, frame by frame, and their log-mel bands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len, rfft
from scipy.sparse import csr_array

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.media.segment import Audio

WINDOW, HOP = 0.025, 0.010
"""Seconds, as in speech recognition."""
BANDS, LOWEST = 64, 50.0
FLOOR = 1e-10
"""Power that counts as none."""
FRAMES_AT_ONCE = 4096
"""Frames worked on at a time: bounds the memory of an hour's recording."""


def log_mel(audio: Audio) -> Iterator[Floats]:
    """Yield the log10 mel power spectrogram ``(frames, BANDS)`` in blocks, of one frame at least in all.

    The peak of a full-scale sine is 0. Recordings shorter than a window are padded.
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
    # Hann's, periodic. By hand: scipy.signal takes half a second to import.
    size = round(WINDOW * rate)
    window: Floats = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, size + 1)[:-1]) if size > 1 else np.ones(size)
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

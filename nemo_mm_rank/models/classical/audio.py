"""Audio as statistics of their log-mel spectrogram."""

from __future__ import annotations

import numpy as np

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.media.spectrogram import BANDS, log_mel
from nemo_mm_rank.models.base import FeatureEncoder, of_kind
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.vectors import join_blocks

MIDDLE, SCALE = -6.0, 2.0
"""Log10 power that counts as neither loud nor quiet, and the spread of common recordings about it."""

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

"""Audio of the demo pool: sounds of nature and of machines, computed, with captions on what, how loud and how high."""

from __future__ import annotations

import wave
from collections.abc import Callable
from io import BytesIO
from random import Random

import numpy as np

from nemo_mm_rank.arrays import Floats as Waveform
from nemo_mm_rank.demo.words import capital, caption

RATE, SECONDS = 8000, 4.0
_TIME = np.arange(int(RATE * SECONDS)) / RATE
LOUDNESS = {"loud": 0.8, "quiet": 0.06}
PITCH = {"low": 180.0, "middle": 700.0, "high": 2200.0}


def _noise(seed: int, low: float, high: float) -> Waveform:
    """Noise between two frequencies in Hz, of peak 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(_TIME)))
    frequencies = np.fft.rfftfreq(len(_TIME), 1 / RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    samples: Waveform = np.fft.irfft(spectrum, len(_TIME))
    samples /= np.abs(samples).max()
    return samples


def _bursts(starts: list[float], length: float) -> Waveform:
    """An envelope that is 1 for ``length`` seconds after each start, with soft edges."""
    envelope = np.zeros(len(_TIME))
    for start in starts:
        at = (_TIME - start) / length
        envelope = np.maximum(envelope, np.where((at >= 0) & (at <= 1), np.minimum(1, 8 * np.minimum(at, 1 - at)), 0))
    return envelope


def _waves(random: Random, loud: str) -> tuple[Waveform, str]:
    swell = 0.25 + 0.75 * np.sin(np.pi * _TIME / random.choice([2.0, 1.3])) ** 2
    said = caption(random, "waves", loud=loud)
    return _noise(random.randrange(2**32), 30, 1200) * swell, said


def _wind(random: Random, loud: str) -> tuple[Waveform, str]:
    gust = 0.4 + 0.6 * np.sin(2 * np.pi * random.choice([0.2, 0.35]) * _TIME) ** 2
    said = caption(random, "wind", loud=loud)
    return _noise(random.randrange(2**32), 60, 500) * gust, said


def _birds(random: Random, loud: str) -> tuple[Waveform, str]:
    count = random.choice([4, 6, 8])
    starts = [0.1 + number * SECONDS / count for number in range(count)]
    glide = random.choice([2200, 2600]) + 500 * np.sin(2 * np.pi * 9 * _TIME)
    said = caption(random, "birds", loud=loud)
    return np.sin(2 * np.pi * np.cumsum(glide) / RATE) * _bursts(starts, 0.25), said


def _rain(random: Random, loud: str) -> tuple[Waveform, str]:
    said = caption(random, "rain", loud=loud)
    return _noise(random.randrange(2**32), 900, 3800), said


def _beeps(random: Random, loud: str) -> tuple[Waveform, str]:
    pitch, count = random.choice(list(PITCH)), random.choice([2, 3, 4, 5])
    starts = [0.2 + number * 3.6 / count for number in range(count)]
    said = caption(random, "beeps", loud=loud, pitch=pitch, **_counted(count))
    return np.sin(2 * np.pi * PITCH[pitch] * _TIME) * _bursts(starts, 0.35), said


def _tone(random: Random, loud: str) -> tuple[Waveform, str]:
    pitch = random.choice(list(PITCH))
    said = caption(random, "tone", loud=loud, pitch=pitch)
    return np.sin(2 * np.pi * PITCH[pitch] * _TIME), said


def _siren(random: Random, loud: str) -> tuple[Waveform, str]:
    sweep = 900 + 500 * np.sin(2 * np.pi * random.choice([0.5, 1.0]) * _TIME)
    said = caption(random, "siren", loud=loud)
    return np.sin(2 * np.pi * np.cumsum(sweep) / RATE), said


def _knocks(random: Random, loud: str) -> tuple[Waveform, str]:
    count = random.choice([3, 4, 6])
    starts = [0.3 + number * 3.4 / count for number in range(count)]
    said = caption(random, "knocks", loud=loud, **_counted(count))
    return _noise(random.randrange(2**32), 50, 400) * _bursts(starts, 0.12), said


NATURE: list[Callable[[Random, str], tuple[Waveform, str]]] = [_waves, _wind, _birds, _rain]
MACHINES: list[Callable[[Random, str], tuple[Waveform, str]]] = [_beeps, _tone, _siren, _knocks]


COURSES: list[tuple[Waveform, str]] = [
    (np.ones(len(_TIME)), ""),
    (np.linspace(1, 0.05, len(_TIME)), " It fades away towards the end."),
    (np.linspace(0.05, 1, len(_TIME)), " It comes closer and closer."),
]


def audio_clip(random: Random, natural: bool, number: int) -> tuple[bytes, str]:
    """Return a recording as a WAV file (mono, 16 bit), and its caption; kinds take turns by ``number``."""
    loud = random.choice(list(LOUDNESS))
    kinds = NATURE if natural else MACHINES
    samples, said = kinds[number % len(kinds)](random, loud)
    course, remark = random.choice(COURSES)
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * course * LOUDNESS[loud] * 32767).astype("<i2").tobytes())
    return file.getvalue(), capital(said + remark)


def _counted(count: int) -> dict[str, str]:
    word = ["Two", "Three", "Four", "Five", "Six"][count - 2]
    return {"count": word, "times": word.lower()}

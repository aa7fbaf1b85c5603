"""Sounds of the demo pool: of nature and of machines, computed, with captions on what, how loud and how high."""

from __future__ import annotations

import wave
from collections.abc import Callable
from io import BytesIO
from random import Random

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]

RATE, SECONDS = 8000, 4.0
_TIME = np.arange(int(RATE * SECONDS)) / RATE
LOUDNESS = {"loud": 0.8, "quiet": 0.06}
PITCH = {"low": 180.0, "middle": 700.0, "high": 2200.0}


def _noise(seed: int, low: float, high: float) -> Samples:
    """Noise between two frequencies in Hz, of peak 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(_TIME)))
    frequencies = np.fft.rfftfreq(len(_TIME), 1 / RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    samples: Samples = np.fft.irfft(spectrum, len(_TIME))
    samples /= np.abs(samples).max()
    return samples


def _bursts(starts: list[float], length: float) -> Samples:
    """An envelope that is 1 for ``length`` seconds after each start, with soft edges."""
    envelope = np.zeros(len(_TIME))
    for start in starts:
        at = (_TIME - start) / length
        envelope = np.maximum(envelope, np.where((at >= 0) & (at <= 1), np.minimum(1, 8 * np.minimum(at, 1 - at)), 0))
    return envelope


def _waves(random: Random, loud: str) -> tuple[Samples, str]:
    swell = 0.25 + 0.75 * np.sin(np.pi * _TIME / random.choice([2.0, 1.3])) ** 2
    caption = random.choice(
        [
            f"{loud} waves of the sea roll onto the beach, again and again.",
            f"The sea is {loud}. Waves break on the sand and run back.",
        ]
    )
    return _noise(random.randrange(2**32), 30, 1200) * swell, caption


def _wind(random: Random, loud: str) -> tuple[Samples, str]:
    gust = 0.4 + 0.6 * np.sin(2 * np.pi * random.choice([0.2, 0.35]) * _TIME) ** 2
    caption = random.choice(
        [f"A {loud} wind blows over the grass of an open field.", f"{loud} wind in the trees, a low rustle outdoors."]
    )
    return _noise(random.randrange(2**32), 60, 500) * gust, caption


def _birds(random: Random, loud: str) -> tuple[Samples, str]:
    count = random.choice([4, 6, 8])
    starts = [0.1 + number * SECONDS / count for number in range(count)]
    glide = random.choice([2200, 2600]) + 500 * np.sin(2 * np.pi * 9 * _TIME)
    caption = random.choice(
        [
            f"Birds sing {loud}ly in a meadow, high and clear.",
            f"A {loud} bird chirps outdoors under the open sky.",
        ]
    )
    return np.sin(2 * np.pi * np.cumsum(glide) / RATE) * _bursts(starts, 0.25), caption


def _rain(random: Random, loud: str) -> tuple[Samples, str]:
    caption = random.choice(
        [f"{loud} rain falls on leaves and grass without a pause.", f"Steady rain from a grey sky, {loud} and even."]
    )
    return _noise(random.randrange(2**32), 900, 3800), caption


def _beeps(random: Random, loud: str) -> tuple[Samples, str]:
    pitch, count = random.choice(list(PITCH)), random.choice([2, 3, 4, 5])
    starts = [0.2 + number * 3.6 / count for number in range(count)]
    caption = random.choice(
        [
            f"{_number(count)} {loud} electronic beeps at a {pitch} pitch.",
            f"A machine beeps {_number(count).lower()} times. The tone is {loud} and {pitch}.",
        ]
    )
    return np.sin(2 * np.pi * PITCH[pitch] * _TIME) * _bursts(starts, 0.35), caption


def _tone(random: Random, loud: str) -> tuple[Samples, str]:
    pitch = random.choice(list(PITCH))
    caption = random.choice(
        [f"A steady {pitch} tone, {loud} from start to end.", f"One long {loud} test tone with a {pitch} pitch."]
    )
    return np.sin(2 * np.pi * PITCH[pitch] * _TIME), caption


def _siren(random: Random, loud: str) -> tuple[Samples, str]:
    sweep = 900 + 500 * np.sin(2 * np.pi * random.choice([0.5, 1.0]) * _TIME)
    caption = random.choice([f"A {loud} siren goes up and down.", f"An alarm wails {loud}ly, rising and falling."])
    return np.sin(2 * np.pi * np.cumsum(sweep) / RATE), caption


def _knocks(random: Random, loud: str) -> tuple[Samples, str]:
    count = random.choice([3, 4, 6])
    starts = [0.3 + number * 3.4 / count for number in range(count)]
    caption = random.choice(
        [
            f"{_number(count)} {loud} knocks on a wooden door.",
            f"A drum is hit {_number(count).lower()} times, {loud}ly.",
        ]
    )
    return _noise(random.randrange(2**32), 50, 400) * _bursts(starts, 0.12), caption


NATURE: list[Callable[[Random, str], tuple[Samples, str]]] = [_waves, _wind, _birds, _rain]
MACHINES: list[Callable[[Random, str], tuple[Samples, str]]] = [_beeps, _tone, _siren, _knocks]


COURSES: list[tuple[Samples, str]] = [
    (np.ones(len(_TIME)), ""),
    (np.linspace(1, 0.05, len(_TIME)), " It fades away towards the end."),
    (np.linspace(0.05, 1, len(_TIME)), " It comes closer and closer."),
]


def sound(random: Random, natural: bool, number: int) -> tuple[bytes, str]:
    """Return a sound as a WAV file (mono, 16 bit), and its caption; kinds take turns by ``number``."""
    loud = random.choice(list(LOUDNESS))
    kinds = NATURE if natural else MACHINES
    samples, caption = kinds[number % len(kinds)](random, loud)
    course, remark = random.choice(COURSES)
    samples, caption = samples * course, caption + remark
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * LOUDNESS[loud] * 32767).astype("<i2").tobytes())
    return file.getvalue(), caption[0].upper() + caption[1:]


def _number(count: int) -> str:
    return ["Two", "Three", "Four", "Five", "Six"][count - 2]

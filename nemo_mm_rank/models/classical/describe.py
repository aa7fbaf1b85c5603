"""Media in plain words: an image's colours, a recording's pitch, as anyone could say without knowing what it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Floats, Pixels
from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.media.segment import Audio, Image, Item
from nemo_mm_rank.media.spectrogram import FLOOR, frequencies, levels, power_frames
from nemo_mm_rank.models.base import Described, of_kind, support
from nemo_mm_rank.models.classical.image import luma, squares
from nemo_mm_rank.models.classical.video import frames, motion
from nemo_mm_rank.schema import Modality

EXAMPLES: dict[str, tuple[str, ...]] = {
    "black": ("000000", "141414", "26221f"),
    "grey": ("404040", "606060", "808080", "a0a0a0", "bebebe"),
    "white": ("d8d8d8", "ebebeb", "ffffff", "f5f3ea"),
    "red": ("7d1416", "b01c20", "dc2828", "f04a3e"),
    "orange": ("c8641e", "f08020", "ffa53c"),
    "yellow": ("c8aa28", "ebd23c", "fff06e"),
    "green": ("1e3214", "2e5a24", "4b7d32", "78a046", "3ca050", "a5c878"),
    "turquoise": ("146464", "28a0a0", "64c8c3"),
    "blue": ("14234b", "1e3c82", "2e5fb4", "5082c8", "78aae1", "aacdeb"),
    "purple": ("3c1e50", "6e3282", "9b69b9"),
    "pink": ("be4678", "e678a0", "f5b4be"),
    "brown": ("372314", "5a3c23", "7d5532", "966e46"),
    "beige": ("b49b78", "cdb996", "e1d2b4"),
}
"""Shades, as RRGGBB, by the eleven basic colour terms (Berlin and Kay, Basic Color Terms, 1969), beige, turquoise."""

NAMES = tuple(EXAMPLES)
CHROMATIC = np.array([name not in ("black", "grey", "white") for name in NAMES])

_BITS = 5
"""Of each channel that a name depends on."""


def name_colours(pixels: Pixels) -> npt.NDArray[np.intp]:
    """Return, for ``(..., 3)`` RGB pixels, the position in `NAMES` of the name of the nearest shade."""
    red, green, blue = np.moveaxis(pixels >> (8 - _BITS), -1, 0).astype(np.intp)
    names: npt.NDArray[np.intp] = _table()[red, green, blue]
    return names


def lab(rgb: npt.NDArray[np.float64]) -> Floats:
    """Return CIE 1976 L*a*b* (D65) of ``(..., 3)`` sRGB values from 0 to 1 (IEC 61966-2-1; CIE 15:2004, section 8)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.intp]:
    shades = np.array([list(bytes.fromhex(shade)) for shades in EXAMPLES.values() for shade in shades])
    owner = np.repeat(np.arange(len(NAMES)), [len(shades) for shades in EXAMPLES.values()])
    levels = (np.arange(1 << _BITS) + 0.5) / (1 << _BITS)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    distances = np.linalg.norm(lab(colours)[..., None, :] - lab(shades / 255), axis=-1)
    nearest: npt.NDArray[np.intp] = owner[distances.argmin(axis=-1)]
    return nearest


SIDE = 48
AT_ONCE = 256
"""Images worked on at a time."""

Steps = Sequence[tuple[float, str]]

BRIGHTNESS: Steps = [(70, "dark"), (95, "dim"), (140, ""), (float("inf"), "bright")]
CONTRAST: Steps = [(33, "low-contrast"), (63, ""), (float("inf"), "high-contrast")]
COLOURED: Steps = [(0.08, "colourless"), (0.2, "muted"), (0.62, ""), (float("inf"), "colourful")]
DETAIL: Steps = [(8, "plain"), (17, ""), (float("inf"), "busy")]
"""Up to which mean luma, standard deviation of luma, share of coloured pixels, and mean step of luma from pixel to
pixel an image is called what."""

AMOUNT: Steps = [(0.1, ""), (0.25, "some"), (0.45, "much"), (float("inf"), "mostly")]
LIKENESS: dict[tuple[str, str], str] = {
    ("blue", "top"): "sky",
    ("white", "top"): "sky",
    ("green", "bottom"): "grass",
    ("blue", "bottom"): "water",
    ("turquoise", "bottom"): "water",
    ("white", "bottom"): "snow",
    ("beige", "bottom"): "sand",
    ("brown", "bottom"): "ground",
    ("green", "top"): "trees",
    ("black", "top"): "night",
}
"""What a colour in a place mostly is, outdoors: a guess, and worded as one."""

MOTION: Steps = [(1, "still"), (8, "slowly moving"), (20, "moving"), (float("inf"), "fast moving")]
"""Up to which mean change of luma from frame to frame."""

SILENCE = -60.0
LOUDNESS: Steps = [(-27, "quiet"), (-13, ""), (float("inf"), "loud")]
PITCH: Steps = [(600, "low"), (2000, "medium"), (float("inf"), "high")]
STEADINESS: Steps = [(4, "steady"), (12, "changing"), (float("inf"), "bursty")]
TEXTURE: Steps = [(0.02, "tonal"), (0.15, ""), (float("inf"), "noisy")]
"""Up to which level in dB of full scale, spectral centroid in hertz, standard deviation in dB of the level, and
spectral flatness a recording is called what."""

RESEMBLANCE: dict[tuple[str, str], str] = {
    ("low", "steady"): "an engine",
    ("low", "changing"): "thunder or an engine",
    ("low", "bursty"): "knocking",
    ("medium", "steady"): "rain or a machine",
    ("medium", "changing"): "speech or music",
    ("medium", "bursty"): "a voice or a barking dog",
    ("high", "steady"): "rain or wind",
    ("high", "changing"): "birds or a crying baby",
    ("high", "bursty"): "chirping birds or clicking",
}
"""What a sound of such pitch and steadiness often is: a guess, and worded as one."""


class PlainWords:
    """Describes images, audio and video in one short English sentence each, from simple measures.

    Args:
        name: what the configuration calls it.
    """

    modalities: frozenset[str] = frozenset({Modality.IMAGE, Modality.AUDIO, Modality.VIDEO})
    revision = "1"

    def __init__(self, name: str = "plain-words") -> None:
        self.name = name

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``; the words for one do not depend on the others."""
        support(self, modality)
        if modality == Modality.AUDIO:
            return self._recordings(items)
        if modality == Modality.VIDEO:
            return Described([self._video(squares(frames(item), SIDE)) for item in items])
        texts: list[str | None] = []
        for start in range(0, len(items), AT_ONCE):
            pixels = squares([of_kind(item, Image).pixels for item in items[start : start + AT_ONCE]], SIDE)
            texts += [f"A {words}." for words in map(image_words, pixels[:, None])]
        return Described(texts)

    def _video(self, pixels: Pixels) -> str:
        movement = _step(MOTION, float(motion(pixels, 8).mean()))
        return f"A {movement} video, a {image_words(pixels)}."

    def _recordings(self, items: Sequence[Item]) -> Described:
        texts: list[str | None] = []
        errors: dict[int, PairError] = {}
        for row, item in enumerate(items):
            audio = of_kind(item, Audio)
            if np.isfinite(audio.samples).all():
                texts.append(audio_words(audio))
            else:
                texts.append(None)
                errors[row] = EmbeddingError(f"{self.name}: samples that are not finite")
        return Described(texts, errors)


def image_words(pixels: Pixels) -> str:
    """Return words for one image, or for the frames of one video: ``(n, SIDE, SIDE, 3)`` RGB."""
    grey = luma(pixels) / 1000
    names = name_colours(pixels)
    shares = _shares(names)
    detail = (np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean()) / 2
    adjectives = [
        _step(BRIGHTNESS, float(grey.mean())),
        _step(CONTRAST, float(grey.std())),
        _step(COLOURED, float(shares[CHROMATIC].sum())),
        _step(DETAIL, float(detail)),
    ]
    amounts = [(_step(AMOUNT, float(shares[colour])), NAMES[colour]) for colour in np.argsort(-shares, kind="stable")]
    colours = [f"{amount} {name}" for amount, name in amounts[:4] if amount]
    third = SIDE // 3
    thirds = {
        "top": names[:, :third],
        "centre": names[:, third:-third, third:-third],
        "bottom": names[:, -third:],
    }
    most = NAMES[int(shares.argmax())]
    places = [_place(part, where, most) for where, part in thirds.items()]
    looks = ["picture, " + ", ".join(colours), ", ".join(filter(None, places))]
    return f"{_listed(adjectives)} {'; '.join(filter(None, looks))}".strip()


def _place(names: npt.NDArray[np.intp], where: str, most: str) -> str:
    """Return the colour that takes up much of a place, unless that says no more than what ``most`` of all is."""
    shares = _shares(names)
    colour = NAMES[int(shares.argmax())]
    like = LIKENESS.get((colour, where))
    if shares.max() < 0.4 or (colour == most and not like):
        return ""
    return f"{colour} {where}" + (f" like {like}" if like else "")


def _shares(names: npt.NDArray[np.intp]) -> Floats:
    counts = np.bincount(names.reshape(-1), minlength=len(NAMES))
    shares: Floats = counts / names.size
    return shares


def audio_words(audio: Audio) -> str:
    """Return words for a recording: how loud, high, steady and noisy it is."""
    spectrum = np.zeros(len(frequencies(audio.rate)))
    blocks = []
    for power in power_frames(audio):
        spectrum += power.sum(axis=0)
        blocks.append(levels(power, audio.rate))
    level = np.concatenate(blocks)
    if level.max() < SILENCE:
        return "Silence."
    mean = spectrum / len(level)
    loudness = _step(LOUDNESS, float(levels(mean[None], audio.rate)[0]))
    pitch = _step(PITCH, float((mean * frequencies(audio.rate)).sum() / mean.sum()))
    steadiness = _step(STEADINESS, float(level.std()))
    texture = _step(TEXTURE, float(np.exp(np.log(mean + FLOOR).mean()) / (mean + FLOOR).mean()))
    adjectives = _listed([loudness, f"{pitch}-pitched", steadiness, texture])
    return f"A {adjectives} sound like {RESEMBLANCE[pitch, steadiness]}."


def _step(steps: Steps, value: float) -> str:
    return next(word for limit, word in steps if value <= limit)


def _listed(words: Sequence[str]) -> str:
    """Return words as English lists them: a, b and c."""
    *most, last = [word for word in words if word] or [""]
    return f"{', '.join(most)} and {last}" if most else last

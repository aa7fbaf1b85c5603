"""Colours by name."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Floats, Pixels

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

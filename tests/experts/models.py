"""A model that fails on some of what it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_mm_rank.media.segment import Image, Item
from nemo_mm_rank.models.base import Encoded


class NaNForRed:
    """Gives NaN for pictures that are mostly red."""

    name, revision, dim = "broken", "1", 2
    modalities = frozenset({"image"})

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        pixels = [item.pixels.getpixel((0, 0)) for item in items if isinstance(item, Image)]
        red = [isinstance(pixel, tuple) and pixel[0] > 100 for pixel in pixels]
        rows = [[float("nan")] * 2 if is_red else [1.0, 0.0] for is_red in red]
        return Encoded(torch.tensor(rows))

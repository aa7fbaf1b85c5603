"""How pictures look, as an operator: CleanVision's scores, and for a video the mean over its frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.media.segment import Image, Video
from nemo_mm_rank.models.base import Item
from nemo_mm_rank.models.batches import ahead
from nemo_mm_rank.models.parts import picture
from nemo_mm_rank.quality.operators import image
from nemo_mm_rank.quality.operators.media_step import Judged
from nemo_mm_rank.quality.operators.settings import Picture, column
from nemo_mm_rank.schema import Modality


@dataclass(frozen=True)
class PictureScores:
    """Adds a column per score. Frames of a video come scaled down, so it has no ``resolution``.

    Args:
        scores: which.
        threads: that look at pictures at a time.
    """

    scores: Sequence[Picture]
    threads: int = 2

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per score."""
        return {column(name): pa.float32() for name in self.scores}

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def takes(self, modality: Modality) -> bool:
        """Images and videos."""
        return modality in (Modality.IMAGE, Modality.VIDEO)

    def identity(self) -> dict[str, Any]:
        """The scores."""
        return {"pictures": list(self.scores), "version": 1}

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: Modality) -> Judged:
        """Look at each picture, and at each frame of a video."""
        seen = list(ahead(partial(_look, self.scores), items, self.threads, 2 * self.threads))
        values = np.array(seen, dtype=np.float32).reshape(len(items), len(self.scores))
        return Judged(
            {
                column(name): pa.array(np.ascontiguousarray(values[:, place]), from_pandas=True)
                for place, name in enumerate(self.scores)
            }
        )


def _look(names: Sequence[Picture], item: Item) -> Floats:
    """Return ``(k,)`` scores; NaN where one does not apply."""
    if isinstance(item, Video):
        seen = np.array([picture_scores(picture(frame), names) for frame in item.frames])
        means: Floats = seen.mean(axis=0)
        means[[name == "resolution" for name in names]] = np.nan
        return means
    assert isinstance(item, Image)  # noqa: S101 (nothing else is taken)
    return picture_scores(item.pixels, names)


def picture_scores(pixels: PILImage.Image, names: Iterable[Picture]) -> Floats:
    """Return ``(k,)`` scores of a picture, in the order of ``names``."""
    wanted = list(names)
    found: dict[str, float] = {}
    if "dark" in wanted or "light" in wanted:
        found["dark"], found["light"] = image.dark_and_light(pixels)
    for name, score in image.SCORES.items():
        if name in wanted:
            found[name] = score(pixels)
    return np.array([found[name] for name in wanted])

"""Keys by which duplicates are found: what the data is like, whatever its file; and the annotation's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models.base import Item
from nemo_mm_rank.models.batches import ahead
from nemo_mm_rank.quality.operators.media_step import Judged
from nemo_mm_rank.quality.phash import film_hash, phash, sound_hash
from nemo_mm_rank.schema import Modality

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
        return film_hash(item.frames)
    assert isinstance(item, Audio)  # noqa: S101 (texts have no perceptual hash)
    return sound_hash(item)


def _text_keys(texts: Sequence[str]) -> Any:
    spaced = [" ".join(text.split()) for text in texts]
    return pd.util.hash_array(np.array(spaced, dtype=object), categorize=False)

"""Keys by which duplicates are found: perceptual hashes of media, and the annotation's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.modality import is_media, of
from nemo_mm_rank.models.batching import ahead
from nemo_mm_rank.quality.operators.media import Judged

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

    def takes(self, modality: str) -> bool:
        """All."""
        return True

    def identity(self) -> dict[str, Any]:
        """The definition's version."""
        return {"fingerprints": 2}

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Hash each item, and each annotation."""
        if is_media(modality):
            hashed = ahead(of(modality).fingerprint, items, self.threads, 2 * self.threads)
            keys = np.fromiter(hashed, np.uint64, len(items))
        else:
            keys = _text_keys([str(item) for item in items])
        return Judged({DATA_KEY: pa.array(keys), ANNOTATION_KEY: pa.array(_text_keys(texts))})


def _text_keys(texts: Sequence[str]) -> Any:
    spaced = [" ".join(text.split()) for text in texts]
    return pd.util.hash_array(np.array(spaced, dtype=object), categorize=False)

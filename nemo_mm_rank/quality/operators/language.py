"""Which language texts are in, by a fastText file (Joulin et al. 2016) of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.errors import ModelError, require

LABEL = "__label__"


def identify(texts: Sequence[str], path: str, lowercase: bool = False) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the likeliest language of each text, as the file calls it, and its probability.

    DataComp's reading of texts (``baselines/apply_filter.py``): line ends become spaces, and nothing else is changed.
    fastText's probabilities can be some 1e-5 above 1. A text of which nothing is known has the language "" and 0.

    Args:
        texts: ``n`` of them.
        path: of the fastText file.
        lowercase: read them in lower case.

    Raises:
        UserError: no reader of fastText files is installed.
        ModelError: the file is none, or is no classifier.
    """
    model = load(path)
    labels, probabilities = [], np.zeros(len(texts))
    for row, text in enumerate(texts):
        line = text.replace("\n", " ")
        # One by one: what a list of lines returns depends on which reader of fastText files is installed.
        found, likely = model.predict(line.lower() if lowercase else line, k=1)
        labels.append(found[0].removeprefix(LABEL) if len(found) else "")
        probabilities[row] = likely[0] if len(found) else 0.0
    return labels, probabilities


@lru_cache(maxsize=2)
def load(path: str) -> Any:
    """Open a fastText file, once per process; raises as `identify` does."""
    fasttext = require("fasttext", "curator")
    try:
        model = fasttext.load_model(path)
        model.predict("a", k=1)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"language: {path} is no fastText classifier: {' '.join(str(error).split())}") from error
    return model

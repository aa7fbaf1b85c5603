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
    lines = [text.replace("\n", " ") for text in texts]
    if lowercase:
        lines = [line.lower() for line in lines]
    labels, probabilities = [], np.zeros(len(lines))
    for row, (label, probability) in enumerate(_predict(load(path), lines)):
        labels.append(label.removeprefix(LABEL))
        probabilities[row] = probability
    return labels, probabilities


def _predict(model: Any, lines: list[str]) -> list[tuple[str, float]]:
    if not lines:
        return []
    found = model.predict(lines, k=1)
    # The original returns labels and probabilities apart; fasttext-predict, which needs no compiler, a pair per line.
    if isinstance(found, tuple):
        found = list(zip(*found, strict=True))
    return [(labels[0], float(values[0])) if len(labels) else ("", 0.0) for labels, values in found]


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

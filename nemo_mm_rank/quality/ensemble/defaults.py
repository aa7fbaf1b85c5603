"""Labeling functions for operators that nobody has given thresholds: what each can fairly say of a pair.

EcoDatum's paper lets all operators vote in one label model, which knows of one hidden cause alone. But a near-empty
picture may be described well: agreement outvotes what looks at the picture only, or the model takes such a function to
be wrong. So defects of pictures are vetoes, and whether the two sides belong to each other is for the label model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nemo_mm_rank.quality.ensemble.model import LEAST
from nemo_mm_rank.quality.ensemble.settings import OUTLIERS, FunctionSettings
from nemo_mm_rank.quality.operators.settings import PREFIX

VETOES = MappingProxyType(
    {
        # EcoDatum's own constants.
        "blurry": 0.28,
        "geometric": 0.33,
        # CleanVision's, for what EcoDatum does not look at.
        "dark": 0.32,
        "light": 0.05,
        "low_information": 0.3,
    }
)
"""Operator -> the score at or below which it vetoes a pair in any pool; beyond that, an outlier of the pool's."""

LANGUAGE = "language"
"""Operator that speaks against a pair of none of the languages, and for nothing."""

OF_ONE_SIDE = ("words", "character_repetition", "word_repetition", "caption_like")
"""Operators that speak against outliers, and for nothing."""

UNHEARD = ("characters", "resolution")
"""Operators without a function: a length is counted once, and what resolution is enough is for a user to say."""

STOPGAP = "concrete_words"
"""Operator that is a plain proxy, and is heard where a label model would have too few functions without it."""

BOTH_WAYS = MappingProxyType({"select": "top 50%", "reject": "bottom 30%"})
"""All others (agreement of both sides, grounding, concreteness) select and reject."""


def default_functions(columns: Sequence[str]) -> dict[str, FunctionSettings]:
    """Return a labeling function for each operator's column that has something to say.

    Args:
        columns: ``quality__<operator>``; any other name is taken as it is.
    """
    levels = {column: _levels(column.removeprefix(PREFIX)) for column in columns}
    if sum(found == BOTH_WAYS for found in levels.values()) > LEAST:
        levels.pop(f"{PREFIX}{STOPGAP}", None)
    return {
        column.removeprefix(PREFIX): FunctionSettings.model_validate({"column": column, **found})
        for column, found in levels.items()
        if found is not None
    }


def _levels(operator: str) -> Mapping[str, Any] | None:
    if operator in UNHEARD:
        return None
    if operator in VETOES:
        return {"reject": [VETOES[operator], OUTLIERS], "veto": True}
    if operator == LANGUAGE:
        return {"reject": 0.0}
    return {"reject": OUTLIERS} if operator in OF_ONE_SIDE else BOTH_WAYS

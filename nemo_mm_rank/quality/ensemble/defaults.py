"""Labeling functions for operators that nobody has given thresholds: what each can fairly say of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from nemo_mm_rank.quality.ensemble.settings import FunctionSettings
from nemo_mm_rank.quality.operators.settings import PREFIX

ONLY_REJECT = MappingProxyType(
    {
        # EcoDatum's own constants.
        "blurry": 0.28,
        "geometric": 0.33,
        "language": 0.0,
        # CleanVision's, for what EcoDatum does not look at.
        "dark": 0.32,
        "light": 0.05,
        "low_information": 0.3,
    }
)
"""Operator -> the score at or below which it speaks against a pair. A sharp picture is no good pair for that."""

OF_ONE_SIDE = ("words", "character_repetition", "word_repetition", "caption_like")
"""Operators that speak against the worst fifth of the pool, and for nothing."""

UNHEARD = ("characters", "resolution")
"""Operators without a function: a length is counted once, and what resolution is enough is for a user to say."""

BOTH_WAYS = ("top 40%", "bottom 40%")
"""All others (agreement of both sides, grounding, concreteness) select and reject: EcoDatum's Top40 and Top60."""


def default_functions(columns: Sequence[str]) -> dict[str, FunctionSettings]:
    """Return a labeling function for each operator's column that has something to say.

    Args:
        columns: ``quality__<operator>``; any other name is taken as it is.
    """
    functions = {}
    for column in columns:
        operator = column.removeprefix(PREFIX)
        if operator in UNHEARD:
            continue
        if operator in ONLY_REJECT:
            levels: dict[str, float | str] = {"reject": ONLY_REJECT[operator]}
        elif operator in OF_ONE_SIDE:
            levels = {"reject": "bottom 20%"}
        else:
            levels = dict(zip(("select", "reject"), BOTH_WAYS, strict=True))
        functions[operator] = FunctionSettings.model_validate({"column": column, **levels})
    return functions

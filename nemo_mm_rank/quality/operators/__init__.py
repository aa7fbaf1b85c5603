"""Quality operators: what can be said of a pair by itself, each a column ``quality__<operator>``, higher is better.

`steps` makes steps like all others of `OperatorSettings`; null stands where an operator does not apply to a modality.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.quality.operators.media_step import Judged, MediaStep, Operator
from nemo_mm_rank.quality.operators.pictures import PictureScores
from nemo_mm_rank.quality.operators.settings import PREFIX, OperatorSettings, column
from nemo_mm_rank.quality.operators.text_step import LANGUAGE_LABEL, TextScorer, TextStep
from nemo_mm_rank.steps import Step

__all__ = [
    "LANGUAGE_LABEL",
    "PREFIX",
    "Judged",
    "MediaStep",
    "Operator",
    "OperatorSettings",
    "PictureScores",
    "TextScorer",
    "TextStep",
    "column",
    "columns",
    "steps",
]


def steps(
    settings: OperatorSettings, models: Mapping[str, ModelSpec] | None = None, media: MediaSettings | None = None
) -> list[Step]:
    """Return the steps that compute what the settings ask for, in the order in which they are to run.

    Args:
        settings: which operators.
        models: the configuration's models by name, for operators that name one.
        media: how media are opened.
    """
    models, media = models or {}, media or MediaSettings()
    found: list[Step] = [TextStep(settings, models, media)]
    operators: list[Operator] = []
    pictures = [name for name in settings.pictures if name not in settings.given]
    if pictures:
        operators.append(PictureScores(pictures, media.threads))
    if operators:
        found.append(MediaStep(operators, media))
    return [step for step in found if step.provides]


def columns(settings: OperatorSettings) -> list[str]:
    """Return the names of the score columns that `steps` add (float32), without labels and keys."""
    return [
        name
        for step in steps(settings)
        for name in step.provides
        if name.startswith(PREFIX) and name != LANGUAGE_LABEL
    ]

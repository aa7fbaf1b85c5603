"""What an ensemble can be told: labeling functions by name, their thresholds as numbers or as shares of the pool."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.config import Settings
from nemo_mm_rank.quality.ensemble.model import ALIKE, LEAST, LabelModel
from nemo_mm_rank.quality.ensemble.votes import REJECT, SELECT
from nemo_mm_rank.quality.operators.settings import PREFIX

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class Quantile(Settings):
    """A threshold that a share of the pool's scores reaches (or stays below)."""

    share: Annotated[float, Field(gt=0, lt=1)]

    def __str__(self) -> str:
        return f"{float(Fraction(str(self.share)) * 100):g} %"


Outliers = Literal["outliers"]
OUTLIERS: Outliers = "outliers"
"""The threshold that the pool's own spread sets: `thresholds.resolve`."""

Reject = float | Quantile | Outliers


def _level(word: str, *others: str) -> BeforeValidator:
    def parse(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(parse(part) for part in value)
        if not isinstance(value, str) or value in others:
            return value
        match = re.fullmatch(rf"\s*{word}\s+(\d+(?:\.\d+)?)\s*%\s*", value)
        if not match:
            known = "".join(f", or {other!r}" for other in others)
            raise ValueError(f"a threshold is a score, or a share like '{word} 40%'{known}, not {value!r}")
        return {"share": float(Fraction(match[1]) / 100)}

    return BeforeValidator(parse)


class FunctionSettings(Settings):
    """One labeling function: what it selects, and what it rejects; a score between the two gets no vote."""

    column: str = Field(description="The column of scores that the function reads; higher is better.")
    select: Annotated[float | Quantile | None, _level("top")] = Field(
        None, description="Select pairs at or above this score, or at most this share of the pool ('top 40%')."
    )
    reject: Annotated[
        Reject | Annotated[tuple[Reject, ...], Field(min_length=1)] | None, _level("bottom", OUTLIERS)
    ] = Field(
        None,
        description="Reject pairs at or below this score, at most this share of the pool ('bottom 40%'), or those"
        " below Tukey's fence ('outliers'). Of several, the highest threshold counts.",
    )
    veto: bool = Field(
        False,
        description="Reject a pair for a defect that good agreement cannot make up for: this is no vote, but a "
        "factor of the quality.",
    )

    @property
    def rejects(self) -> tuple[Reject, ...]:
        """The levels of ``reject``."""
        if isinstance(self.reject, tuple):
            return self.reject
        return () if self.reject is None else (self.reject,)

    @property
    def allowed(self) -> tuple[int, ...]:
        """The votes that it may cast."""
        return tuple(vote for vote, level in ((REJECT, self.reject), (SELECT, self.select)) if level is not None)

    @model_validator(mode="after")
    def _says_something(self) -> FunctionSettings:
        if not self.allowed:
            raise ValueError("a labeling function selects or rejects something: give select, reject or both")
        select = self.select
        if self.veto and select is not None:
            raise ValueError("a veto may only reject")
        for reject in self.rejects:
            if isinstance(select, Quantile) and isinstance(reject, Quantile):
                if Fraction(str(select.share)) + Fraction(str(reject.share)) > 1:
                    raise ValueError(f"it cannot select {select} and reject {reject} of the same pairs")
            elif isinstance(select, float) and isinstance(reject, float) and reject > select:
                raise ValueError(f"it rejects at or below {reject:g}, but selects at or above {select:g}")
        return self


class LabelModelSettings(Settings):
    """Snorkel's label model, with EcoDatum's settings."""

    epochs: int = Field(200, ge=1, le=1_000_000)
    lr: float = Field(0.01, gt=0)
    l2: float = Field(0.001, ge=0)
    seed: int = Field(123, ge=0, lt=2**32)

    def make(self) -> LabelModel:
        """Return the model, not yet fitted."""
        return LabelModel(self.epochs, self.lr, self.l2, self.seed)


class EnsembleSettings(Settings):
    """Labeling functions, and how their votes become one number."""

    functions: dict[Name, FunctionSettings] = Field(
        description="The labeling functions, by name. A function whose column is missing is an error."
    )
    by_modality: bool = Field(True, description="Take shares of the pool within each modality.")
    alike: Annotated[float, Field(gt=0.5, le=1)] = Field(
        ALIKE,
        description="Leave out a function that casts the same vote on at least this share of the pairs, because "
        "it says nothing.",
    )
    inverted: Literal["leave out", "keep"] = Field(
        "leave out",
        description="What to do with a function that the model believes to vote the wrong way round. A note says "
        "so in either case.",
    )
    label_model: LabelModelSettings = LabelModelSettings()


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

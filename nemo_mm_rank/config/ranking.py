"""What is asked for, how scores are put together, and how the blend is picked."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from nemo_mm_rank.config.base import OFF, Settings, listed, plain
from nemo_mm_rank.config.models import ConditionSpec
from nemo_mm_rank.config.pools import PoolSource
from nemo_mm_rank.errors import nearest
from nemo_mm_rank.mix import canonical_type, mix_of
from nemo_mm_rank.modality import known_class, names


def _like(value: Any) -> Any:
    values = {"path": str(value)} if isinstance(value, (str, Path)) else value
    if isinstance(values, dict) and "://" not in (path := str(values.get("path", "://"))):
        values = {**values, "path": str(Path(path).expanduser().absolute())}  # a run is ranked again from anywhere
    return values


def _norm(value: Any) -> Any:
    return {"2": 2, math.inf: "inf", ".inf": "inf"}.get(value, value) if isinstance(value, (str, float)) else value


class Query(Settings):
    """One objective, in plain words or by examples; a negative weight says what not to pick."""

    text: str | None = Field(None, min_length=1, description="What is asked for, in plain words.")
    like: Annotated[PoolSource | None, BeforeValidator(_like)] = Field(
        None,
        description="Examples of what is asked for: a pool of pairs, media files (or a folder of them), or texts "
        "(a .txt file, one text on each line).",
    )
    norm: Annotated[Literal[2, "inf"], BeforeValidator(_norm)] = Field(
        2,
        description="How the cosines with several examples are combined: 2 (close to many of them) or inf (close "
        "to one of them).",
    )
    side: Literal["data", "annotation", "both"] = Field(
        "both", description="The side of the pairs that is compared with the same side of the examples."
    )
    weight: float = Field(
        1.0,
        description="Weight beside the other queries; a query with a weight below 0 says what should not be picked.",
    )

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not any(
            unicodedata.category(letter)[0] in "LN" or unicodedata.category(letter) == "So" for letter in text
        ):
            raise ValueError(f"a query needs words, and {text!r} contains neither a letter nor a digit")
        return text

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.text is None) == (self.like is None):
            raise ValueError("a query needs either a text or the path of examples (like), and not both")
        if self.like is None and (self.norm != 2 or self.side != "both"):
            raise ValueError("norm and side apply only to queries by examples (like)")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        values = {name: value for name, value in values.items() if name not in self._others}
        if self.like is not None and self.like.model_fields_set <= {"path"}:
            values["like"] = self.like.path
        return values

    @property
    def _others(self) -> tuple[str, ...]:
        return ("text",) if self.text is None else ("like", "norm", "side")

    @property
    def label(self) -> str:
        """What a person reads for it."""
        if self.like is None:
            return str(self.text)
        return f"like {self.like.name or self.like.path.rstrip('/').rpartition('/')[2]}"


Wanted: TypeAlias = str | Path | Query | Mapping[str, Any]
"""One objective: words, or whatever else `Query` can be made of."""


def objectives(
    query: Wanted | Sequence[Wanted] | None = None,
    like: str | Path | Sequence[str | Path] | None = None,
    unlike: str | Path | Sequence[str | Path] | None = None,
    avoid: str | Sequence[str] | None = None,
) -> list[Any] | None:
    """Return what ``queries`` is to be, from options; None where none is given.

    Args:
        query: what is asked for, in plain words.
        like: paths of examples; ``path=2`` gives them a weight.
        unlike: paths of examples of what not to pick, likewise.
        avoid: what not to pick, in plain words.

    >>> objectives("dogs", like="good.jsonl=2")
    ['dogs', {'like': 'good.jsonl', 'weight': 2.0}]
    """

    def by(paths: Any, sign: float) -> list[Any]:
        found = []
        for path in [] if paths is None else listed(paths):
            name, _, weight = str(path).rpartition("=")
            if name and re.fullmatch(r"\d+(\.\d+)?", weight) and not Path(str(path)).exists():
                found.append({"like": name, "weight": sign * float(weight)})
            else:
                found.append({"like": str(path), "weight": sign})
        return found

    query, like, unlike = plain(query), plain(like), plain(unlike)  # Hydra's lists are none of Python's
    wanted = [] if query is None else listed(query)
    avoided = [{"text": text, "weight": -1.0} for text in ([] if avoid is None else listed(avoid))]
    return [*wanted, *avoided, *by(like, 1.0), *by(unlike, -1.0)] or None


class GivenScore(Settings):
    """A score from elsewhere: a column of a Parquet file that has a ``pair_id``. A plain path is one, too."""

    path: str = Field(description="The Parquet file with the scores.")
    column: str | None = Field(None, description="The column of the file. Default: the name that the score has here.")


def _given(value: Any) -> Any:
    named = value if isinstance(value, dict) else {}
    return {name: {"path": str(one)} if isinstance(one, (str, Path)) else one for name, one in named.items()} or value


class BroadSettings(Settings):
    """What counts for an objective that much of the pool fits, which the skewness of its scores shows."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 2.0, "annotation": 0.5},
        description="Weights of the standardised scores, as in ranking.weights.",
    )
    feedback: int = Field(
        20,
        ge=0,
        description="Number of best pairs that show what a query means in each space, at most one pair in twenty;"
        " 0 turns this off.",
    )
    feedback_weight: float = Field(
        1.0, ge=0, description="Weight of the closeness to those pairs; the closeness to the query has weight 1."
    )
    skewness: tuple[float, float] = Field(
        (0.9, 1.05),
        description="Skewness of the scores: an objective counts as broad up to the first value, as narrow from "
        "the second, and as partly broad in between.",
    )

    @model_validator(mode="after")
    def _rising(self) -> BroadSettings:
        if self.skewness[0] >= self.skewness[1]:
            raise ValueError("skewness: the first value must be below the second")
        return self


def _broad(value: Any) -> Any:
    return None if value in (False, "off") else value


def _kind_of_condition(value: Any) -> str:
    return "class" if isinstance(value, (dict, ConditionSpec)) else "strength"


Strength = Annotated[
    Annotated[Annotated[float, Field(ge=0)], Tag("strength")] | Annotated[ConditionSpec, Tag("class")],
    Discriminator(_kind_of_condition),
]
"""How much a condition counts that is there, or one of the user's own with its strength."""


class SelectSettings(Settings):
    """How the blend is chosen from the best candidates; with ``top`` the other settings have no effect."""

    how: Literal["top", "clusters", "soft-cap", "balanced", "diverse", "coverage"] = Field(
        "top", description="How the blend is chosen. A plain name in place of this section does the same."
    )
    over: float = Field(
        3,
        ge=1,
        description="Number of candidates, as a multiple of the budget: the blend is chosen from so many best pairs. "
        "The smaller, the purer the blend; the larger, the more varied.",
    )
    clusters: int | None = Field(
        None,
        ge=2,
        description="clusters and soft-cap: number of clusters of the fused embeddings. Default: the square root "
        "of the number of candidates.",
    )
    temperature: float = Field(
        0.1,
        gt=0,
        description="clusters: temperature of exp(nearness / (temperature x density)); soft-cap: temperature of "
        "the scores.",
    )
    penalty: float = Field(1.0, ge=0, description="soft-cap: how much each draw lowers the logits of its cluster.")
    entries: str | None = Field(
        None,
        description="balanced: a file of words and phrases, one on each line. Default: the words of the annotations.",
    )
    tail: float = Field(
        0.125,
        ge=0,
        le=1,
        description="coverage: share of the budget for pairs whose annotations add the most new words; the rest is the "
        "top.",
    )
    seed: int = Field(0, ge=0, description="Seed of the clusters and of the draws.")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"how": value} if isinstance(value, str) else value

    @field_validator("entries")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())


GROUPINGS = ("modality", "pool", "type")
"""What pairs are grouped by; a file says any other grouping."""


class RankingSettings(Settings):
    """How scores are combined, and how the blend is picked."""

    weights: dict[str, float] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 1.0, "annotation": 8.0},
        description="Weights of the standardised scores: fused, experts (or the name of one expert), annotation, "
        "and scores of yours.",
    )
    broad: Annotated[BroadSettings | None, BeforeValidator(_broad)] = Field(
        default_factory=BroadSettings,
        description="What counts for objectives that much of the pool fits. off: only the weights, which is also "
        "the case where you give weights of your own.",
    )
    conditions: dict[str, Strength] = Field(
        default_factory=lambda: dict[str, float | ConditionSpec](match=3.0),
        description="What else must hold of a pair, and how much it counts: match (the annotation belongs to the "
        "data), scores in [0, 1], or a `class` of yours with its `strength` and arguments. The number"
        " is the weight of the logarithm in standard deviations of the topic score; 0 turns a "
        "condition off.",
    )
    scores: Annotated[dict[str, GivenScore], BeforeValidator(_given)] = Field(
        default_factory=dict, description="Scores of yours: a name, and a Parquet file with a score for each pair_id."
    )
    spread: float = Field(
        1.0,
        ge=0,
        le=8,
        description="Power with which a score counts for how widely it spreads the pool; 0: all count alike.",
    )
    combine: Literal["mean", "max"] = Field(
        "mean", description="How several positive queries are combined: by their mean, or by the best of them."
    )
    calibration: Annotated[Literal["off", "matched", "zscore", "quantile"] | None, OFF] = Field(
        None,
        description="Calibration by modality: of the fused cosines to the scale of their annotations' cosines "
        "(matched), or of the final score (zscore, quantile). Default: off, but matched where MAMCL "
        "is the only contrastive term.",
    )
    mix: str | dict[str, float] | None = Field(
        None, description="Quotas by type of pair: the name of a published mix, or shares by type, such as image->text."
    )
    quota_by: str | None = Field(
        None,
        description="What quotas are given for: modality, pool, type, or a Parquet file that names a `group` for each "
        "`pair_id` (such as the clusters that nemo-mm-rank mix writes).",
    )
    quotas: dict[str, float] = Field(
        default_factory=dict, description="Share of the budget for each group; the shares sum to at most 1."
    )
    shortage: Literal["fill", "leave", "fail"] = Field(
        "fill", description="What happens where a group has too few pairs for its quota."
    )
    select: SelectSettings = Field(
        default_factory=SelectSettings,
        description="How the blend is chosen: the top of the ranking, or a more varied choice from several times "
        "the budget.",
    )
    collapse_duplicates: bool = Field(
        False, description="Keep only the best of several pairs whose fused embeddings are nearly equal."
    )
    duplicate_similarity: float = Field(
        0.95, gt=0, le=1, description="Cosine from which two fused embeddings count as nearly equal."
    )

    @field_validator("quota_by")
    @classmethod
    def _groups(cls, by: str | None) -> str | None:
        if by is None or by in GROUPINGS:
            return by
        if not by.endswith(".parquet"):
            raise ValueError(
                f"groups are by {', '.join(GROUPINGS)} or by a Parquet file, not by {by!r}{nearest(by, GROUPINGS)}"
            )
        return str(Path(by).expanduser().absolute())

    @model_validator(mode="before")
    @classmethod
    def _own_weights(cls, value: Any) -> Any:
        if isinstance(value, dict) and "weights" in value and "broad" not in value:
            return {**value, "broad": None}
        return value

    @model_serializer(mode="wrap")
    def _with_broad(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without `broad` beside them, weights would be read back as `_own_weights` reads them.
        values: dict[str, Any] = dump(self)
        if "weights" in values and self.broad is not None:
            values.setdefault("broad", {})
        return values

    @model_validator(mode="after")
    def _quotas_fit(self) -> RankingSettings:
        if bool(self.quota_by) != bool(self.quotas):
            raise ValueError("quota_by names the groups and quotas their shares: give both or neither")
        if self.quotas and self.mix is not None:
            raise ValueError("mix: a mix sets the quotas itself, by type; give either mix or quotas")
        shares = self.quotas if self.mix is None else dict(mix_of(self.mix).shares)
        if any(not 0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"quotas: shares must be between 0 and 1, not {shares}")
        if sum(Fraction(str(share)) for share in shares.values()) > 1:
            raise ValueError(f"quotas: the shares {shares} sum to more than 1")
        for name in self.quotas if self.quota_by == "modality" else ():
            if not known_class(name):
                raise ValueError(f"quotas: there is no modality {name!r}{nearest(name, names())}")
        for name in self.quotas if self.quota_by == "type" else ():
            if name != canonical_type(name):
                raise ValueError(f"quotas: write {name!r} as {canonical_type(name)!r}")
        return self

    @property
    def strengths(self) -> dict[str, float]:
        """How much each condition counts."""
        return {k: v.strength if isinstance(v, ConditionSpec) else v for k, v in self.conditions.items()}

    @property
    def computed(self) -> dict[str, ConditionSpec]:
        """The conditions of the user's own that count."""
        return {k: v for k, v in self.conditions.items() if isinstance(v, ConditionSpec) and v.strength}

    def by_type(self) -> RankingSettings:
        """Return these settings with the mix, where there is one, written as quotas by type."""
        if self.mix is None:
            return self
        shares = dict(mix_of(self.mix).shares)
        return self.model_copy(update={"mix": None, "quota_by": "type", "quotas": shares})


def as_share(value: Any) -> Any:
    """Return a share that is written in per cent as a number; anything else as it is."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(Fraction(match[1]) / 100)
    return value


class Budget(Settings):
    """How much the blend holds: a count, a share of the ranked pairs, or a least score."""

    count: int | None = Field(None, ge=1, description="Number of pairs.")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Share of the ranked pairs.")
    threshold: float | None = Field(None, description="Least score of a chosen pair.")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"count": value}
        if isinstance(value, str):
            if isinstance(share := as_share(value), float):
                return {"fraction": share}
            if re.fullmatch(r"\s*\d[\d_,]*\s*", value):
                return {"count": int(re.sub(r"[\s_,]", "", value))}
            raise ValueError(f"a budget must be a number of pairs or a share such as 20%, not {value!r}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(part is not None for part in (self.count, self.fraction, self.threshold)) != 1:
            raise ValueError("a budget must have exactly one of count, fraction and threshold")
        return self

    def pairs(self, ranked: int) -> int:
        """Return the number of pairs it allows out of ``ranked`` (a share is rounded down, but never to none).

        >>> Budget(fraction=0.29).pairs(100)
        29
        """
        if self.count is not None:
            return min(self.count, ranked)
        if self.fraction is not None:
            # As the decimal number it was written as: 29 % of 100 is 29, which floats make 28.999...
            return min(ranked, max(1, int(ranked * Fraction(str(self.fraction)))))
        return ranked

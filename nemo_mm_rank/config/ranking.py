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
from nemo_mm_rank.mix import canonical_type, find_mix
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

    text: str | None = Field(None, min_length=1, description="what is asked for, in plain words")
    like: Annotated[PoolSource | None, BeforeValidator(_like)] = Field(
        None, description="examples: a pool of pairs, media files (a folder of them), or texts (.txt, one a line)"
    )
    norm: Annotated[Literal[2, "inf"], BeforeValidator(_norm)] = Field(
        2, description="of the cosines with the examples: 2 (close to many) or inf (close to one)"
    )
    side: Literal["data", "annotation", "both"] = Field("both", description="of pairs, compared with the same side")
    weight: float = Field(1.0, description="beside other queries; below 0: not to be picked")

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not any(
            unicodedata.category(letter)[0] in "LN" or unicodedata.category(letter) == "So" for letter in text
        ):
            raise ValueError(f"a query is made of words, and {text!r} holds neither letter nor digit")
        return text

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.text is None) == (self.like is None):
            raise ValueError("a query has either a text or, as like, a path of examples")
        if self.like is None and (self.norm != 2 or self.side != "both"):
            raise ValueError("norm and side are for queries by examples (like)")
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
    """A score from elsewhere: a column of a Parquet file that has a ``pair_id``. A plain path stands for one, too."""

    path: str = Field(description="a Parquet file")
    column: str | None = Field(None, description="default: the name that the score is given here")


def _given(value: Any) -> Any:
    named = value if isinstance(value, dict) else {}
    return {name: {"path": str(one)} if isinstance(one, (str, Path)) else one for name, one in named.items()} or value


class BroadSettings(Settings):
    """What counts for an objective that asks for much of the pool, as the skewness of its scores tells."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 2.0, "annotation": 0.5},
        description="of the standardised scores, as in ranking.weights",
    )
    feedback: int = Field(
        20, ge=0, description="best pairs, of twenty at most one, that say what a query means in each space; 0: none"
    )
    feedback_weight: float = Field(1.0, ge=0, description="of closeness to those pairs; closeness to the query has 1")
    skewness: tuple[float, float] = Field(
        (0.9, 1.05), description="up to the first an objective is broad, from the second on narrow, between them both"
    )

    @model_validator(mode="after")
    def _rising(self) -> BroadSettings:
        if self.skewness[0] >= self.skewness[1]:
            raise ValueError("skewness: the first value is below the second")
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
    """What is chosen of the best candidates; by ``top`` the best of them alone, and the rest does not matter."""

    how: Literal["top", "clusters", "soft-cap", "balanced", "diverse"] = Field(
        "top", description="the way to choose; a plain name in place of the section does as well"
    )
    over: int = Field(3, ge=1, description="candidates, in budgets: of so many times the budget the best are looked at")
    clusters: int | None = Field(
        None, ge=2, description="of fused embeddings (clusters, soft-cap); default: the root of the candidates' number"
    )
    temperature: float = Field(
        0.1, gt=0, description="clusters: of exp(nearness / (temperature x density)); soft-cap: of the scores"
    )
    penalty: float = Field(1.0, ge=0, description="soft-cap: what every draw lowers its cluster's logits by")
    entries: str | None = Field(
        None, description="balanced: a file of words and phrases, one a line; default: the words of the annotations"
    )
    seed: int = Field(0, ge=0, description="of clusters and draws")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"how": value} if isinstance(value, str) else value

    @field_validator("entries")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())


class RankingSettings(Settings):
    """How scores are put together, and how the blend is picked."""

    weights: dict[str, float] = Field(
        default_factory=lambda: {"fused": 0.5, "experts": 1.0, "annotation": 8.0},
        description="of the standardised scores: fused, experts (or one expert's name), annotation, scores of yours",
    )
    broad: Annotated[BroadSettings | None, BeforeValidator(_broad)] = Field(
        default_factory=BroadSettings,
        description="what counts for objectives that ask for much of the pool; off: the weights alone, as where you "
        "give weights of your own",
    )
    conditions: dict[str, Strength] = Field(
        default_factory=lambda: dict[str, float | ConditionSpec](match=3.0),
        description="what must hold besides: match (the annotation is the data's own), scores in [0, 1], or a `class` "
        "of yours with its `strength` and arguments; how much the logarithm counts, in standard deviations of the "
        "topic; 0: nothing",
    )
    scores: Annotated[dict[str, GivenScore], BeforeValidator(_given)] = Field(
        default_factory=dict, description="name -> Parquet file with a score for each pair_id, used by that name"
    )
    spread: float = Field(1.0, ge=0, le=8, description="power by which scores count for spreading the pool; 0: alike")
    combine: Literal["mean", "max"] = Field("mean", description="several positive queries: mean, or the best of them")
    calibration: Annotated[Literal["off", "matched", "zscore", "quantile"] | None, OFF] = Field(
        None,
        description="per modality: fused cosines on their annotations' scale (matched), or the final score (zscore, "
        "quantile); default: off, but matched where MAMCL is the only contrastive term",
    )
    mix: str | dict[str, float] | None = Field(
        None, description="a published mix by name, or shares by type, like image->text: quotas in other words"
    )
    quota_by: Literal["modality", "pool", "type"] | None = Field(None, description="what the groups of quotas are")
    quotas: dict[str, float] = Field(default_factory=dict, description="shares of the budget; sum at most 1")
    shortage: Literal["fill", "leave", "fail"] = Field("fill", description="what a group that is too small leads to")
    select: SelectSettings = Field(
        default_factory=SelectSettings, description="the top, or of several times the budget what has more to say"
    )
    collapse_duplicates: bool = Field(False, description="keep the best of pairs whose fused embeddings are near equal")
    duplicate_similarity: float = Field(0.95, gt=0, le=1, description="cosine from which two are near equal")

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
            raise ValueError("quota_by says by what, quotas the shares: give both or neither")
        if self.quotas and self.mix is not None:
            raise ValueError("mix: a mix is quotas by type; give one of the two")
        shares = self.quotas if self.mix is None else dict(find_mix(self.mix).shares)
        if any(not 0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"quotas: shares are between 0 and 1, not {shares}")
        if sum(Fraction(str(share)) for share in shares.values()) > 1:
            raise ValueError(f"quotas: the shares {shares} sum to more than 1")
        for name in self.quotas if self.quota_by == "modality" else ():
            if not known_class(name):
                raise ValueError(f"quotas: no modality {name!r}{nearest(name, names())}")
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
        shares = dict(find_mix(self.mix).shares)
        return self.model_copy(update={"mix": None, "quota_by": "type", "quotas": shares})


def as_share(value: Any) -> Any:
    """Return a share that is written in per cent as a number; anything else as it is."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return float(Fraction(match[1]) / 100)
    return value


class Budget(Settings):
    """How much the blend holds: a count, a share of the ranked pairs, or a least score."""

    count: int | None = Field(None, ge=1, description="a number of pairs")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="a share of the ranked pairs")
    threshold: float | None = Field(None, description="a least score")

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
            raise ValueError(f"a budget is a number of pairs or a share like 20%, not {value!r}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(part is not None for part in (self.count, self.fraction, self.threshold)) != 1:
            raise ValueError("a budget is exactly one of count, fraction and threshold")
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

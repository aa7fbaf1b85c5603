"""What a benchmark compares, and how: the main job's configuration and some more."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.benchmark.downstream.settings import DownstreamSettings, SmallSettings
from nemo_mm_rank.benchmark.planting import PlantSettings
from nemo_mm_rank.config import Config, Pools, Settings
from nemo_mm_rank.quality.operators.settings import BatchSettings
from nemo_mm_rank.quality.text_filters import TraditionalSettings
from nemo_mm_rank.run.ecodatum import EcoDatumSettings


class Strategy(StrEnum):
    """A way to choose a blend."""

    RANKED = "ranked"
    FORWARD = "ranked-forward"
    BACKWARD = "ranked-backward"
    BIDIRECTIONAL = "ranked-bidirectional"
    QUALITY = "ranked-quality"
    CLUSTERS = "ranked-clusters"
    SOFT_CAP = "ranked-soft-cap"
    BALANCED = "ranked-balanced"
    DIVERSE = "ranked-diverse"
    COVERAGE = "ranked-coverage"
    RANDOM = "random"
    STRATIFIED = "stratified"
    TRADITIONAL = "traditional"
    EXPERT = "best-expert"
    ECODATUM = "ecodatum"
    CLIP_SCORE = "clip-score"
    NEGCLIPLOSS = "negcliploss"
    DATACOMP = "datacomp-basic"

    @property
    def sns(self) -> Literal["off", "forward", "backward", "bidirectional"]:
        """What the pairs are that it chooses from: whole, or trimmed."""
        return _MODES.get(self, "off")

    @property
    def ours(self) -> bool:
        """Whether it ranks as this project does; the others are what it is compared with."""
        return self in (Strategy.RANKED, Strategy.QUALITY) or self in _MODES or self.select is not None

    @property
    def select(self) -> str | None:
        """What it chooses of the best candidates; None for what the settings say."""
        several = (Strategy.CLUSTERS, Strategy.SOFT_CAP, Strategy.BALANCED, Strategy.DIVERSE, Strategy.COVERAGE)
        return self.removeprefix("ranked-") if self in several else None

    @property
    def embeds(self) -> bool:
        """Whether it has spaces of its own; those of the others that are ours are those of ranked."""
        return self == Strategy.RANKED or self in _MODES


_MODES: dict[Strategy, Literal["forward", "backward", "bidirectional"]] = {
    Strategy.FORWARD: "forward",
    Strategy.BACKWARD: "backward",
    Strategy.BIDIRECTIONAL: "bidirectional",
}


class Relevance(Settings):
    """Which pairs of the pool are on topic, by a column that says so: by its values, or by a pattern in its text."""

    column: str
    values: tuple[str | bool | int | float, ...] = ()
    pattern: str | None = Field(
        None,
        description="Regular expression (RE2) that is searched for anywhere in the text; upper and lower case are"
        " the same.",
    )

    @model_validator(mode="after")
    def _one(self) -> Relevance:
        if bool(self.values) == bool(self.pattern):
            raise ValueError("give either values or a pattern")
        if self.pattern is not None:
            try:
                pc.match_substring_regex(pa.array([""]), self.pattern)
            except pa.ArrowInvalid as error:
                raise ValueError(f"pattern: {error}") from error
        return self


class ValidationSettings(Settings):
    """The pairs that a trained model is judged by: the user's own, or drawn from the pool's pairs on topic."""

    pools: Pools = ()
    pairs: int = Field(
        100,
        ge=1,
        description="Number of pairs to draw from the pool where no validation pools are given; they leave the pool.",
    )


class StratifiedSettings(Settings):
    """Random sampling by group."""

    by: Literal["modality", "pool", "cluster"] = "modality"
    clusters: int = Field(
        20, ge=2, description="Number of k-means clusters of the annotations' embeddings by the anchor."
    )
    shares: Literal["proportional", "equal"] = Field("equal", description="Shares of the groups in the blend.")


def _seeds(value: Any) -> Any:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class BenchmarkConfig(Config):
    """A whole benchmark. ``sns.mode`` is what the strategies say, ``seed`` that of the pool and the validation set."""

    pools: Pools = ()
    output: str = "nemo-mm-rank-benchmark"
    demo: int | None = Field(
        None,
        ge=5,
        description="Number of pairs of each modality in the built-in pool, which is used in place of pools.",
    )
    strategies: tuple[Strategy, ...] = Field(tuple(Strategy), min_length=1)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds)] = Field(
        (0, 1, 2, 3, 4), min_length=1, description="The seeds, or how many of them, counted from 0."
    )
    relevant: Relevance | None = None
    plant: PlantSettings | None = Field(None, description="Noise whose truth is known. none: the pool stays as it is.")
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    stratified: StratifiedSettings = Field(default_factory=StratifiedSettings)
    traditional: TraditionalSettings = Field(default_factory=TraditionalSettings)
    ecodatum: EcoDatumSettings = Field(default_factory=EcoDatumSettings)
    negcliploss: BatchSettings = Field(default_factory=BatchSettings)
    downstream: DownstreamSettings = Field(default_factory=SmallSettings)
    cold: bool = Field(
        True,
        description="Start each strategy without loaded models, so that its cost is its own. If false, a strategy"
        " uses the models that are already loaded.",
    )
    bootstrap: int = Field(1000, ge=100, description="Number of bootstrap samples for the intervals of the geometry.")

    @model_validator(mode="after")
    def _compares(self) -> BenchmarkConfig:
        if bool(self.pools) == (self.demo is not None):
            raise ValueError("give either pools or demo, the size of the built-in pool")
        for name in ("strategies", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: each may be named only once")
        if self.budget.threshold is not None:
            raise ValueError(
                "budget: scores of different strategies cannot be compared, so a least score is not "
                "possible; give a count or a share"
            )
        return self

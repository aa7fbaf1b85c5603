"""What every job is told, and a whole run."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.config.base import Importing, Settings, listed
from nemo_mm_rank.config.models import (
    CLASSICAL_EXPERTS,
    CLASSICAL_MODELS,
    ConditionSpec,
    ExpertSpec,
    ModelSpec,
    ProjectionSettings,
    SNSSettings,
)
from nemo_mm_rank.config.pools import MEDIA_NO_MATTER, MediaSettings, Pools
from nemo_mm_rank.config.ranking import Budget, Query, RankingSettings, as_share
from nemo_mm_rank.errors import nearest


class EngineSettings(Settings):
    """Where the work is done; never changes what comes out."""

    workers: int = Field(0, ge=0, description="Dask worker processes; 0 is this process")
    scheduler_address: str | None = Field(None, description="of a Dask cluster that runs already")
    gpus: bool = Field(False, description="one worker per GPU, cuDF partitions")
    device: str | None = Field(None, description="cpu, cuda ...; default: cuda where there is one")


def _queries(value: Any) -> Any:
    return [{"text": item} if isinstance(item, str) else item for item in listed(value)]


class JobSettings(Importing):
    """What every job is told of how its pairs are read and worked on, and of what to do about those that fail."""

    kind: ClassVar[str]
    """Of job, one of `io.owned.KINDS`."""
    libraries: ClassVar[tuple[str, ...]]
    """Those whose version can change what comes out."""

    on_bad_row: Literal["fail", "quarantine"] = Field("quarantine", description="what a row that is no pair leads to")
    rows_per_shard: int = Field(1024, ge=1, description="rows that are worked on at once")
    shards: int | None = Field(None, ge=1, description="this many shards instead; needs a count of the rows first")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="where the work is done")
    allow_failures: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] = Field(
        0.95, description="a step that fails for this share of a modality (20 pairs at least) stops; 100%: none does"
    )
    retry_failed: bool = Field(
        False, description="try all failed pairs of an earlier start again, not only those whose failure may pass"
    )

    def recorded(self) -> dict[str, Any]:
        """Return the settings that can change what comes out, JSON-able: not where and how the work is done."""
        where = ("engine", "output", "import_from", "shards", "rows_per_shard", "allow_failures", "retry_failed")
        exclude: dict[str, Any] = {**dict.fromkeys(where, True), "media": MEDIA_NO_MATTER, "projection": {"threads"}}
        return self.model_dump(mode="json", by_alias=True, exclude=exclude)


class Config(JobSettings):
    """A whole run. Only ``pools`` and ``queries`` have no default; the default models need no download."""

    kind = "run"
    libraries = ("av", "numpy", "pillow", "pyarrow", "torch")

    pools: Annotated[Pools, Field(min_length=1, description="what is ranked; a plain path is a pool")]
    queries: Annotated[
        tuple[Query, ...],
        BeforeValidator(_queries),
        Field(min_length=1, description="what is asked for; a plain text is a query"),
    ]
    budget: Budget = Field(
        default_factory=lambda: Budget(fraction=0.2), description="of the blend: a number like 500, or a share like 20%"
    )
    output: str = Field("nemo-mm-rank-run", description="the run's folder: new, empty, or a run of the same pools")
    seed: int = Field(0, ge=0, description="of everything random")
    jsonl: bool = Field(False, description="write blend.jsonl beside blend.parquet")
    media: MediaSettings = Field(default_factory=MediaSettings, description="how media are opened, and their bounds")
    models: dict[str, ModelSpec] = Field(
        default_factory=lambda: dict(CLASSICAL_MODELS), description="what is loaded, by names of your choice"
    )
    experts: tuple[ExpertSpec, ...] = Field(
        default_factory=lambda: CLASSICAL_EXPERTS, description="how models together embed data"
    )
    anchor: str = Field("text", description="the model that embeds annotations and queries")
    sns: SNSSettings = Field(default_factory=SNSSettings, description="how pairs are trimmed")
    projection: ProjectionSettings = Field(default_factory=ProjectionSettings, description="how experts are fused")
    ranking: RankingSettings = Field(
        default_factory=RankingSettings, description="how pairs are scored and the blend is picked"
    )

    @property
    def ranked_by(self) -> RankingSettings:
        """The ranking's settings with what follows from others: calibration after MAMCL alone, a mix as quotas.

        MAMCL leaves it open how far modalities lie apart, so fused cosines are then put on the scale of their
        annotations' within each; a calibration that is set, ``off`` as well, stands.
        """
        ranking = self.ranking.by_type()
        default = "matched" if self.projection.only_mamcl else "off"
        return ranking.model_copy(update={"calibration": ranking.calibration or default})

    @property
    def sns_expert(self) -> ExpertSpec:
        """The expert in whose space SNS judges what belongs together."""
        named = [expert for expert in self.experts if expert.name == self.sns.expert]
        shared = [expert for expert in self.experts if expert.kind != "fusion"]
        return (named or shared)[0]

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        def known(model: str, where: str) -> None:
            if model not in self.models:
                raise ValueError(f"{where}: no model {model!r}{nearest(model, self.models)}")

        known(self.anchor, "anchor")
        names = [expert.name for expert in self.experts]
        if not names:
            raise ValueError("experts: at least one is needed")
        if len(set(names)) < len(names):
            raise ValueError(f"experts: names must differ, not {names}")
        for expert in self.experts:
            for model in sorted(expert.models):
                known(model, f"expert {expert.name!r}")
        if self.sns.expert is not None and self.sns.expert not in names:
            raise ValueError(f"sns.expert: no expert {self.sns.expert!r}{nearest(self.sns.expert, names)}")
        for model in self.sns.grounders.values():
            known(model, "sns.grounders")
        if self.sns.mode != "off" and self.sns.expert is None and all(e.kind == "fusion" for e in self.experts):
            raise ValueError(
                "sns: trimming needs an expert that shares a space with text, and a fusion expert has none"
            )
        own, given, broad = ("fused", "experts", "annotation", "match"), self.ranking.scores, self.ranking.broad
        for name in names:
            if name in own:
                raise ValueError(f"experts: {name!r} is the name of a score of ours; give the expert another")
        computed = [k for k, v in self.ranking.conditions.items() if isinstance(v, ConditionSpec)]
        for where, mine, others in (("scores", given, ()), ("conditions", computed, given)):
            for name in mine:
                taken = name in (*own, *names, *others)
                if taken or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or "__" in name:
                    raise ValueError(f"ranking.{where}: {name!r} is taken or no name; letters, digits, - and single _")
        scores = (*own[:3], *names, *given)
        for where, weights in (("weights", self.ranking.weights), ("broad.weights", broad.weights if broad else {})):
            for score in weights:
                if score not in scores:
                    raise ValueError(f"ranking.{where}: no score {score!r}{nearest(score, scores)}")
        conditions = ("match", *given, *computed)
        for name in self.ranking.conditions:
            if name not in conditions:
                raise ValueError(f"ranking.conditions: no condition {name!r}{nearest(name, conditions)}")
        if all(query.weight <= 0 for query in self.queries):
            raise ValueError("queries: at least one needs a positive weight")
        return self

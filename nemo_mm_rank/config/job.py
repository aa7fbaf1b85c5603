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
    """Where the work is done, which never changes the result."""

    workers: int = Field(0, ge=0, description="Number of Dask worker processes; 0: everything runs in this process.")
    scheduler_address: str | None = Field(None, description="Address of a Dask cluster that is already running.")
    gpus: bool = Field(False, description="Start one worker for each GPU, with cuDF partitions.")
    device: str | None = Field(
        None, description="Device of the models, such as cpu or cuda. Default: cuda where there is a GPU."
    )


def _queries(value: Any) -> Any:
    return [{"text": item} if isinstance(item, str) else item for item in listed(value)]


class JobSettings(Importing):
    """How pairs are read and worked on, and what happens with those that fail."""

    kind: ClassVar[str]
    """Of job, one of `io.owned.KINDS`."""
    libraries: ClassVar[tuple[str, ...]]
    """Those whose version can change what comes out."""

    on_bad_row: Literal["fail", "quarantine"] = Field(
        "quarantine",
        description="What happens with a row that is not a valid pair: it is quarantined, or the job fails.",
    )
    rows_per_shard: int = Field(1024, ge=1, description="Number of rows in a shard. A shard is worked on at once.")
    shards: int | None = Field(
        None, ge=1, description="Number of shards, in place of rows_per_shard; the rows have to be counted first."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="Where the work is done.")
    allow_failures: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] = Field(
        0.95,
        description="Share of a modality's pairs (of at least 20) for which a step may fail before the job stops."
        " 100%: the job never stops for failures.",
    )
    retry_failed: bool = Field(
        False,
        description="Try all failed pairs of an earlier start again, not only those whose failure may be temporary.",
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

    pools: Annotated[Pools, Field(min_length=1, description="The pools to rank. A plain path is a pool, too.")]
    queries: Annotated[
        tuple[Query, ...],
        BeforeValidator(_queries),
        Field(min_length=1, description="The objective: what is asked for. A plain text is a query, too."),
    ]
    budget: Budget = Field(
        default_factory=lambda: Budget(fraction=0.2),
        description="Size of the blend: a number such as 500, or a share such as 20%.",
    )
    output: str = Field(
        "nemo-mm-rank-run", description="Folder of the run: a new or empty folder, or an earlier run of the same pools."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    jsonl: bool = Field(False, description="Write blend.jsonl beside blend.parquet.")
    media: MediaSettings = Field(
        default_factory=MediaSettings, description="How media are opened, and the limits for them."
    )
    models: dict[str, ModelSpec] = Field(
        default_factory=lambda: dict(CLASSICAL_MODELS), description="The models to load, under names of your choice."
    )
    experts: tuple[ExpertSpec, ...] = Field(
        default_factory=lambda: CLASSICAL_EXPERTS, description="The experts: which models embed the data together."
    )
    anchor: str = Field("text", description="Name of the model that embeds annotations and queries.")
    sns: SNSSettings = Field(default_factory=SNSSettings, description="How pairs are trimmed.")
    projection: ProjectionSettings = Field(
        default_factory=ProjectionSettings, description="How the embeddings of the experts are fused."
    )
    ranking: RankingSettings = Field(
        default_factory=RankingSettings, description="How pairs are scored and how the blend is picked."
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
                raise ValueError(f"{where}: there is no model {model!r}{nearest(model, self.models)}")

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
            raise ValueError(f"sns.expert: there is no expert {self.sns.expert!r}{nearest(self.sns.expert, names)}")
        for model in self.sns.grounders.values():
            known(model, "sns.grounders")
        if self.sns.mode != "off" and self.sns.expert is None and all(e.kind == "fusion" for e in self.experts):
            raise ValueError(
                "sns: trimming needs an expert that shares a space with text, and a fusion expert has none"
            )
        own, given, broad = ("fused", "experts", "annotation", "match"), self.ranking.scores, self.ranking.broad
        for name in names:
            if name in own:
                raise ValueError(
                    f"experts: {name!r} is the name of a built-in score; choose another name for the expert"
                )
        computed = [k for k, v in self.ranking.conditions.items() if isinstance(v, ConditionSpec)]
        for where, mine, others in (("scores", given, ()), ("conditions", computed, given)):
            for name in mine:
                taken = name in (*own, *names, *others)
                if taken or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or "__" in name:
                    raise ValueError(
                        f"ranking.{where}: {name!r} cannot be used as a name: it is taken, or it has characters other "
                        "than letters, digits, - and single _"
                    )
        scores = (*own[:3], *names, *given)
        for where, weights in (("weights", self.ranking.weights), ("broad.weights", broad.weights if broad else {})):
            for score in weights:
                if score not in scores:
                    raise ValueError(f"ranking.{where}: there is no score {score!r}{nearest(score, scores)}")
        conditions = ("match", *given, *computed)
        for name in self.ranking.conditions:
            if name not in conditions:
                raise ValueError(f"ranking.conditions: there is no condition {name!r}{nearest(name, conditions)}")
        if all(query.weight <= 0 for query in self.queries):
            raise ValueError("queries: at least one needs a positive weight")
        return self

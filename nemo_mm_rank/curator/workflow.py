"""The whole main job as a Curator workflow, in the same run folder as the command line's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_curator.backends.base import BaseExecutor
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline.workflow import WorkflowBase, WorkflowRunResult
from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.api import settings
from nemo_mm_rank.config import Config, Wanted, objectives
from nemo_mm_rank.curator.engine import CuratorEngine
from nemo_mm_rank.curator.stages import (
    ALLOWED,
    ExpertEmbeddingStage,
    MatchStage,
    ProjectionStage,
    RankScoreStage,
    SNSStage,
)
from nemo_mm_rank.curator.writers import QuarantineStage
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.run import curation
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.run.trust import Trust


@dataclass
class MultimodalRankWorkflow(WorkflowBase):
    """From pools to a ranked blend: pipelines over the run's shards, with Parquet between them.

    1. read the pool; 2. pipeline: SNS, experts; 3. fit the projection; 4. pipeline: project, score; 5. merge the
    shards' best into the blend. Folder, fingerprints and resume are those of ``nemo-mm-rank curate``: a run begun by
    either can be finished by the other, and the blend is the same to the byte.

    Args:
        pool: one or several manifests.
        query: the objective in plain words; several are averaged.
        budget: a number of pairs, or a share like ``"20%"``.
        like: examples of what is wanted, as for `nemo_mm_rank.curate`; they are embedded in this process.
        unlike: examples of what is not.
        config: everything else, as for `nemo_mm_rank.curate`.
        output: the run's folder, on a file system that all nodes see.
        import_from: folders with model classes of your own, on a file system that all nodes see.
        resources: step (``sns``, ``experts``, ``projection``, ``rank``) -> what one of its workers needs.
        overwrite: replace a run of other pools in that folder.
    """

    pool: str | Path | Sequence[str | Path] | None = None
    query: Wanted | Sequence[Wanted] | None = None
    budget: int | str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    output: str | Path | None = None
    import_from: str | Path | Sequence[str | Path] | None = None
    resources: Mapping[str, Resources] = field(default_factory=dict)
    name: str = "multimodal_rank"
    overwrite: bool = False
    like: str | Path | Sequence[str | Path] | None = None
    unlike: str | Path | Sequence[str | Path] | None = None

    def __post_init__(self) -> None:
        """Check the settings before anything runs.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        wanted = objectives(self.query, self.like, self.unlike)
        given = {"pools": self.pool, "queries": wanted, "budget": self.budget, "output": self.output}
        given |= {"import_from": self.import_from}
        self.settings = settings(self.config, given)

    def run(self, executor: BaseExecutor | None = None) -> WorkflowRunResult:
        """Run the job, taking up what an earlier run in the same folder has finished.

        Args:
            executor: any of Curator's; default: ``RayActorPoolExecutor``, the one that small machines can run too.

        Returns:
            The pipelines' tasks, and as metadata ``run``, ``blend``, ``quarantine`` (paths) and ``manifest``.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        device = "cuda" if self.settings.engine.gpus else self.settings.engine.device
        engine = CuratorEngine(executor or RayActorPoolExecutor(), device, self.resources)
        result = curation.curate(self.settings, engine=engine, overwrite=self.overwrite)
        outcome = WorkflowRunResult(self.name)
        for pipeline, tasks in engine.finished.items():
            outcome.add_pipeline_tasks(pipeline, tasks)
        outcome.extend_metadata(
            {
                "run": str(result.folder),
                "blend": str(result.folder / "blend.parquet"),
                "quarantine": str(result.folder / "quarantine.parquet"),
                "manifest": result.manifest,
            }
        )
        return outcome


@dataclass(kw_only=True, repr=False)
class MultimodalRankStage(CompositeStage[DocumentBatch, DocumentBatch]):
    """Trims, embeds, projects and scores pairs, and takes out those that fail.

    Stands for ``sns`` (unless off), ``experts``, ``projection``, ``match`` (where there is a run), ``rank``
    and ``quarantine``; by these names ``with_`` changes one of them:
    ``stage.with_({"experts": {"resources": Resources(gpus=1)}})``.

    Give either ``run``, and pairs are treated as that run treated its own, ``score`` included; or ``config`` and
    ``projection``, for cosines alone. A run's models know the statistics of its pool, which a configuration says
    nothing of, so ``run`` is the way to what a run's projection was fitted on.

    Args:
        run: the folder of a finished run, on a file system that all nodes see.
        import_from: folders whose classes the run may name as its models.
        trust_run: load whatever classes the run names, and ask whatever addresses; a folder may be anybody's.
        config: a `Config`, a mapping, or the path of a YAML file; its pools do not matter here.
        projection: the folder of a fitted projection.
        given: experts whose embeddings of data are there already: see `ExpertEmbeddingStage`.
        quarantine: the folder for pairs that fail; default: they stay, with the reason in ``error``.
        allow_failures: see `StepStage`.
        resources: of one worker of the stages that have models (``sns``, ``experts`` and ``match``).
    """

    run: str | Path | None = None
    import_from: str | Path | Sequence[str | Path] = ()
    trust_run: bool = False
    config: Config | Mapping[str, Any] | str | Path | None = None
    projection: str | Path | None = None
    given: Sequence[str] = ()
    quarantine: str | Path | None = None
    allow_failures: float | str = ALLOWED
    resources: Resources = field(default_factory=Resources)
    name: str = "multimodal_rank"

    def __post_init__(self) -> None:
        """Check everything and make the stages; no model is loaded.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        super().__init__()
        if (self.run is None) == (self.config is None) or (self.config is None) != (self.projection is None):
            raise ConfigError("give either the run, or both config and projection")
        if self.run is not None:
            finished = FinishedRun.load(self.run, Trust.of(self.import_from, self.trust_run))
            config, models = finished.config, finished.models
            projection, scoring, matcher = finished.projection, finished.scoring, finished.matcher
            examples = finished.examples
        else:
            config = settings(self.config, {"pools": "-"})
            models, scoring, matcher, examples = config.models, None, None, ()
            projection = Path(str(self.projection))
        experts, media, anchor = config.experts, config.media, config.anchor
        allowed: dict[str, Any] = {"allow_failures": self.allow_failures}
        spaces: dict[str, Any] = {"experts": experts, "models": models, "anchor": anchor, **allowed}
        work: dict[str, Any] = {"media": media, "resources": self.resources}
        self._stages: list[ProcessingStage[Any, Any]] = []
        if config.sns.mode != "off":
            self._stages.append(SNSStage(sns=config.sns, experts=experts, models=models, **work, **allowed))
        self._stages.append(ExpertEmbeddingStage(given=self.given, **spaces, **work))
        self._stages.append(ProjectionStage(projection=projection, anchor=anchor, **allowed))
        if matcher is not None:
            self._stages.append(MatchStage(matcher=matcher, models=models, **work, **allowed))
        ranking: dict[str, Any] = {"ranking": config.ranking, "scoring": scoring, "examples": examples}
        self._stages.append(RankScoreStage(queries=config.queries, **ranking, **spaces))
        if self.quarantine is not None:
            self._stages.append(QuarantineStage(self.quarantine))

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stages."""
        return list(self._stages)

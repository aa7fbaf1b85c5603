"""The whole main job as a Curator workflow, in the same run folder as the command line's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_curator.backends.base import BaseExecutor
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline.workflow import WorkflowBase, WorkflowRunResult
from nemo_curator.stages.resources import Resources

from nemo_mm_rank.api import settings
from nemo_mm_rank.config import Config
from nemo_mm_rank.curator.engine import CuratorEngine
from nemo_mm_rank.run import curation


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
        config: everything else, as for `nemo_mm_rank.curate`.
        output: the run's folder, on a file system that all nodes see.
        import_from: folders with model classes of your own, on a file system that all nodes see.
        resources: step (``sns``, ``experts``, ``projection``, ``rank``) -> what one of its workers needs.
        overwrite: replace a run of other pools in that folder.
    """

    pool: str | Path | Sequence[str | Path] | None = None
    query: str | Sequence[str] | None = None
    budget: int | str | None = None
    config: Config | Mapping[str, Any] | str | Path | None = None
    output: str | Path | None = None
    import_from: str | Path | Sequence[str | Path] | None = None
    resources: Mapping[str, Resources] = field(default_factory=dict)
    name: str = "multimodal_rank"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check the settings before anything runs.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        given = {"pools": self.pool, "queries": self.query, "budget": self.budget, "output": self.output}
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

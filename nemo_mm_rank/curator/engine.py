"""Shards as Curator tasks: the run's own steps as a Curator pipeline, on any of Curator's executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from loguru import logger
from nemo_curator.backends.base import BaseExecutor, WorkerMetadata
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import Task

from nemo_mm_rank.engine import Guarded
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.run.store import Chain

T = TypeVar("T")

ATTEMPTS = 3
"""Times that a pipeline is started where workers die under it; finished shards are not done again."""


@dataclass
class ShardTask(Task[int]):
    """One shard of a run, by its number: the rows stay in the run's folder.

    Attributes:
        outcome: what the last stage made of it, or the user's mistake that stopped it.
    """

    outcome: Any = None

    @property
    def num_items(self) -> int:
        """Rows that the last stage went through, where it counted them."""
        return self.outcome if isinstance(self.outcome, int) else 1

    def get_deterministic_id(self) -> str:
        """The shard's number."""
        return str(self.data)

    def validate(self) -> bool:
        """A number is a number."""
        return True


@dataclass(repr=False)
class ShardStage(ProcessingStage[ShardTask, ShardTask]):
    """Takes shards through one step of a run; what it makes goes to the run's folder.

    Args:
        task: what is done to a shard; a `run.store.Stage`, say.
        resources: of one worker.
    """

    task: Callable[[int], Any]
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Bear the step's name."""
        self.name = str(getattr(self.task, "name", "task"))

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Nothing to do: the first shard loads the models. That there is a setup makes the worker one that stays."""

    def process(self, task: ShardTask) -> ShardTask:
        """Do one shard, unless a stage before could not."""
        outcome = task.outcome
        if not isinstance(outcome, UserError):
            outcome = Guarded(self.task)(task.data)
        return ShardTask(task.dataset_name, task.data, task._stage_perf, task._metadata, outcome)


class CuratorEngine:
    """Runs tasks as Curator pipelines: a stage for every step, so that one shard is trimmed while another is embedded.

    The run's folder must be one that all nodes see. Every pipeline starts and stops Ray unless a cluster is there.

    Args:
        executor: one of Curator's.
        device: where models run; None: CUDA where the worker has one.
        resources: step -> what one of its workers needs; default: one CPU, and a GPU where ``device`` is one.
    """

    backend = "pandas"

    def __init__(
        self, executor: BaseExecutor, device: str | None = None, resources: Mapping[str, Resources] | None = None
    ) -> None:
        self.device = device
        self.finished: dict[str, list[Task[Any]]] = {}
        """Pipeline -> the tasks it returned, with what Curator measured of every stage."""
        self._executor = executor
        self._resources = dict(resources or {})

    def map(self, task: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Yield results once the pipeline is through: Curator's executors hand nothing over before.

        Raises:
            UserError: a task's own; or workers die again and again.
        """
        if not parts:
            return
        steps = task.stages if isinstance(task, Chain) else (task,)
        name = str(getattr(task, "name", "task"))
        done = self._run(name, [ShardStage(step, self._needs(step)) for step in steps], parts)
        self.finished[name] = done
        for shard in done:
            if isinstance(shard.outcome, UserError):
                raise shard.outcome
            yield shard.data, shard.outcome

    def _needs(self, step: object) -> Resources:
        default = Resources(cpus=1.0, gpus=1.0 if (self.device or "").startswith("cuda") else 0.0)
        return self._resources.get(str(getattr(step, "name", "")), default)

    def _run(self, name: str, stages: Sequence[ProcessingStage[Any, Any]], parts: Sequence[int]) -> list[Any]:
        for attempt in range(1, ATTEMPTS + 1):
            tasks = [ShardTask("shards", part) for part in parts]
            try:
                return list(Pipeline(name=name, stages=list(stages)).run(self._executor, tasks) or [])
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                logger.warning(f"{name}: attempt {attempt} of {ATTEMPTS}: {error}")
                lost = error
        raise UserError(
            f"{name}: Ray workers died in {ATTEMPTS} attempts; memory may be too small for the models, so try fewer "
            "workers or more and smaller shards"
        ) from lost

    def close(self) -> None:
        """Nothing was started that is still there."""

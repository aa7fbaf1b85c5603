"""Training on the blends: a task for every strategy and seed, each kept in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nemo_mm_rank.benchmark.blends import Blend
from nemo_mm_rank.benchmark.downstream import features, train
from nemo_mm_rank.benchmark.downstream.perplexity import Perplexity
from nemo_mm_rank.benchmark.downstream.rows import Rows
from nemo_mm_rank.benchmark.downstream.settings import OffSettings, TrainedSettings
from nemo_mm_rank.config import Config
from nemo_mm_rank.engine import Engine, SerialEngine
from nemo_mm_rank.errors import DamagedError, UserError
from nemo_mm_rank.io.files import read_sealed, write_sealed
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, digest

VALIDATION = "validation"


@dataclass(frozen=True)
class Task:
    """One training run.

    Attributes:
        strategy, seed: whose blend.
        part: in which variant its pairs are learnt: the pool's, or one that is trimmed.
        blend_key: of the blend's file.
        key: of the result.
    """

    strategy: str
    seed: int
    part: str
    blend_key: str
    key: str


@dataclass(frozen=True)
class Training:
    """Trains on the blend of one job by its number; on any worker.

    Attributes:
        parts: the pool, its trimmed variants, and last the validation pairs.
        settings: which model.
        config: of the ranking.
        folder: of the benchmark.
        device: where models run.
        jobs: what is to be done.
    """

    parts: dict[str, ShardStore]
    settings: TrainedSettings
    config: Config
    folder: Path
    device: str
    jobs: tuple[Task, ...] = ()
    name: ClassVar[str] = "train"

    def file(self, job: Task) -> Path:
        """Return where the result of a job is kept."""
        return self.folder / "downstream" / f"{job.strategy}-{job.seed}.json"

    def result(self, job: Task) -> Perplexity | None:
        """Return what an earlier run has left of a job, or None."""
        try:
            values: dict[str, Any] = read_sealed(self.file(job))
        except DamagedError:
            return None
        return Perplexity.of(values) if values.pop("key") == job.key else None

    def __call__(self, number: int) -> int:
        """Do one job."""
        job = self.jobs[number]
        blend = Blend.load(self.folder / "blends", job.strategy, job.seed, job.blend_key)
        if blend is None:
            raise UserError(
                f"{self.folder}: the blend of {job.strategy} with seed {job.seed} was changed while the "
                "benchmark was running; start the benchmark again"
            )
        corpus = self.corpus(SerialEngine(self.device))
        perplexity = train(
            corpus,
            corpus.annotations,
            corpus.rows(job.part, blend.pair_ids),
            corpus.rows(VALIDATION),
            self.settings,
            job.seed,
        )
        write_sealed(self.file(job), {"key": job.key, **asdict(perplexity)})
        return number

    def corpus(self, engine: Engine) -> Rows:
        """Return what is learnt from, made once and kept in this process."""
        key = digest([self.keys(), self.settings.model_dump(mode="json"), str(self.folder)])
        if key not in _held:
            _held.clear()
            _held[key] = features(self.parts, self.settings, self.config, self.folder / "features", engine)
        return _held[key]

    def keys(self) -> dict[str, list[str]]:
        """Return the fingerprints of all parts' shards."""
        return {name: [shards.key(part) for part in range(shards.count)] for name, shards in self.parts.items()}


_held: dict[str, Rows] = {}


def train_all(
    blends: Sequence[tuple[Blend, str, str]],
    parts: dict[str, ShardStore],
    settings: TrainedSettings | OffSettings,
    config: Config,
    folder: Path,
    engine: Engine,
    reporter: Reporter,
) -> dict[tuple[str, int], Perplexity]:
    """Train on every blend that has not been trained on, and return (strategy, seed) -> what came of it.

    Args:
        blends: each with the key of its file and the part that its pairs are learnt from.
        parts: the pool first, the validation pairs as `VALIDATION`.
        settings: which model.
        config: of the ranking.
        folder: of the benchmark.
        engine: where the work is done.
        reporter: what a person sees.
    """
    if isinstance(settings, OffSettings):
        return {}
    task = Training(parts, settings, config, folder, loader.pick_device(engine.device))
    keys = task.keys()
    jobs = []
    for blend, blend_key, part in blends:
        inputs = [blend.digest, next(iter(keys.values())), keys[part], keys[VALIDATION]]
        key = digest([*inputs, settings.model_dump(mode="json"), config.media.identity()])
        jobs.append(Task(blend.strategy, blend.seed, part, blend_key, key))
    task = replace(task, jobs=tuple(jobs))
    todo = [number for number, job in enumerate(jobs) if task.result(job) is None]
    if todo:
        with reporter.step("features", 1) as advance:
            task.corpus(engine)
            advance(1)
    with reporter.step("train", len(jobs), len(jobs) - len(todo)) as advance:
        for _ in engine.map(task, todo):
            advance(1)
    results = {(job.strategy, job.seed): task.result(job) for job in jobs}
    return {place: result for place, result in results.items() if result is not None}

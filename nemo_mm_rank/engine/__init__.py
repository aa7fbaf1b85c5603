"""Where shards are worked on. An engine maps a task over shard numbers and says which one is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nemo_mm_rank.config import EngineSettings
from nemo_mm_rank.errors import UserError

T = TypeVar("T")


class Engine(Protocol):
    """Maps tasks over shards; never changes what comes out of them.

    Anything that has these attributes and methods can be given to `nemo_mm_rank.curate` and `nemo_mm_rank.rank`, which
    leave it open. `SerialEngine` is all of one. Where an engine has several processes, tasks and results are pickled,
    and the run's folder must be one that all of them see; a task that is done twice does no harm. `Guarded` takes a
    user's mistakes home from a worker. Four shards at a time, on threads of this process:

    >>> from concurrent.futures import ThreadPoolExecutor, as_completed
    >>> class Threads:
    ...     backend, device = "pandas", None
    ...
    ...     def map(self, task, parts):
    ...         with ThreadPoolExecutor(4) as pool:
    ...             shards = {pool.submit(task, part): part for part in parts}
    ...             for done in as_completed(shards):
    ...                 yield shards[done], done.result()
    ...
    ...     def close(self):
    ...         pass
    >>> sorted(Threads().map(lambda part: part * part, range(4)))
    [(0, 0), (1, 1), (2, 4), (3, 9)]

    Attributes:
        backend: ``pandas`` or ``cudf``, the frames that tasks are to work on.
        device: where models run; None leaves it to the worker.
    """

    backend: str
    device: str | None

    def map(self, task: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Yield ``(part, result)`` as shards finish, in any order; the first error of a task is raised."""
        ...

    def close(self) -> None:
        """Let go of what the engine started itself."""
        ...


class SerialEngine:
    """One shard after the other, in this process."""

    backend = "pandas"

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    def map(self, task: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Yield results in the order of ``parts``."""
        for part in parts:
            yield part, task(part)

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Guarded(Generic[T]):
    """A task whose user's mistakes come back as results.

    Raised on a worker they would be logged there with all that the worker has, or wrapped beyond recognition.
    """

    task: Callable[[int], T]

    def __call__(self, part: int) -> T | UserError:
        """Do one shard."""
        try:
            return self.task(part)
        except UserError as error:
            return error


def make_engine(settings: EngineSettings) -> Engine:
    """Return the engine that the settings ask for; Dask is imported only where it is."""
    if settings.workers or settings.scheduler_address or settings.gpus:
        from nemo_mm_rank.engine.dask import DaskEngine

        return DaskEngine.from_settings(settings)
    return SerialEngine(settings.device)


@contextmanager
def using(engine: Engine | None, settings: EngineSettings) -> Iterator[Engine]:
    """Hold the caller's engine, which is left open, or else the one that the settings ask for."""
    if engine is not None:
        yield engine
        return
    made = make_engine(settings)
    try:
        yield made
    finally:
        made.close()

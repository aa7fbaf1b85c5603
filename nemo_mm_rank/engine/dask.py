"""Shards as Dask futures, on a cluster of our own, one at an address, or the user's client."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from uuid import uuid4

from nemo_mm_rank.config import EngineSettings
from nemo_mm_rank.engine import Guarded
from nemo_mm_rank.errors import UserError, require

T = TypeVar("T")

_SAFE_PATH = "PYTHONSAFEPATH"

_OURS = {
    # Pages about tasks, logs and memory, for whoever is on this machine: nobody looks at them here.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # A worker is started by `python -c`, which would import from the current folder: a pool's, perhaps.
    f"distributed.nanny.pre-spawn-environ.{_SAFE_PATH}": "1",
}


@contextmanager
def _safe_path() -> Iterator[None]:
    """See that what multiprocessing starts beside the workers does not import from the current folder either."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


class _ScriptRunsOnce:
    """Keeps workers from running the user's script again, as multiprocessing has new processes do.

    Without ``if __name__ == "__main__":`` a script that is run again would start workers of its own, and so on. What
    workers need of the script's own classes comes pickled by value.
    """

    def __init__(self) -> None:
        self._main = sys.modules["__main__"]
        self._known: dict[str, Any] = {
            name: vars(self._main)[name] for name in ("__file__", "__spec__") if name in vars(self._main)
        }
        vars(self._main).pop("__file__", None)
        self._main.__spec__ = None

    def close(self) -> None:
        """Put things back."""
        vars(self._main).update(self._known)


_TASKS, _SHARDS = 256, 16
"""From so many shards on a task is given more than one, and so many at most: the scheduler has a cost for each task."""


def _several(task: Guarded[T], parts: Sequence[int]) -> list[T | UserError]:
    """Do some shards, up to the first that fails by a user's mistake."""
    results: list[T | UserError] = []
    for part in parts:
        results.append(task(part))
        if isinstance(results[-1], UserError):
            break
    return results


class DaskEngine:
    """Runs tasks on a Dask cluster.

    Args:
        client: a ``distributed.Client``.
        backend: ``pandas`` or ``cudf``.
        device: where models run; None: CUDA where the worker has one.
        owned: what to close at the end, last first (the user's own client is not ours to close).
    """

    def __init__(
        self, client: Any, backend: str = "pandas", device: str | None = None, owned: Sequence[Any] = ()
    ) -> None:
        self.client = client
        self.backend = backend
        self.device = device
        self._owned = list(owned)

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> DaskEngine:
        """Start or join the cluster that the settings describe.

        Raises:
            UserError: Dask (or Dask-CUDA) is missing, or the scheduler does not answer.
        """
        distributed, dask = require("distributed", "dask"), require("dask", "dask")
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a scheduler that is gone is said by `map`
        if settings.scheduler_address:
            try:
                client = distributed.Client(settings.scheduler_address, timeout=20)
            except (OSError, ValueError) as error:
                raise UserError(f"no Dask scheduler answers at {settings.scheduler_address}: {error}") from error
            return cls(client, "cudf" if settings.gpus else "pandas", settings.device, [client])
        # Whoever reaches a scheduler can have it run code, so ours knows its own workers and client by a certificate
        # that is made for it and kept in memory only.
        require("cryptography", "dask")
        private: dict[str, Any] = {
            "host": "127.0.0.1",
            "security": distributed.Security.temporary(),
            "dashboard_address": "127.0.0.1:0",  # a port of its own: the usual one may be another cluster's
            "scheduler_kwargs": {"dashboard": False},
        }
        local_cuda = require("dask_cuda", "gpu").LocalCUDACluster if settings.gpus else None
        script = _ScriptRunsOnce()
        with dask.config.set(_OURS), _safe_path():
            if local_cuda is not None:
                cluster = local_cuda(**private)
            else:
                threads = str(max(1, (os.cpu_count() or 1) // settings.workers))
                cluster = distributed.LocalCluster(
                    n_workers=settings.workers,
                    threads_per_worker=1,
                    memory_limit=0,  # models are big and known; a worker restarted for its size would never end
                    silence_logs=logging.ERROR,  # what a cancelled task or a restarted worker says is no news here
                    env={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                    **private,
                )
        client = distributed.Client(cluster)
        if settings.gpus:
            return cls(client, "cudf", settings.device or "cuda", [script, cluster, client])
        return cls(client, "pandas", settings.device, [script, cluster, client])

    def map(self, task: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Yield results as shards finish; what is left is cancelled when the consumer stops or a task fails.

        Raises:
            UserError: a task's own; or workers die of a shard again and again, or the cluster is gone.
        """
        distributed = require("distributed", "dask")
        # The task goes with every future: it is small, and data scattered to a worker would be lost with it.
        # Shards of a lost worker are done again by the scheduler; files appear whole, so twice does no harm.
        name, run = getattr(task, "name", "task"), uuid4().hex  # what a dashboard shows, and what makes it unique
        guarded = Guarded(task)
        size = min(_SHARDS, 1 + len(parts) // _TASKS)
        futures = {}
        for several in (parts[start : start + size] for start in range(0, len(parts), size)):
            futures[self.client.submit(_several, guarded, several, key=f"{name}-{run}-{several[0]}")] = several
        try:
            for future in distributed.as_completed(list(futures)):
                several = futures.pop(future)
                try:
                    results = future.result()
                except distributed.KilledWorker as error:
                    shards = f"shard {several[0]}" if len(several) == 1 else f"shards {', '.join(map(str, several))}"
                    raise UserError(
                        f"{shards}: {error.allowed_failures + 1} workers died while they worked on it; "
                        "memory may be too small for the models, so try fewer workers or more and smaller shards"
                    ) from error
                except CancelledError as error:
                    raise UserError(
                        "the Dask cluster has stopped; start the same command again to continue from here"
                    ) from error
                for part, result in zip(several, results, strict=False):  # fewer, where one of them failed
                    if isinstance(result, UserError):
                        raise result
                    yield part, result
        finally:
            self.client.cancel([future for future in futures if not future.done()])

    def close(self) -> None:
        """Close the client and the cluster, where they are ours; one that was stopped halfway is past closing."""
        while self._owned:
            with suppress(Exception):
                self._owned.pop().close()

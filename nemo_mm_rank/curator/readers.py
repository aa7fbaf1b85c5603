"""Pools as Curator tasks: checked pairs in canonical columns, with their keys, captions and the user's own columns."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, EmptyTask, FileGroupTask

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.curator.stages import checked
from nemo_mm_rank.errors import ConfigError, PoolError
from nemo_mm_rank.io.bad_rows import Seen
from nemo_mm_rank.io.batches import with_bad_rows
from nemo_mm_rank.io.pool import Manifest, manifests, read_manifest
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.schema import CANONICAL, ERROR, MEDIA_ROOT

Pools = str | Path | PoolSource | Mapping[str, Any] | Sequence[str | Path | PoolSource | Mapping[str, Any]]


@dataclass(kw_only=True, repr=False)
class PoolReader(CompositeStage[EmptyTask, DocumentBatch]):
    """Reads pools of every kind that ``nemo-mm-rank curate`` reads; stands for ``pool_files`` and ``pool_reader``.

    Batches have the canonical columns, ``media_root``, the user's own columns, and ``error``: a row that cannot be a
    pair goes on with the reason there (``pool: BadRow: ... (file:line)``) and what is known of it, so that nothing is
    lost; `QuarantineStage` takes it out.

    Workers see only their own files: an id that is there twice is found within a partition, and a user's column has
    one type within a partition. ``nemo-mm-rank validate`` looks at whole pools.

    Args:
        pools: paths, or sources with field maps, as in a configuration.
        files_per_partition: manifests that one worker reads at a time, of the same pool.
        rows_per_batch: most rows of a batch; default: all of a partition.
        check_files: see that every local media file is there.
    """

    pools: Pools
    files_per_partition: int = 1
    rows_per_batch: int | None = 1024
    check_files: bool = True
    name: str = "pool"

    def __post_init__(self) -> None:
        """Check the settings; nothing is read.

        Raises:
            ConfigError: settings that cannot be meant.
        """
        super().__init__()
        for setting in ("files_per_partition", "rows_per_batch"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise ConfigError(f"{self.name}: {setting} must be at least 1, not {value}")
        self._sources = [_absolute(source) for source in checked(pools=self.pools).pools]

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stage that finds the files, and the one that reads them."""
        return [
            PoolFilesStage(pools=self._sources, files_per_partition=self.files_per_partition),
            PoolReaderStage(pools=self._sources, rows_per_batch=self.rows_per_batch, check_files=self.check_files),
        ]


def _absolute(source: PoolSource) -> PoolSource:
    """Return ``source`` with absolute paths: workers may stand elsewhere."""
    given = {"path": source.path, "root": source.root}
    local = {key: path for key, path in given.items() if path is not None and not is_url(path)}
    update: dict[str, Any] = {key: os.path.abspath(os.path.expanduser(path)) for key, path in local.items()}
    update["trusted_roots"] = [os.path.abspath(os.path.expanduser(path)) for path in source.trusted_roots]
    return source.model_copy(update=update)


@dataclass(kw_only=True, repr=False)
class PoolFilesStage(ProcessingStage[EmptyTask, FileGroupTask]):
    """Finds the manifests of pools and groups them for workers: see `PoolReader`."""

    pools: Sequence[PoolSource]
    files_per_partition: int = 1
    name: str = "pool_files"
    resources: Resources = field(default_factory=lambda: Resources(cpus=0.5))

    def num_workers(self) -> int | None:
        """There is one task."""
        return 1

    def process(self, task: EmptyTask) -> list[FileGroupTask]:
        """Return groups of manifests, in the order of the pools.

        Raises:
            PoolError: a pool without a manifest, or a manifest in two of them.
        """
        groups = [
            (place, found[start : start + self.files_per_partition])
            for place, source in enumerate(self.pools)
            for found in [manifests(source)]
            for start in range(0, len(found), self.files_per_partition)
        ]
        files = Counter(manifest.file for _, group in groups for manifest in group)
        for file, times in files.items():
            if times > 1:  # a writer would give its batches the same names
                raise PoolError(f"{file} is in two pools")
        return [_file_group(place, group, index, len(groups)) for index, (place, group) in enumerate(groups)]


def _file_group(place: int, group: Sequence[Manifest], index: int, of: int) -> FileGroupTask:
    files = [manifest.file for manifest in group]
    return FileGroupTask(
        dataset_name=group[0].pool,
        data=files,
        _metadata={"partition_index": index, "total_partitions": of, "source_files": files},
        reader_config={"pool": place, "manifests": list(group)},
    )


@dataclass(kw_only=True, repr=False)
class PoolReaderStage(ProcessingStage[FileGroupTask, DocumentBatch]):
    """Reads groups of manifests: see `PoolReader`."""

    pools: Sequence[PoolSource]
    rows_per_batch: int | None = None
    check_files: bool = True
    name: str = "pool_reader"
    resources: Resources = field(default_factory=Resources)

    def outputs(self) -> tuple[list[str], list[str]]:
        """The columns that every batch has."""
        return ["data"], [*CANONICAL, MEDIA_ROOT, ERROR]

    def process(self, task: FileGroupTask) -> list[DocumentBatch]:
        """Return the rows of the group's manifests in their order, batch by batch.

        Raises:
            PoolError: a manifest cannot be read, or a column's name is taken.
        """
        source, seen = self.pools[task.reader_config["pool"]], Seen()
        batches = [
            batch
            for manifest in task.reader_config["manifests"]
            for batch in read_manifest(manifest, source, seen, self.check_files, faults_as_rows=True)
        ]
        tables = with_bad_rows(batches)
        rows = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
        size = self.rows_per_batch or max(1, rows.num_rows)
        self._log_metrics({"rows": rows.num_rows, "bad": sum(len(batch.bad) for batch in batches)})
        return [
            DocumentBatch(
                dataset_name=task.dataset_name,
                data=rows.slice(start, size).combine_chunks(),
                _metadata=dict(task._metadata),
                _stage_perf=list(task._stage_perf),
            )
            for start in range(0, rows.num_rows, size)
        ]

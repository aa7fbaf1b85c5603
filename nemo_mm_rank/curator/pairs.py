"""Anybody's batches of documents as pairs: after `JsonlReader`, `ParquetReader`, `AudioToDocumentStage` and others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, Task

from nemo_mm_rank.config import PoolSource, parse
from nemo_mm_rank.curator.stages import require_type, with_rows
from nemo_mm_rank.io.batches import in_memory, pair_table
from nemo_mm_rank.io.pool import media_root
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.schema import CANONICAL, ERROR, MEDIA_ROOT, PAIR_ID


@dataclass(kw_only=True, repr=False)
class PairColumnsStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Makes pairs of any batch of documents, by the rules that the rows of a manifest follow.

    Batches come out as from `PoolReader`: canonical columns, ``media_root``, the batch's own columns, and ``error``. A
    row that cannot be a pair stays in its place, with the reason there (``pool: BadRow: ... (batch:row)``). Ids are
    unique within a batch. Bytes in a column are data, too: mapped to ``data`` or as ``data_bytes``.

    >>> stage = PairColumnsStage(fields={"annotation": "caption", "data": "words"}, modality="text", pool="mine")
    >>> given = pa.table({"caption": ["A gull."], "words": ["A bird over the sea."], "stars": [4]})
    >>> done = stage.process(DocumentBatch(dataset_name="any", data=given)).data
    >>> [done[name][0].as_py() for name in ("pool", "data", "annotation", "stars", "error")]
    ['mine', 'A bird over the sea.', 'A gull.', 4, None]

    Args:
        fields: our names -> the batch's own, as in a pool's field map.
        modality: of rows that do not say.
        pool: the name of the pool of rows that do not say; default: the batch's ``dataset_name``.
        id: the column with the pairs' ids, as ``fields["pair_id"]``; where there is none, ids are made from content.
        root: what media references are relative to; default: the folder of the files that the batch was read from, as
            far as Curator's readers say.
        trusted_roots: folders besides the root that references and links may lead to.
        rename: the batch's own columns -> the names to keep them under.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    modality: str | None = None
    pool: str | None = None
    id: str | None = None
    root: str | Path | None = None
    trusted_roots: Sequence[str | Path] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    name: str = "pair_columns"
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: an unknown field or modality.
        """
        fields = dict(self.fields) if self.id is None else {PAIR_ID: self.id, **self.fields}
        self._source = source(self.root, self.trusted_roots, fields=fields, modality=self.modality, rename=self.rename)

    def inputs(self) -> tuple[list[str], list[str]]:
        """Whatever columns there are: a row that lacks one says so."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """The columns that every batch has."""
        return ["data"], [*CANONICAL, MEDIA_ROOT, ERROR]

    def validate_input(self, task: Task[Any]) -> bool:
        """Check that the task is a batch of documents.

        Raises:
            ConfigError: it is none.
        """
        require_type(task, DocumentBatch, self.name)
        return True

    def process(self, task: DocumentBatch) -> DocumentBatch:
        """Return the rows of ``task`` as pairs, in their order.

        Raises:
            ConfigError: it is no batch of documents.
            PoolError: a column has a canonical name, while another is mapped to it.
        """
        self.validate_input(task)
        return with_rows(task, as_pairs(task, task.data, self._source, self.pool))


def source(root: str | Path | None = None, trusted_roots: Sequence[str | Path] = (), **settings: Any) -> PoolSource:
    """Return what a stage is told of its rows as a pool's configuration, with absolute folders for workers elsewhere.

    Raises:
        ConfigError: settings that cannot be meant.
    """
    where, *trusted = [None if one is None else _absolute(str(one)) for one in (root, *trusted_roots)]
    return parse(PoolSource, {"path": "-", "root": where, "trusted_roots": trusted, **settings})


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def as_pairs(task: Task[Any], data: Any, source: PoolSource, pool: str | None = None) -> pa.Table:
    """Return ``data``, rows that were made of ``task``, as pairs: see `io.batches.pair_table`."""
    files = task._metadata.get("source_files") or []
    folders = {str(file).rpartition("/")[0] if is_url(str(file)) else os.path.dirname(file) for file in files}
    root = source.root or (folders.pop() if len(folders) == 1 else None)
    below = None if root is None else media_root(root, source.trusted_roots)
    place = f"{task.dataset_name or 'batch'} {task.task_id}".strip()
    return pair_table(in_memory(data, place), source, pool or task.dataset_name or "batch", below)

"""Anybody's batches of documents as pairs: after `JsonlReader`, `ParquetReader`, `AudioToDocumentStage` and others."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, Task

from nemo_mm_rank.config import PoolSource, parse
from nemo_mm_rank.curator.stages import require_type, with_rows
from nemo_mm_rank.io.batches import in_memory, pair_table
from nemo_mm_rank.io.formats import ROWS
from nemo_mm_rank.io.pool import media_root
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.schema import CANONICAL, ERROR, MEDIA_ROOT, PAIR_ID, VECTOR, data_column


@dataclass(kw_only=True, repr=False)
class PairColumnsStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Makes pairs of any batch of documents, by the rules that the rows of a manifest follow.

    Rows may be written in any format that a manifest may: conversations, lists of captions (a pair for each), bytes in
    a column, mapped to ``data`` or as ``data_bytes``. Batches come out as from `PoolReader`: canonical columns,
    ``media_root``, the batch's own columns, and ``error``. A row that cannot be a pair stays in its place, with the
    reason there (``pool: BadRow: ... (batch:row)``). Ids are unique within a batch.

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
        options: what else a pool is told of its rows: ``format``, ``turns``, ``system``, ``captions``.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    modality: str | None = None
    pool: str | None = None
    id: str | None = None
    root: str | Path | None = None
    trusted_roots: Sequence[str | Path] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    name: str = "pair_columns"
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: an unknown field or modality.
        """
        fields = dict(self.fields) if self.id is None else {PAIR_ID: self.id, **self.fields}
        told = {"fields": fields, "modality": self.modality, "rename": self.rename, **self.options}
        self._source = source(self.root, self.trusted_roots, **told)

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


def as_pairs(
    task: Task[Any], data: Any, source: PoolSource, pool: str | None = None, faults: Mapping[int, Fault] | None = None
) -> pa.Table:
    """Return ``data``, rows that were made of ``task``, as pairs: see `io.batches.pair_table`.

    Args:
        task: says where the rows are from.
        data: a table, a dataframe, or columns by name.
        source: field map, modality, root.
        pool: of rows that do not say; default: the task's ``dataset_name``.
        faults: of rows of ours, those that are no pairs: the field at fault, what was expected, and what was found;
            None: the rows may be written in any format.
    """
    files = task._metadata.get("source_files") or []
    folders = {str(file).rpartition("/")[0] if is_url(str(file)) else os.path.dirname(file) for file in files}
    root = source.root or (folders.pop() if len(folders) == 1 else None)
    below = None if root is None else media_root(root, source.trusted_roots)
    place = f"{task.dataset_name or 'batch'} {task.task_id}".strip()
    known = None if faults is None else ROWS
    table = pair_table(in_memory(data, place), source, pool or task.dataset_name or "batch", below, known)
    if not faults:
        return table
    errors = table[ERROR].to_pylist()
    for row, (name, expected, found) in faults.items():
        errors[row] = f"pool: BadRow: {name}: expected {expected}, found {found} ({place}:{row + 1})"
    return table.set_column(table.column_names.index(ERROR), ERROR, pa.array(errors, pa.string()))


Fault = tuple[str, str, str]
"""The field, what was expected, and what was found."""


@dataclass
class Found:
    """What tasks hold, as rows.

    Attributes:
        columns: ``n`` values each, by our names or their own.
        faults: rows that are no pairs, whatever is in their columns.
        vectors: an embedding of each row's data that somebody has made; None where there is none.
    """

    columns: dict[str, Any]
    faults: dict[int, Fault] = field(default_factory=dict)
    vectors: Sequence[Any] | None = None
    added: dict[str, pa.Array] = field(default_factory=dict)


@dataclass(kw_only=True, repr=False)
class Bridge(ProcessingStage[Any, Any]):
    """What a stage needs that takes Curator's tasks of another kind for pairs.

    Args:
        pool: the pairs' pool; default: the task's ``dataset_name``.
        root: the folder that files are below; default: that of the files which the task was read from, as far as
            Curator's readers say. Content that the task carries needs none.
        trusted_roots: folders besides the root that references and links may lead to.
        embedding: the expert whose embeddings the task carries: they become its column, for stages with
            ``given=[embedding]``, so that its model need not look at the data again. Of a fusion expert
            ``expert__model``.
        name: in the pipeline.
        resources: of one worker.
        batch_size: tasks that a worker is given at a time.
    """

    kind: ClassVar[type[Task[Any]]]
    modality: ClassVar[str]

    pool: str | None = None
    root: str | Path | None = None
    trusted_roots: Sequence[str | Path] = ()
    embedding: str | None = None
    name: str = ""
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: settings that cannot be meant.
        """
        self._source = source(self.root, self.trusted_roots, modality=self.modality, fields=self._fields())

    def _fields(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def rows(self, tasks: Sequence[Any]) -> Found:
        """Return what ``tasks`` hold."""

    def inputs(self) -> tuple[list[str], list[str]]:
        """The task's data."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """The same."""
        return ["data"], []

    def validate_input(self, task: Task[Any]) -> bool:
        """Check that the task is of the kind that the stage takes.

        Raises:
            ConfigError: it is not.
        """
        require_type(task, self.kind, self.name)
        return True

    def pairs(self, tasks: Sequence[Any]) -> pa.Table:
        """Return what ``tasks`` hold as pairs, in their order: see `PairColumnsStage`.

        Raises:
            ConfigError: a task of another kind.
        """
        for task in tasks:
            self.validate_input(task)
        found = self.rows(tasks)
        added = dict(found.added)
        if self.embedding is not None:
            added[data_column(self.embedding)] = self._embeddings(found)
        table = as_pairs(tasks[0], found.columns, self._source, self.pool, found.faults)
        for name, column in added.items():
            table = table.append_column(name, column)
        return table

    def _embeddings(self, found: Found) -> pa.Array:
        """Return the rows' embeddings, L2-normalised; a row that has no usable one is at fault."""
        by, vectors = f"embedding by {self.embedding!r}", list[Any]()
        for row, given in enumerate(found.vectors or ()):
            try:
                vectors.append(_direction(given))
            except (TypeError, ValueError) as error:
                found.faults.setdefault(row, (by, "a vector", str(error)))
                vectors.append(None)
        sizes = Counter(len(vector) for vector in vectors if vector is not None)
        for row, vector in enumerate(vectors):
            if vector is not None and len(vector) != (usual := sizes.most_common(1)[0][0]):
                found.faults.setdefault(row, (by, f"a vector of {usual} numbers", f"one of {len(vector)}"))
        return pa.array([None if row in found.faults else vector for row, vector in enumerate(vectors)], VECTOR)


def _direction(given: Any) -> npt.NDArray[np.float32]:
    """Return a vector at length 1, ``(d,)``.

    Raises:
        ValueError: it is none.
        TypeError: likewise.
    """
    if given is None:
        raise ValueError("nothing")
    vector = np.asarray(given, dtype=np.float32)
    if vector.size != max(1, *vector.shape, 1):
        raise ValueError(f"numbers in shape {vector.shape}")
    length = float(np.linalg.norm(vector))
    if not length or not math.isfinite(length):
        raise ValueError("one without a direction")
    return vector.reshape(-1) / np.float32(length)


def plain_value(value: Any) -> Any:
    """Return what a column can hold of a value that a task carries, None where that is nothing.

    >>> plain_value(Path("a.wav")), plain_value(np.float32(0.5)), plain_value(object())
    ('a.wav', 0.5, None)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (os.PathLike, UUID)):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, list, dict)) and value != "" else None


@dataclass(kw_only=True, repr=False)
class PairsStage(Bridge):
    """A stage that makes a batch of documents of other tasks, with the columns of `PairColumnsStage`."""

    def outputs(self) -> tuple[list[str], list[str]]:
        """The columns that every batch has."""
        return ["data"], [*CANONICAL, MEDIA_ROOT, ERROR]

    def process(self, task: Task[Any]) -> DocumentBatch:
        """Return what ``task`` holds as pairs.

        Raises:
            ConfigError: a task of another kind.
        """
        return self._together([task])

    def _together(self, tasks: Sequence[Task[Any]]) -> DocumentBatch:
        first = tasks[0]
        same = all(task._metadata == first._metadata for task in tasks)
        files = dict.fromkeys(file for task in tasks for file in task._metadata.get("source_files") or ())
        return DocumentBatch(
            dataset_name=",".join(dict.fromkeys(task.dataset_name for task in tasks)),
            data=self.pairs(tasks),
            _metadata=dict(first._metadata) if same else {"source_files": [*files]},
            _stage_perf=[perf for task in tasks for perf in task._stage_perf],
        )


@dataclass(kw_only=True, repr=False)
class GatheredPairsStage(PairsStage):
    """The same of tasks that hold one item each: those of a call become one batch."""

    batch_size: int = 64

    def process_batch(self, tasks: list[Any]) -> list[DocumentBatch]:
        """Return ``tasks`` as one batch.

        Raises:
            ConfigError: a task of another kind.
        """
        return [self._together(tasks)] if tasks else []

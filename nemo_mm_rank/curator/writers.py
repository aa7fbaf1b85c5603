"""Writers for Curator pipelines: files that are there whole or not at all, equal bytes for equal rows.

Names and modes are those of Curator's own writers: one file a batch. Unlike with those, a pipeline that is killed
leaves no half a file.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.stages.text.io.writer.base import BaseWriter
from nemo_curator.tasks import DocumentBatch, Task
from nemo_curator.utils.hash_utils import get_deterministic_hash

from nemo_mm_rank.config import MediaSettings, parse
from nemo_mm_rank.curator.stages import require_columns, to_table, with_rows
from nemo_mm_rank.errors import ConfigError, StorageError
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.export import write_blend, write_tar
from nemo_mm_rank.io.files import write_atomically, write_table
from nemo_mm_rank.io.owned import Claim, Mark, clear, local, remove
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.run.outcome import quarantined
from nemo_mm_rank.schema import CANONICAL, ERROR, MODALITY, PAIR_ID, POOL, WHERE

_NAME = re.compile(r"(?!(19|20)\d{10}\.)([0-9a-f]{12}|[0-9a-f]{32})\.(parquet|jsonl|tar)")
"""How Curator names a batch's file: by 12 or 32 hexadecimal digits; what looks like a time is somebody's own."""


@dataclass(repr=False)
class _AtomicWriter(BaseWriter):
    """Writes tables to a local folder.

    Args:
        path: the folder, on a file system that all nodes see.
        fields: the columns to write; default: all.
        mode: ``ignore``, ``overwrite`` or ``error``, for a folder that is there. Overwriting removes what such a writer
            wrote, and nothing else; a folder that none has made is refused.
    """

    path: str

    def __post_init__(self) -> None:
        """Check the path, and make the folder.

        Raises:
            ConfigError: a URL.
            UserError: the folder is not ours to write.
        """
        if is_url(str(self.path)):
            raise ConfigError(
                f"{self.name}: the output must be a folder that all nodes can reach, not the URL {str(self.path)!r}"
            )
        self.path = str(local(self.path))  # workers may stand elsewhere
        folder = Claim("batches").check(self.path)
        mode: Literal["ignore", "overwrite", "append", "error"] = self.mode  # type: ignore[has-type]
        if str(mode).strip().lower() == "overwrite":  # by Curator's, all that is in the folder would go
            remove(folder, lambda file: _NAME.fullmatch(file.name) is not None)
            self.mode = "ignore"
        super().__post_init__()
        self.mode = mode
        clear(Claim("batches").make(folder))

    def write_data(self, task: DocumentBatch, file_path: str) -> None:
        """Write the rows of one batch."""
        self._write(to_table(task), Path(file_path))

    @abstractmethod
    def _write(self, table: pa.Table, file: Path) -> None: ...


@dataclass(repr=False)
class BlendWriter(_AtomicWriter):
    """Writes every batch as a run writes its blend: see `io.blend.write_blend`.

    Args:
        path: the folder, on a file system that all nodes see.
        file_extension: ``parquet`` or ``jsonl``.
        fields: the columns to write; default: all.
        mode: ``ignore``, ``overwrite`` or ``error``, for a folder that is there. Overwriting removes what such a writer
            wrote, and nothing else; a folder that none has made is refused.
    """

    path: str
    file_extension: str = "parquet"
    name: str = "blend_writer"

    def __post_init__(self) -> None:
        """Check path and extension.

        Raises:
            ConfigError: a URL, or another extension.
        """
        if self.file_extension not in ("parquet", "jsonl"):
            raise ConfigError(
                f"{self.name}: a blend can be written as parquet or jsonl, not as {self.file_extension!r}"
            )
        super().__post_init__()

    def _write(self, table: pa.Table, file: Path) -> None:
        write_blend(table if self.fields is None else table.select(self.fields), file)


@dataclass(repr=False)
class WebDatasetWriter(_AtomicWriter):
    """Writes every batch as one WebDataset tar, media included: see `io.export.fill_webdataset`.

    Media have to be readable, so `QuarantineStage` comes first. Embeddings would go into the JSON: say in ``fields``
    what is wanted besides the pair itself.

    Args:
        path: the folder, on a file system that all nodes see.
        fields: columns besides the canonical ones; default: all.
        media: which references may be opened, and how large.
        mode: ``ignore``, ``overwrite`` or ``error``, for a folder that is there. Overwriting removes what such a writer
            wrote, and nothing else; a folder that none has made is refused.
    """

    path: str
    file_extension: str = "tar"
    media: MediaSettings | Mapping[str, Any] = field(default_factory=MediaSettings)
    name: str = "webdataset_writer"

    def __post_init__(self) -> None:
        """Check path and settings.

        Raises:
            ConfigError: a URL, or settings that cannot be meant.
        """
        self.media = parse(MediaSettings, self.media)
        super().__post_init__()

    def inputs(self) -> tuple[list[str], list[str]]:
        """The canonical columns."""
        return ["data"], list(CANONICAL)

    def process(self, task: DocumentBatch) -> Any:
        """Write the rows of ``task``.

        Raises:
            MissingColumnError: naming the stage and the columns that are missing.
            UserError: media that cannot be read; naming the pair.
        """
        require_columns(task, CANONICAL, self.name)
        return super().process(task)

    def _write(self, table: pa.Table, file: Path) -> None:
        if self.fields is not None:
            wanted = dict.fromkeys([*CANONICAL, *WHERE, *self.fields])
            table = table.select([name for name in wanted if name in table.column_names or name in self.fields])
        media = parse(MediaSettings, self.media)

        write_atomically(file, lambda target: write_tar(table, target, media))


_CLAIM = Claim("quarantine")
_COLUMNS = (PAIR_ID, POOL, MODALITY, ERROR)


@dataclass(repr=False)
class QuarantineStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Takes the rows with an ``error`` out of every batch; what goes on is live.

    Each batch with such rows has a file of its own in ``path``, with the columns of a run's ``quarantine.parquet``.
    Its name follows from the batch, like those of Curator's writers, so that a pipeline that is run again replaces
    it, or removes it where nothing failed this time. Rows in = rows out + rows in the folder.

    A batch without a live row goes on empty, as from Curator's own filters: a writer then replaces what it wrote for
    the batch in an earlier run, which would otherwise stay beside the quarantine of the same pairs, and
    ``RayActorPoolExecutor``, which refuses to go on without any batch, has one.

    Args:
        path: the folder, on a file system that all nodes see.
    """

    path: str | Path
    name: str = "quarantine"
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ConfigError: it is a URL.
            UserError: the folder is not ours to write.
        """
        if is_url(str(self.path)):
            raise ConfigError(
                f"quarantine: the output must be a folder that all nodes can reach, not the URL {str(self.path)!r}"
            )
        self.path = _CLAIM.check(self.path)  # absolute: workers may stand elsewhere

    def inputs(self) -> tuple[list[str], list[str]]:
        """What tells a pair, and why it failed."""
        return ["data"], list(_COLUMNS)

    def outputs(self) -> tuple[list[str], list[str]]:
        """Nothing new."""
        return ["data"], []

    def validate_input(self, task: Task[Any]) -> bool:
        """Check that the batch has the columns.

        Raises:
            MissingColumnError: naming the stage and the columns that are missing.
        """
        require_columns(task, _COLUMNS, self.name)
        return True

    def process(self, task: DocumentBatch) -> DocumentBatch:
        """Return the live rows of ``task``; the others are in the folder when this returns.

        Raises:
            MissingColumnError: naming the stage and the columns that are missing.
            StorageError: the folder cannot be written to.
        """
        self.validate_input(task)
        table = to_table(task)
        failed = quarantined(table.select(_COLUMNS))
        file = Path(self.path) / f"{_stem(task, table)}.parquet"
        if failed.num_rows:
            _CLAIM.make(self.path)
            write_table(file, failed)
            table = table.filter(pc.is_null(table[ERROR]))
        elif Mark.read(Path(self.path)) is not None:
            _remove(file)
        self._log_metrics({"pairs": task.num_items, "kept": table.num_rows, "quarantined": failed.num_rows})
        return with_rows(task, table)


def _stem(task: DocumentBatch, table: pa.Table) -> str:
    """Return the name of a batch's file: from its source and place there, or else from its pairs' ids and errors.

    Curator gives random ids, with an ``r`` in front, where it cannot tell what a batch was made from, and none at all
    where a stage is called by hand.
    """
    source = task._metadata.get("source_files")
    if source and task.task_id and not task.task_id.startswith("r"):
        return str(get_deterministic_hash(list(source), task.task_id))
    names = zip(table[PAIR_ID].to_pylist(), table[ERROR].to_pylist(), strict=True)
    return str(get_deterministic_hash([str(name if name is not None else error) for name, error in names]))


def _remove(file: Path) -> None:
    try:
        mirror.unlink(file)
    except OSError as error:
        raise StorageError(f"{file}: cannot be removed: {error.strerror}") from error

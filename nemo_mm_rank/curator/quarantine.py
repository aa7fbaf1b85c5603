"""Pairs that failed leave the pipeline into a folder of Parquet files, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, Task
from nemo_curator.utils.hash_utils import get_deterministic_hash

from nemo_mm_rank.curator.batches import to_table, with_rows
from nemo_mm_rank.curator.stages import require_columns
from nemo_mm_rank.errors import ConfigError, StorageError
from nemo_mm_rank.io.owned import Claim, Mark
from nemo_mm_rank.io.parquet import write_table
from nemo_mm_rank.io.references import is_url
from nemo_mm_rank.run.outcome import quarantined
from nemo_mm_rank.schema import ERROR, MODALITY, PAIR_ID, POOL

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
            raise ConfigError(f"quarantine: a folder that all nodes see, not the URL {str(self.path)!r}")
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
    """Return the name of a batch's file: from its source and place there, or else from its pairs' ids.

    Curator gives random ids, with an ``r`` in front, where it cannot tell what a batch was made from, and none at all
    where a stage is called by hand.
    """
    source = task._metadata.get("source_files")
    if source and task.task_id and not task.task_id.startswith("r"):
        return str(get_deterministic_hash(list(source), task.task_id))
    return str(get_deterministic_hash([str(name) for name in table[PAIR_ID].to_pylist()]))


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{file}: cannot be removed: {error.strerror}") from error

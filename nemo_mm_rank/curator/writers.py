"""Writers for Curator pipelines: files that are there whole or not at all, equal bytes for equal rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_curator.stages.text.io.writer.base import BaseWriter
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.curator.batches import to_table
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.io.blend import write_blend
from nemo_mm_rank.io.references import is_url


@dataclass(repr=False)
class BlendWriter(BaseWriter):
    """Writes every batch to a file of its own as a run writes its blend: see `io.blend.write_blend`.

    Names and modes are those of Curator's writers; unlike with those, a pipeline that is killed leaves no half a file.

    Args:
        path: the folder, on a file system that all nodes see.
        file_extension: ``parquet`` or ``jsonl``.
        fields: the columns to write; default: all.
        mode: ``ignore``, ``overwrite`` or ``error``, for a folder that is there.
    """

    path: str
    file_extension: str = "parquet"
    name: str = "blend_writer"

    def __post_init__(self) -> None:
        """Check the path and the extension.

        Raises:
            ConfigError: a URL, or another extension.
        """
        if is_url(str(self.path)):
            raise ConfigError(f"{self.name}: a folder that all nodes see, not the URL {str(self.path)!r}")
        if self.file_extension not in ("parquet", "jsonl"):
            raise ConfigError(f"{self.name}: a blend is written as parquet or jsonl, not {self.file_extension!r}")
        self.path = str(Path(self.path).expanduser().absolute())  # workers may stand elsewhere
        super().__post_init__()

    def write_data(self, task: DocumentBatch, file_path: str) -> None:
        """Write the rows of one batch."""
        table = to_table(task)
        write_blend(table if self.fields is None else table.select(self.fields), Path(file_path))

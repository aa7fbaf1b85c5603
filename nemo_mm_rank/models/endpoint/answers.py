"""Answers that were paid for once: kept on disk, for every process and every later run.

One small file each, put in place by a rename. Any number of processes may share the folder, on a network file system
too, where a database in one file could not be locked; a process killed at any moment leaves an answer or none; and a
file beside the seconds and the tokens of the answer in it weighs nothing.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from nemo_mm_rank.io.parquet import write_json


class Answer(BaseModel):
    """What a model said, and the tokens that it took."""

    text: str = Field(min_length=1)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """The answers in a folder, by the digest of what was asked.

    Args:
        folder: made when the first answer comes; None keeps nothing.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None

    def get(self, key: str) -> Answer | None:
        """Return the answer to ``key`` (hexadecimal digits); None where there is none that can be read."""
        if self._folder is None:
            return None
        try:
            return Answer.model_validate_json(self._path(self._folder, key).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, key: str, answer: Answer) -> Answer:
        """Keep ``answer``, or return the one that another process has kept meanwhile: equal media, equal words.

        Raises:
            StorageError: the disk is full, or the folder cannot be written to.
        """
        if self._folder is None:
            return answer
        kept = self.get(key)
        if kept is None:
            write_json(self._path(self._folder, key), answer.model_dump())
        return kept or answer

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"

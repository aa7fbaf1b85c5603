"""What can go wrong, in two kinds: the user's to mend (the run stops), and one pair's (the run goes on)."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from nemo_mm_rank.console import printable


class _PrintableError(Exception):
    """An error whose message may hold what comes from data: as text, it is printable."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class UserError(_PrintableError):
    """Something the user can mend; the command line prints its one line and stops."""


class ConfigError(UserError):
    """A configuration that cannot be meant: an unknown key, an impossible value, a model that does not fit."""


class PoolError(UserError):
    """A pool that cannot be read, or a bad row where bad rows are to stop the run."""


class EmptyPoolError(PoolError):
    """A pool of which no row is a pair."""


class MissingColumnError(UserError):
    """A frame lacks a column that a step needs."""


class TakenColumnError(UserError):
    """A frame has a column of the name of one that is to be added, which would replace it."""


class ModelError(UserError):
    """A model that cannot be loaded, or that breaks its contract for a whole batch."""


class AnswerError(ModelError):
    """A model that raised for what it was given: perhaps for one item of it, perhaps for whatever it is given."""


class MemoryShortError(AnswerError):
    """A model that needs more memory than there is for what it was given."""


class StorageError(UserError):
    """A file of a run cannot be written: the disk is full, or the folder is not ours to write to."""


class DamagedError(UserError):
    """A file that we have written is gone, or is not as it was written."""

    def __init__(self, file: object) -> None:
        super().__init__(
            f"{file}: missing, damaged or edited; curate (or the command that made it) with the same configuration "
            "makes it again, and keeps what is intact"
        )


class FailedError(UserError):
    """So many pairs failed that there is nothing to go on with; the command line's exit status is 1."""


class PairError(_PrintableError):
    """One pair cannot be processed; it is quarantined with this error's class and message."""


class MediaError(PairError):
    """Media that is missing, refused, too large, or cannot be decoded."""


class TextError(PairError):
    """A text that is missing, empty, too long, or not text."""


class EmbeddingError(PairError):
    """A model gave no usable vector or text for this item."""


class TransientError(PairError):
    """What may pass: an endpoint or network that does not answer, memory that is short. The next start tries again."""


def in_one_line(error: BaseException) -> str:
    """Return an error as one line: its class, what it says, and the line of code that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    return f"{said} ({Path(place.filename).name}, line {place.lineno})"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` where none is close.

    >>> nearest("budgte", ["budget", "queries"])
    "; did you mean 'budget'?"
    """
    match = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        UserError: naming the extra to install, where the module (or something it needs) is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs {module!r}, which is not installed: pip install 'nemo-mm-rank[{extra}]' ({error})"
        ) from error

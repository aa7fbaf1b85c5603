"""A user's mistakes, brought back from a worker as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from nemo_mm_rank.errors import UserError

T = TypeVar("T")


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

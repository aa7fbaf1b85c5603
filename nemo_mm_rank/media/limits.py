"""Limits of time: CPU for what is decoded, the clock on the wall for what is fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from nemo_mm_rank.errors import MediaError

_T = TypeVar("_T")

_decoding = threading.local()


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Let this thread spend so many seconds of CPU within the block: `check_cpu` raises once they are over."""
    _decoding.limit, _decoding.end = seconds, time.thread_time() + seconds
    try:
        yield
    finally:
        del _decoding.end


def check_cpu() -> None:
    """See whether this thread may go on; to be called between the pieces that a decoder takes.

    Raises:
        MediaError: it has spent what `cpu_limit` allows.
    """
    if hasattr(_decoding, "end") and time.thread_time() > _decoding.end:
        raise out_of_cpu()


def cpu_left() -> float:
    """Return the seconds of CPU that this thread may still spend; 0 where nothing limits them.

    Raises:
        MediaError: there are none.
    """
    check_cpu()
    return _decoding.end - time.thread_time() if hasattr(_decoding, "end") else 0.0


def out_of_cpu() -> MediaError:
    """Return the error of what takes longer than `cpu_limit` allows."""
    return MediaError(f"takes more than {_decoding.limit:g} s of CPU to decode (media.decode_seconds)")


class Watched:
    """A file whose reader is checked (`check_cpu`) whenever it reads on. It has no file number to read past that by."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read_on, self.seek, self.tell = file.read, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        check_cpu()
        return self.read_on(size)


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return what ``call`` returns; it runs in a thread of its own, which is left to itself when time is up.

    Libraries that fetch have time-outs for each answer of a server, hardly any for all of them together.

    Raises:
        TimeoutError: it did not return within ``seconds``.
    """
    result: list[Any] = []

    def run() -> None:
        try:
            result.extend((call(), None))
        except BaseException as error:
            result.extend((None, error))

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise TimeoutError(f"the download did not end within {seconds:g} s (download_seconds)")
    value, error = result
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]  # what `call` returned

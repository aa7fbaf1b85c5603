"""Work in a process beside this one, which the kernel ends once it has taken more CPU than it may.

For decoders that do all in one call, which nothing in their own process could interrupt; one that crashes ends that
process alone. It knows what it is asked, never this process's memory, and answers in plain bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any, cast

from nemo_mm_rank.errors import MediaError, TransientError
from nemo_mm_rank.media.limits import cpu_left, out_of_cpu

Work = Callable[[bytes, Mapping[str, Any]], tuple[bytes, dict[str, Any]]]
"""From content and settings (JSON-able) to an answer, which is content and what there is to say of it."""

_LENGTHS = struct.Struct("<QQ")
_START = "import sys; sys.path[:] = sys.argv[2:]; from nemo_mm_rank.media.apart import _serve; _serve(sys.argv[1])"


class _Helper:
    """A process that does one kind of work, again and again."""

    def __init__(self, work: str) -> None:
        path = [folder for folder in sys.path if folder]  # without the current folder
        self.process = subprocess.Popen(  # noqa: S603 (this package, by this Python)
            [sys.executable, "-I", "-c", _START, work, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.pipes = cast("tuple[IO[bytes], IO[bytes]]", (self.process.stdin, self.process.stdout))

    def ask(self, content: bytes, about: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Return its answer.

        Raises:
            OSError: it has ended.
        """
        questions, answers = self.pipes
        _send(questions, content, about)
        answer = _receive(answers)
        if answer is None:
            raise BrokenPipeError
        return answer

    def end(self) -> int:
        """End it, where it has not ended; return how."""
        for pipe in self.pipes:
            with suppress(OSError):  # over what it was not told any more
                pipe.close()
        return self.process.wait()


_idle: dict[str, list[_Helper]] = {}
"""Kept for the next question, whichever thread has it."""


def call(work: str, content: bytes, about: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Have ``work`` done on ``content`` in another process, with the CPU that is left to this thread.

    Args:
        work: a `Work` by import path, ``module:name``.
        content: what it is done on.
        about: its settings.

    Raises:
        MediaError: what the work raised, or it took too long, or crashed.
        TransientError: memory is short.
    """
    waiting = _idle.setdefault(work, [])
    helper = waiting.pop() if waiting else _Helper(work)
    try:
        answer, said = helper.ask(content, {**about, "cpu": cpu_left()})
    except OSError as error:
        ended = -helper.end()
        if ended == signal.SIGPROF:
            raise out_of_cpu() from error
        if ended == signal.SIGKILL:  # the system's own, where memory is short
            raise TransientError("memory is too short to decode it") from error
        raise MediaError(f"cannot be decoded: the decoder has crashed ({_name(ended)})") from error
    except BaseException:  # half an answer is left in the pipe
        helper.process.kill()
        helper.end()
        raise
    waiting.append(helper)
    if "error" in said:
        raise MediaError(said["error"])
    return answer, said


def _name(ended: int) -> str:
    return signal.Signals(ended).name if ended in set(signal.Signals) else f"exit status {-ended}"


def _send(pipe: IO[bytes], content: bytes, about: Mapping[str, Any]) -> None:
    head = json.dumps(about).encode()
    pipe.write(_LENGTHS.pack(len(head), len(content)) + head)
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bytes, dict[str, Any]] | None:
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, content = _LENGTHS.unpack(lengths)
    about, answer = pipe.read(head), pipe.read(content)
    return None if len(answer) < content else (answer, json.loads(about))


def _serve(name: str) -> None:
    """Be the other process: work until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, and for whoever asks
    module, _, attribute = name.partition(":")
    work: Work = getattr(__import__(module, fromlist=[attribute]), attribute)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while (question := _receive(sys.stdin.buffer)) is not None:
        content, about = question
        signal.setitimer(signal.ITIMER_PROF, about.pop("cpu"))  # SIGPROF ends a process that does not ask for it
        try:
            answer, said = work(content, about)
        except MediaError as error:
            answer, said = b"", {"error": str(error)}
        except Exception as error:
            answer, said = b"", {"error": f"cannot be decoded: {type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, answer, said)


def _end_all() -> None:
    for waiting in _idle.values():
        for helper in waiting:
            helper.end()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_idle.clear)

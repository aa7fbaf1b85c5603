"""What a person sees while a run goes on: per step, how many pairs, how fast, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from nemo_mm_rank.console import printable


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} pairs/s" if speed else "")


@dataclass
class Reporter:
    """Draws bars on a terminal and writes one line a step elsewhere.

    Attributes:
        console: where to; a quiet one draws nothing.
        seconds: what every step took, for the run's record.
    """

    console: Console

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(printable(text), highlight=False, markup=False)

    @contextmanager
    def step(self, name: str, pairs: int, done: int = 0) -> Iterator[_Advance]:
        """Follow one step over ``pairs`` pairs, of which ``done`` were done by an earlier run."""
        started = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                TextColumn(f"{printable(name):<17}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:,}/{task.total:,}"),
                _Rate(),
            )
            with Progress(*columns, TimeRemainingColumn(), console=self.console) as progress:
                task = progress.add_task(name, total=pairs, completed=done)
                yield _Advance(progress, task)
        else:
            yield _Advance(None, None)
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        if not self.console.is_terminal:
            fresh = pairs - done
            resumed = f", {done:,} from an earlier start" if done else ""
            self.say(f"{name:<17} {fresh:,} pairs in {took:.1f} s ({fresh / max(took, 1e-9):,.0f} pairs/s){resumed}")

    @contextmanager
    def whole(self, name: str, pairs: int) -> Iterator[None]:
        """Follow one step that does all of its ``pairs`` at once."""
        with self.step(name, pairs) as advance:
            yield
            advance(pairs)


@dataclass
class _Advance:
    progress: Progress | None
    task: TaskID | None

    def __call__(self, pairs: int) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task, pairs)

"""An engine of the user's own, in place of ours: anything with the attributes and methods of `Engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nemo_mm_rank import curate, rank
from nemo_mm_rank.errors import ConfigError
from tests.integration.runs import digests, many_texts, settings

T = TypeVar("T")


class Backwards:
    """Two shards at a time, the last ones first."""

    backend = "pandas"
    device: str | None = "cpu"

    def __init__(self) -> None:
        self.done: list[int] = []
        self.closed = False

    def map(self, task: Callable[[int], T], parts: Sequence[int]) -> Iterator[tuple[int, T]]:
        with ThreadPoolExecutor(2) as pool:
            for part, result in zip(parts[::-1], pool.map(task, parts[::-1]), strict=True):
                self.done.append(part)
                yield part, result

    def close(self) -> None:
        self.closed = True


def test_what_comes_out_is_the_same(tmp_path: Path) -> None:
    pool, engine = many_texts(tmp_path / "pool.jsonl"), Backwards()
    config = settings(pool, tmp_path / "ours", shards=4)
    ours = curate(config=config, progress=False)
    theirs = curate(config={**config, "output": str(tmp_path / "theirs")}, engine=engine, progress=False)
    assert digests(theirs.folder) == digests(ours.folder)
    assert engine.done[:4] == [3, 2, 1, 0]
    before = len(engine.done)
    again = rank(theirs.folder, "a tram at night", 7, engine=engine)
    assert digests(again.folder) == digests(rank(ours.folder, "a tram at night", 7).folder)
    assert engine.done[before : before + 4] == [3, 2, 1, 0]
    assert not engine.closed  # it is still theirs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": object()}, "object cannot be used as engine: it lacks backend, device, map"),
        ({"engine": Backwards(), "client": object()}, "give either a client or an engine"),
    ],
)
def test_what_is_no_engine(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    for work in (curate, rank):
        with pytest.raises(ConfigError, match=said):
            work(tmp_path / "pool.jsonl", "x", **given)

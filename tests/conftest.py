"""Imported before any test module, so that the package can set OpenMP's waiting before torch is imported."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nemo_mm_rank import modality

if TYPE_CHECKING:
    from tests.command_line import CommandLine

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile`` give all files that use Ray to one process: they would wait for each other in two."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    file_of = scheduler._split_scope
    scheduler._split_scope = lambda nodeid: "ray" if _uses_ray(config.rootpath / file_of(nodeid)) else file_of(nodeid)
    return scheduler


@cache
def _uses_ray(file: Path) -> bool:
    return "ray_alone" in file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ray_alone() -> Iterator[None]:
    """Wait until no other process's tests use Ray: two clusters at a time on one machine find each other."""
    with (Path(tempfile.gettempdir()) / "nemo-mm-rank-tests-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True, scope="module")
def own_modalities() -> Iterator[None]:
    """Leave no modality that a module's tests declare to the next module's."""
    tables: list[dict[str, Any]] = [modality._declared, modality._registered, modality._made, modality.MODALITY_CODES]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)
    modality.by_extension.cache_clear()


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Runs commands in this process."""
    from tests.command_line import CommandLine

    return CommandLine(capsys, monkeypatch)

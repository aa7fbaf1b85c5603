"""Imported before any test module, so that the package can set OpenMP's waiting before torch is imported."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nemo_mm_rank  # noqa: F401

if TYPE_CHECKING:
    from tests.command_line import CommandLine

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def ray_alone() -> Iterator[None]:
    """Wait until no other process's tests use Ray: two clusters at a time on one machine find each other."""
    with (Path(tempfile.gettempdir()) / "nemo-mm-rank-tests-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Runs commands in this process."""
    from tests.command_line import CommandLine

    return CommandLine(capsys, monkeypatch)

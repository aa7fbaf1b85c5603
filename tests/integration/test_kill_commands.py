"""Killed at any moment, `rank`, `ecodatum`, `export` and `report` leave the old or the new; the next start ends well.

Their processes are forked from one that has imported everything, so that a kill costs no start of an interpreter.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from nemo_mm_rank import cli
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.io.files import TEMPORARY
from tests.integration.runs import digests, settings, tree
from tests.integration.test_kill import plant

KILLS = 5
"""Of each command."""

RAN = ("blend.parquet", "quarantine.parquet", "manifest.json")
JUDGED = (*RAN, "quality.parquet", "duplicates.parquet")

_PRELOADED = ["nemo_mm_rank.cli", "nemo_mm_rank.run.curation", "nemo_mm_rank.run.ecodatum", "nemo_mm_rank.report"]


def run_command(arguments: list[str], log: Path) -> None:
    """Be the command line; what it says on standard error goes to a file."""
    sys.argv = ["nemo-mm-rank", *arguments]
    sys.stdout = open(log.with_suffix(".out"), "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115
    cli.main()


class Commands:
    """Starts commands, and kills them."""

    def __init__(self, folder: Path) -> None:
        self._start: Any = multiprocessing.get_context("forkserver")
        self._start.set_forkserver_preload(_PRELOADED)
        self._log = folder / "said"

    def __call__(self, *arguments: object, kill_after: float | None = None) -> bool:
        """Run a command; return whether it came to its end."""
        process = self._start.Process(target=run_command, args=(list(map(str, arguments)), self._log))
        process.start()
        process.join(300 if kill_after is None else kill_after)
        if kill_after is not None and process.is_alive():
            process.kill()
            process.join()
            return False
        assert process.exitcode == 0, self._log.read_text("utf-8")
        return True

    def killed(self, arguments: list[object], check: Callable[[], None], seconds: float) -> int:
        """Kill a command at seeded moments, checking what is left each time; return how often that was in time."""
        random, count = Random(str(arguments[0])), 0
        for slot in range(KILLS):
            count += not self(*arguments, kill_after=seconds * (slot + random.random()) / KILLS)
            check()
        return count


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """A finished run over six shards."""
    folder = tmp_path_factory.mktemp("killed")
    values = settings(make_demo_pool(folder / "pool", 4), folder / "run", shards=6, jsonl=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    commands("curate", "-c", folder / "config.yaml")
    return folder / "run"


def test_rank(run: Path, commands: Commands, tmp_path: Path) -> None:
    undisturbed, killed = (shutil.copytree(run, tmp_path / name) for name in ("undisturbed", "killed"))
    before, started = digests(run, RAN), time.monotonic()
    commands("rank", undisturbed, "-q", "beeps")
    seconds, expected = time.monotonic() - started, digests(undisturbed, RAN)
    assert before != expected

    def check() -> None:
        if (killed / "manifest.json").exists():  # which vouches for the blend
            assert digests(killed, RAN) in (before, expected)
        plant(killed)

    assert commands.killed(["rank", killed, "-q", "beeps"], check, seconds) > 0
    assert commands("rank", killed, "-q", "beeps")
    assert digests(killed, RAN) == expected
    assert list(killed.rglob(f"*{TEMPORARY}")) == []


def test_ecodatum(run: Path, commands: Commands, tmp_path: Path) -> None:
    pool, started = run.parent / "pool" / "pool.jsonl", time.monotonic()
    commands("ecodatum", pool, "-o", tmp_path / "undisturbed")
    seconds, expected = time.monotonic() - started, digests(tmp_path / "undisturbed", JUDGED)
    killed = tmp_path / "killed"

    def check() -> None:
        if (killed / "manifest.json").exists():
            assert digests(killed, JUDGED) == expected
        if killed.exists():
            plant(killed)

    assert commands.killed(["ecodatum", pool, "-o", killed], check, seconds) > 0
    assert commands("ecodatum", pool, "-o", killed)
    assert digests(killed, JUDGED) == expected
    assert list(killed.rglob(f"*{TEMPORARY}")) == []


def test_export(run: Path, commands: Commands, tmp_path: Path) -> None:
    started = time.monotonic()
    commands("export", run, "-o", tmp_path / "undisturbed", "--max-samples", 2)
    seconds, expected = time.monotonic() - started, tree(tmp_path / "undisturbed")
    killed = tmp_path / "killed"

    def check() -> None:
        if killed.exists():  # whole or not at all
            assert tree(killed) == expected
            shutil.rmtree(killed)

    assert commands.killed(["export", run, "-o", killed, "--max-samples", 2], check, seconds) > 0
    assert commands("export", run, "-o", killed, "--max-samples", 2)
    assert tree(killed) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "undisturbed"]


def test_report(run: Path, commands: Commands, tmp_path: Path) -> None:
    started = time.monotonic()
    commands("report", run, "-o", tmp_path / "undisturbed.html")
    seconds, expected = time.monotonic() - started, (tmp_path / "undisturbed.html").read_bytes()
    page = tmp_path / "killed.html"

    def check() -> None:
        if page.exists():
            assert page.read_bytes() == expected
            page.unlink()

    assert commands.killed(["report", run, "-o", page], check, seconds) > 0
    assert commands("report", run, "-o", page)
    assert page.read_bytes() == expected

"""A run that is killed, itself or one of its workers, goes on where it was and comes out the same, to the byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from nemo_mm_rank import curate
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import TEMPORARY
from nemo_mm_rank.run.folder import RunFolder
from tests.integration.runs import command, digests, say, settings
from tests.integration.user_models import expert_of

KILLS = 20
"""How often: once when each step has left its first file, the rest at moments by the clock."""

MARKS = {
    "pool": "pool/part-*",
    "statistics": "fitted/text-*",
    "sns": "steps/sns-*/part-*",
    "experts": "steps/experts-*/part-*",
    "fit": "fitted/projection-*/config.json",
    "projection": "steps/projection-*/part-*",
    "rank": "steps/rank-*/part-*",
    "blend": "blend.parquet",
}
"""What every step leaves, in their order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """A configuration as a file: many small shards, so that there are many moments between two files."""
    values = settings(make_demo_pool(folder / "pool", 8), folder / "run", shards=14)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


class Started:
    """A run by the command line, in a process group of its own, that has its folder and has begun to work.

    ``began`` is when that was: what comes before, the imports, is not worth a kill.
    """

    def __init__(self, config: Path, run: Path) -> None:
        marker = RunFolder(run).config
        before = marker.stat().st_ino if marker.exists() else None
        self.process = subprocess.Popen(
            command("curate", "-c", config, "-o", run),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while self.process.poll() is None and (not marker.exists() or marker.stat().st_ino == before):
            time.sleep(0.002)
        self.began = time.monotonic()

    def kill(self, after: float) -> bool:
        """Kill it so many seconds after it began; returns whether that was in time."""
        try:
            self.process.wait(max(0.0, after - (time.monotonic() - self.began)))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        _, said = self.process.communicate()
        assert self.process.returncode in (0, -signal.SIGKILL), said
        return self.process.returncode != 0

    def kill_at(self, moment: float | str, run: Path) -> bool:
        """Kill it so many seconds after it began, or as soon as a step of that name has left a file in ``run``."""
        if isinstance(moment, float):
            return self.kill(after=moment)
        while self.process.poll() is None and not any(run.glob(MARKS[moment])):
            time.sleep(0.002)
        return self.kill(after=0)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, config: Path) -> tuple[dict[str, str], float]:
    """Digests of a run that nothing happens to, and how many seconds it worked."""
    started = Started(config, folder / "undisturbed")
    assert not started.kill(after=300)
    return digests(folder / "undisturbed"), time.monotonic() - started.began


def reached(run: Path) -> str:
    """Return the last step that has begun to leave files."""
    return [name for name, pattern in {"start": "", **MARKS}.items() if not pattern or list(run.glob(pattern))][-1]


def plant(run: Path) -> None:
    """Leave unfinished files such as a kill may leave, wherever files are finished."""
    for path in [*run.rglob("*.parquet"), *run.rglob("*.json"), *run.rglob("*.safetensors")]:
        path.with_name(f".{path.name}.planted{TEMPORARY}").write_bytes(b"half")


def killed_again_and_again(
    config: Path, run: Path, moments: Sequence[float | str], expected: dict[str, str]
) -> Counter[str]:
    """Kill one run after the other until all moments are used, then let the last one finish; what each had reached.

    A moment is so many seconds after a run began to work, or the first file of a step.
    """
    where: Counter[str] = Counter()
    finished = 0
    for moment in moments:
        while not Started(config, run).kill_at(moment, run):
            finished += 1
            assert digests(run) == expected
            shutil.rmtree(run)
            assert finished < 3 * len(moments)
        if (run / "manifest.json").exists():  # killed when all was done but the table
            assert digests(run) == expected
        where[reached(run)] += 1
        plant(run)
    assert not Started(config, run).kill(after=300)
    assert digests(run) == expected
    assert list(run.rglob(f"*{TEMPORARY}")) == []
    return where


@pytest.mark.slow
def test_killed_at_twenty_moments(folder: Path, config: Path, undisturbed: tuple[dict[str, str], float]) -> None:
    expected, seconds = undisturbed
    random, timed = Random(0), KILLS - len(MARKS)
    # Early ones first: a run that goes on where it was has little left to do for those that come late.
    moments = [seconds * (slot + random.random()) / timed for slot in range(timed)]
    plans: list[Sequence[float | str]] = [[*MARKS], moments]
    with ThreadPoolExecutor(len(plans)) as pool:
        chains = [
            pool.submit(killed_again_and_again, config, folder / f"killed-{n}", when, expected)
            for n, when in enumerate(plans)
        ]
    by_step, by_clock = (chain.result() for chain in chains)
    assert by_step.total() + by_clock.total() == KILLS
    assert len(by_step) >= 4, by_step


def test_one_run_at_a_time_in_a_folder(folder: Path, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    shutil.copy(Path(__file__).with_name("user_models.py"), tmp_path / "my_models.py")
    own = expert_of({"class": "my_models:Waits", "started": str(started), "go": str(go)})
    values = settings(make_demo_pool(folder / "pool", 8), tmp_path / "run", **own)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    curate_here = ("curate", "-c", "c.yaml", "--import-from", ".")
    first = subprocess.Popen(command(*curate_here), cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        while not started.exists():
            assert first.poll() is None
            time.sleep(0.02)
        second = say(*curate_here, cwd=tmp_path)
        assert second.returncode == 2
        assert second.stderr == f"error: {tmp_path}/run: another run is using this folder\n"
        go.touch()
        first.communicate(timeout=120)
        assert first.returncode == 0
    finally:
        first.kill()
    assert (tmp_path / "run" / "blend.parquet").exists()


@pytest.fixture
def on_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run on two workers whose encoder, a class of the user's own, kills one of them."""
    shutil.copy(Path(__file__).with_name("user_models.py"), tmp_path / "deadly.py")
    monkeypatch.syspath_prepend(tmp_path)
    own = expert_of({"class": "deadly:KillsItsWorker", "word": "sea", "marker": str(tmp_path / "marker")})
    pool = make_demo_pool(folder / "pool", 8)
    return settings(pool, tmp_path / "run", **own, rows_per_shard=6, engine={"workers": 2})


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(on_workers: dict[str, Any], tmp_path: Path) -> None:
    killed = curate(config=on_workers, progress=False)
    assert (tmp_path / "marker").exists()
    undisturbed = {**on_workers, "engine": {}, "output": str(tmp_path / "undisturbed")}
    assert digests(killed.folder) == digests(curate(config=undisturbed, progress=False).folder)


def test_a_shard_that_kills_every_worker_stops_the_run(on_workers: dict[str, Any], tmp_path: Path) -> None:
    dask = pytest.importorskip("dask", reason="needs the extra 'dask'")
    on_workers["models"]["text"]["always"] = True
    on_workers["engine"] = {"workers": 1}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(UserError, match=r"^shard \d: 1 workers died while they worked on it; memory may be too small"),
    ):
        curate(config=on_workers, progress=False)
    assert not (tmp_path / "run" / "blend.parquet").exists()

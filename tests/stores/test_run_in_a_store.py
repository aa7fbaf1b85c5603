"""A run in an object store: the same bytes as in a local folder, whatever befalls it and whoever reads it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_mm_rank import curate, rank
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.media.cache import PLACE
from nemo_mm_rank.run.curation import explain
from nemo_mm_rank.run.export import export
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore, Stage
from tests.command_line import CommandLine
from tests.integration.runs import OUTCOME, command, many_texts, say, settings
from tests.stores.conftest import BUCKET, Server

Machine = Callable[[str], Path]

SHARDS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    path = folder / "config.yaml"
    values = settings(many_texts(folder / "pool.jsonl"), folder / "run", shards=SHARDS)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def local(config: Path) -> Path:
    """The run in a local folder, that all others are held against."""
    return curate(config=config, progress=False).folder


@pytest.fixture(scope="module")
def expected(local: Path) -> dict[str, bytes]:
    """What a run is made for."""
    return outcome(local)


def outcome(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in OUTCOME}


def outcome_in(server: Server, url: str) -> dict[str, bytes]:
    return {name: server.files.cat_file(f"{url}/{name}") for name in OUTCOME}


@pytest.fixture(scope="module")
def run(server: Server, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a finished run, made by a machine that is gone."""
    url = f"s3://{BUCKET}/runs/finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(tmp_path_factory.mktemp("gone")))
        curate(config=config, output=url, progress=False)
        yield url


def test_the_same_bytes_as_in_a_local_folder(server: Server, run: str, local: Path, expected: dict[str, bytes]) -> None:
    assert outcome_in(server, run) == expected

    def names(files: list[str], top: str) -> set[str]:
        return {name.removeprefix(top).lstrip("/") for name in files} - {".lock", "config.yaml"}

    there = names(server.files.find(run), run.removeprefix("s3://"))
    assert there == names([str(path) for path in local.rglob("*") if path.is_file()], str(local))


def test_on_another_machine_it_is_done(
    server: Server,
    machine: Machine,
    run: str,
    expected: dict[str, bytes],
    config: Path,
    command_line: CommandLine,
) -> None:
    before = {name: info["ETag"] for name, info in server.files.find(run, detail=True).items()}
    status, printed = command_line("curate", "-c", config, "-o", run)
    assert status == 0, printed
    assert run in printed
    assert str(machine("here")) not in printed
    after = {name: info["ETag"] for name, info in server.files.find(run, detail=True).items()}
    assert {name for name in after if after[name] != before.get(name)} <= {f"{run}/timings.json".removeprefix("s3://")}
    assert outcome_in(server, run) == expected


def test_whoever_reads_a_run_takes_its_url(
    server: Server, machine: Machine, run: str, local: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    status, printed = command_line("report", run)
    assert (status, printed.splitlines()[-1]) == (0, f"{run}/report.html")
    command_line("report", local)
    assert server.files.cat_file(f"{run}/report.html") == (local / "report.html").read_bytes()
    machine("second")
    assert explain(run, "p001") == explain(local, "p001")
    for name in ("own", "webdataset", "hf"):
        formats = [] if name == "own" else [name]
        export(run, f"s3://{BUCKET}/exports/{name}", formats)
        export(local, tmp_path / name, formats)
        files = {path.relative_to(tmp_path / name): path for path in (tmp_path / name).rglob("*") if path.is_file()}
        for inner, path in files.items():
            if inner.name != ".nemo-mm-rank.json":  # which names the run
                assert server.files.cat_file(f"s3://{BUCKET}/exports/{name}/{inner}") == path.read_bytes()
        assert len(server.files.find(f"s3://{BUCKET}/exports/{name}")) == len(files)
    status, printed = command_line("export", run, "-o", f"s3://{BUCKET}/exports/own")
    assert status == 2
    assert "contains an exported blend already" in printed
    status, printed = command_line("export", run, "-o", f"s3://{BUCKET}/exports/own", "--overwrite", "--format", "uids")
    assert status == 0, printed
    left = {name.rpartition("/")[2] for name in server.files.find(f"s3://{BUCKET}/exports/own")}
    assert left == {".nemo-mm-rank.json", "uids.txt", "uids.txt.sha256"}


def test_ranked_again_and_by_quality(
    server: Server, machine: Machine, config: Path, local: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/runs/again"
    curate(config=config, output=url, progress=False)
    machine("second")
    shutil.copytree(local, tmp_path / "copy")
    assert rank(url, "a street at night", 5).blend.equals(rank(tmp_path / "copy", "a street at night", 5).blend)
    status, printed = command_line("ecodatum", "--run", url, "-o", f"s3://{BUCKET}/quality")
    assert status == 0, printed
    machine("third")
    status, printed = command_line("rank", url, "--quality", f"s3://{BUCKET}/quality")
    assert status == 0, printed
    assert json.loads(server.files.cat_file(f"{url}/manifest.json"))["config"]["ranking"]["scores"]["quality"] == {
        "path": f"s3://{BUCKET}/quality/quality.parquet",
        "column": "quality",
    }
    assert server.files.exists(f"s3://{BUCKET}/quality/manifest.json")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_was_killed_goes_on(
    server: Server, machine: Machine, config: Path, expected: dict[str, bytes], elsewhere: bool
) -> None:
    url = f"s3://{BUCKET}/runs/killed-{elsewhere}"
    process = subprocess.Popen(
        command("curate", "-c", config, "-o", url), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not len(server.files.glob(f"{url}/steps/experts-*/part-*")) > 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not server.files.exists(f"{url}/manifest.json")
    done = {name: info["ETag"] for name, info in server.files.find(f"{url}/steps", detail=True).items()}
    if elsewhere:
        machine("elsewhere")
        lock = json.loads(server.files.cat_file(f"{url}/{mirror.HOLDER}"))
        # As it would be seen from there: another host, and its time not up.
        server.files.pipe_file(f"{url}/{mirror.HOLDER}", json.dumps({**lock, "holder": "other-host 1"}).encode())
        refused = say("curate", "-c", config, "-o", url)
        assert refused.returncode == 2
        assert f"{url}: another run is using this folder (other-host 1)" in refused.stderr
        server.files.pipe_file(f"{url}/{mirror.HOLDER}", json.dumps({**lock, "holder": "o 1", "until": 1}).encode())
    again = say("curate", "-c", config, "-o", url)
    assert again.returncode == 0, again.stderr
    assert outcome_in(server, url) == expected
    after = {name: info["ETag"] for name, info in server.files.find(f"{url}/steps", detail=True).items()}
    assert done.items() <= after.items()
    assert not server.files.exists(f"{url}/{mirror.HOLDER}")


def test_as_many_listings_for_many_shards(server: Server, machine: Machine, config: Path) -> None:
    counted = []
    for shards in (3, 24):
        values = {**yaml.safe_load(config.read_text(encoding="utf-8")), "shards": shards}
        before = server.calls()
        curate(config=values, output=f"s3://{BUCKET}/runs/shards-{shards}", progress=False)
        calls = server.calls() - before
        assert calls["PUT"] > 4 * shards
        counted.append((calls["LIST"], calls["GET"]))
    assert counted[0] == counted[1]
    assert counted[0][0] < 20


def test_two_workers(server: Server, machine: Machine, config: Path, expected: dict[str, bytes]) -> None:
    url = f"s3://{BUCKET}/runs/workers"
    values = {**yaml.safe_load(config.read_text(encoding="utf-8")), "engine": {"workers": 2}}
    curate(config=values, output=url, progress=False)
    assert outcome_in(server, url) == expected


WORKER = "import pickle, sys; stage, parts = pickle.load(sys.stdin.buffer); [stage(part) for part in parts]"


def test_a_worker_on_another_machine(server: Server, machine: Machine, run: str, tmp_path: Path, config: Path) -> None:
    """It finds the folder's path, and nothing below it; what it writes is found by the driver's next listing."""
    folder = RunFolder.at(run)
    state = State.load(folder)
    stages = tuple(folder.path / stage for stage in state.stages)
    shards = ShardStore(stages[:-1], state.shards).as_of_now()
    step = pickle.loads(pickle.dumps(_step(parse(Config, yaml.safe_load(config.read_text())), folder, state)))
    stage = Stage(step, shards, folder.path / "steps" / f"{step.name}-elsewhere", "identity")
    here = machine("here")
    here.rename(tmp_path / "away")
    before = server.calls()
    done = subprocess.run(
        [sys.executable, "-c", WORKER], input=pickle.dumps((stage, (3, 4, 5))), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    calls = server.calls() - before
    # One for each stage; what it writes, the matcher and the statistics are one each, and what is a file takes two.
    assert calls["LIST"] == len(shards.stages) + 4
    there = {path.name for path in here.rglob("part-*") if path.stat().st_size}
    assert there == {part_name(3), part_name(4), part_name(5)}
    for path in sorted(here.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    here.rmdir()
    (tmp_path / "away").rename(here)
    mirror.refresh(stage.folder)
    assert stage.done(5)
    assert not stage.done(6)
    server.files.rm(f"{mirror.url_of(stage.folder)}", recursive=True)


def _step(config: Config, folder: RunFolder, state: State) -> Any:
    from nemo_mm_rank.matching import MatchStep

    return MatchStep(folder.path / state.matcher, state.specs(folder), config.media)


def test_a_pool_beside_it_and_its_media_are_kept(server: Server, machine: Machine, tmp_path: Path) -> None:
    manifest = make_demo_pool(tmp_path / "pool", 4)
    pool, lines = manifest.parent, manifest.read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if not json.loads(line)["fault"]]
    manifest.write_text("\n".join(whole) + "\n", encoding="utf-8")
    for path in pool.rglob("*"):
        if path.is_file():
            server.files.put_file(str(path), f"{BUCKET}/pool/{path.relative_to(pool)}")
    media = sum(json.loads(line)["modality"] in ("image", "audio", "video") for line in whole)
    values = settings(pool / "pool.jsonl", tmp_path / "local", shards=3, budget=6)
    wanted = curate(config=values, progress=False).blend["pair_id"].tolist()
    copied = []
    for run in ("first", "second"):
        before = server.calls("/pool/")
        stored = {**values, "pools": f"s3://{BUCKET}/pool/pool.jsonl", "media": {"cache_bytes": 10**9}}
        result = curate(config=stored, output=f"s3://{BUCKET}/runs/{run}", progress=False)
        copied.append((server.calls("/pool/") - before)["GET"])
        assert result.blend["pair_id"].tolist() == wanted
    # The manifest is read by each of them, and each file by the first, once.
    assert copied[0] - copied[1] == media

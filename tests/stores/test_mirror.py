"""Mirrors of folders in a store, and the lock of such a folder, against a server that answers as S3 does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.io import lease, mirror
from nemo_mm_rank.io.files import read_sealed, write_bytes, write_sealed
from nemo_mm_rank.io.owned import Claim, local, locked, remove, take
from nemo_mm_rank.media.cache import PLACE
from tests.stores.conftest import BUCKET, KEYS, Server

Machine = Callable[[str], Path]


@pytest.fixture
def url(server: Server, machine: Machine, request: pytest.FixtureRequest) -> str:
    """A folder in the store that nothing is in."""
    return f"s3://{BUCKET}/{request.node.name}"


def sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@given(st.lists(st.text("abcZ0._-=+ é", min_size=1, max_size=8).filter(lambda part: part.strip(".")), min_size=2))
def test_a_path_says_what_it_mirrors(parts: list[str]) -> None:
    url = "s3://" + "/".join(parts)
    assert mirror.url_of(mirror.at(url)) == url
    assert mirror.url_of(mirror.at(url) / "steps" / "part-00000.parquet") == f"{url}/steps/part-00000.parquet"


def test_other_paths_are_no_mirrors(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert mirror.url_of(tmp_path / "run") is None
    mirror.refresh(tmp_path / "run")
    mirror.fetch(tmp_path / "nothing")
    assert mirror.named(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket", "name a folder in the bucket"),
        ("s3://bucket/", "name a folder in the bucket"),
        ("s3://bucket/../other", "name a folder in the bucket"),
        ("s3://bucket//run", "name a folder in the bucket"),
        ("https://host/run", "must be local folders or URLs of an object store"),
        ("file:///home/run", "must be local folders or URLs of an object store"),
        ("simplecache::s3://bucket/run", "must be local folders or URLs of an object store"),
    ],
)
def test_urls_that_cannot_be_written(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        local(url)


def test_what_is_printed_has_urls(url: str) -> None:
    path = mirror.at(url)
    assert printable(f"'{path}/blend.parquet': missing") == f"'{url}/blend.parquet': missing"
    assert str(StorageError(f"{path}: full")) == f"{url}: full"


def test_what_is_written_here_is_read_on_another_machine(url: str, server: Server, machine: Machine) -> None:
    folder = local(url)
    write_sealed(folder / "a" / "state.json", {"n": 1})
    assert server.files.find(url) == [f"{url}/a/state.json".removeprefix("s3://")]
    assert server.files.cat_file(f"{url}/a/state.json") == (folder / "a" / "state.json").read_bytes()
    machine("elsewhere")
    there = local(url)
    assert there != folder
    assert sizes(there) == {"a/state.json": 0}  # known of, and not fetched
    assert read_sealed(there / "a" / "state.json") == {"n": 1}


def test_a_mirror_follows_its_store(url: str, server: Server) -> None:
    folder = local(url)
    for name in ("same", "other", "gone"):
        write_bytes(folder / name, b"before")
    server.files.pipe_file(f"{url}/other", b"behind")  # as many bytes
    server.files.rm_file(f"{url}/gone")
    server.files.pipe_file(f"{url}/new", b"new")
    calls = server.calls()
    assert local(url) == folder
    assert server.calls() - calls == {"LIST": 1}
    assert sizes(folder) == {"same": 6, "other": 0, "new": 0}
    mirror.fetch(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "same": b"before",
        "other": b"behind",
        "new": b"new",
    }
    calls = server.calls()
    mirror.fetch(folder)
    assert server.calls() == calls


def test_names_that_lead_out_of_the_mirror_are_passed_by(url: str, server: Server, machine: Machine) -> None:
    for name in ("a/../../out", "ok/./x", ".lock", ".lock-holder"):
        server.files.call_s3(
            "put_object", Bucket=BUCKET, Key=f"{url.removeprefix(f's3://{BUCKET}/')}/{name}", Body=b"x"
        )
    folder = local(url)
    assert sizes(machine("here")) == {}
    assert sizes(folder) == {}


def test_what_is_removed_here_is_removed_there(url: str, server: Server) -> None:
    with Claim("export").held(url) as folder:
        write_bytes(take(folder, "taken"), b"x")
        write_bytes(folder / "sub" / "ours", b"x")
        remove(folder / "sub", Path.is_file)
        mirror.unlink(folder / "never")
    names = {name.rpartition("/")[2] for name in server.files.find(url)}
    assert names == {"taken", ".nemo-mm-rank.json"}


def test_links_keep_their_times(url: str, tmp_path: Path) -> None:
    """An export may hold links to media: what they lead to is the user's."""
    theirs, folder = tmp_path / "theirs", local(url)
    theirs.write_bytes(b"media")
    before = theirs.stat()
    folder.mkdir(parents=True)
    (folder / ".link").symlink_to(theirs)
    mirror.put(folder / ".link", folder / "link")
    assert theirs.stat().st_mtime_ns == before.st_mtime_ns


def test_a_folder_that_is_not_ours_is_refused_and_left(url: str, server: Server) -> None:
    server.files.pipe_file(f"{url}/theirs.txt", b"theirs")
    for door in (Claim("run").check, Claim("run", overwrite=True).make):
        with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it") as said:
            door(url)
        assert str(said.value).startswith(f"{url}: ")
    assert server.files.find(url) == [f"{url}/theirs.txt".removeprefix("s3://")]


def test_one_process_at_a_time(url: str, machine: Machine) -> None:
    with locked(made(url)):
        with pytest.raises(UserError, match=f"{url}: another run is using this folder"), locked(made(url)):
            pass
        machine("elsewhere")
        with (
            pytest.raises(UserError, match=f"{url}: another run is using this folder .*runs out at"),
            locked(made(url)),
        ):
            pass
    with locked(made(url)):
        pass


def made(url: str) -> Path:
    folder = local(url)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hold(server: Server, url: str, until: float, holder: str = "elsewhere 1") -> None:
    content = json.dumps({"holder": holder, "token": "theirs", "until": until})
    server.files.pipe_file(f"{url}/{mirror.HOLDER}", content.encode())


@pytest.mark.parametrize("left", ["run out", "of a process that is gone", "damaged"])
def test_a_lock_that_nobody_holds_is_taken_over(url: str, server: Server, left: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    if left == "run out":
        hold(server, url, time.time() - 1)
    elif left == "damaged":
        server.files.pipe_file(f"{url}/{mirror.HOLDER}", b"{")
    else:
        hold(server, url, time.time() + 100, lease.me().rpartition(" ")[0] + f" {gone.pid}")
    with locked(made(url)):
        assert json.loads(server.files.cat_file(f"{url}/{mirror.HOLDER}"))["holder"] == lease.me()
        assert len(server.files.find(url)) == 1
    assert server.files.find(url) == []


def test_only_one_takes_a_lock_over(url: str, server: Server) -> None:
    hold(server, url, time.time() - 1)
    server.files.pipe_file(f"{url}/{mirror.HOLDER}-theirs", b"somebody is at it")
    with pytest.raises(UserError, match="another run is taking this folder over"), locked(made(url)):
        pass


def test_nothing_is_written_once_the_lock_is_lost(url: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 0.5)
    folder = made(url)
    with locked(folder):
        write_bytes(folder / "before", b"x")
        hold(server, url, time.time() + 100)
        while folder not in mirror.lost:
            time.sleep(0.01)
        with pytest.raises(StorageError, match="another run has taken this folder over"):
            write_bytes(folder / "after", b"x")
    assert sorted(name.rpartition("/")[2] for name in server.files.find(url)) == [mirror.HOLDER, "before"]
    hold(server, url, 0)
    with locked(folder):
        write_bytes(folder / "after", b"x")


def test_a_lock_is_renewed(url: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    with locked(made(url)):
        first = json.loads(server.files.cat_file(f"{url}/{mirror.HOLDER}"))
        now = first
        while now["until"] == first["until"]:
            now = json.loads(server.files.cat_file(f"{url}/{mirror.HOLDER}"))
        assert now["token"] == first["token"]


class Careless(MemoryFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """A store that writes over what is there, whatever it is told."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, **kwargs)


def test_any_store_with_conditional_writes_does(machine: Machine) -> None:
    with locked(made("memory://bucket/run")):
        write_bytes(mirror.at("memory://bucket/run/file"), b"x")
        machine("elsewhere")
        with pytest.raises(UserError, match="another run is using this folder"), locked(made("memory://bucket/run")):
            pass
    fsspec.register_implementation("careless", Careless, clobber=True)
    said = "careless://bucket/run: this store has no conditional writes"
    with pytest.raises(StorageError, match=said), locked(made("careless://bucket/run")):
        pass


SAY = """
import sys
from nemo_mm_rank import cli
sys.modules.update(dict.fromkeys({missing}))
sys.argv = ["nemo-mm-rank", "curate", "pool.jsonl", "-q", "sea", "-o", {url!r}]
cli.main()
"""


@pytest.mark.parametrize(
    ("url", "missing", "drop", "said"),
    [
        ("s3://nowhere/run", [], [], "s3://nowhere/run: there is no such bucket"),
        ("s3://bucket/run", [], list(KEYS), "s3://bucket/run: the store cannot be used: NoCredentialsError"),
        ("s3://bucket/run", ["s3fs"], [], "s3://bucket/run: a library is missing"),
        ("nope://bucket/run", [], [], "nope://bucket/run: the store cannot be used: ValueError: Protocol not known"),
    ],
)
def test_one_clear_line(
    server: Server, tmp_path: Path, url: str, missing: list[str], drop: list[str], said: str
) -> None:
    (tmp_path / "pool.jsonl").write_text('{"data": "The sea.", "modality": "text", "annotation": "Sea."}\n')
    env = {name: value for name, value in os.environ.items() if name not in drop}
    env |= {"AWS_EC2_METADATA_DISABLED": "true", PLACE: str(tmp_path), "HOME": str(tmp_path)}
    script = SAY.format(url=url, missing=missing)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {said}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.stderr

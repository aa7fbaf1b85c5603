"""Folders of ours and of others: what may be written, and what is left when a process is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.io.files import TEMPORARY, write_table, write_text
from nemo_mm_rank.io.owned import LOCK, MARK, Claim, Mark, check_file, clear, drop, locked, remove, take, whole
from nemo_mm_rank.io.part_files import is_part, part_name
from tests.integration.runs import tree

RUN = Claim("run")


def pool(path: Path) -> PoolSource:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"modality": "text", "data": "a", "annotation": "b"}\n', encoding="utf-8")
    return PoolSource(path=str(path))


def test_a_new_and_an_empty_folder_get_a_mark(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/below", "empty"):
        made = RUN.make(tmp_path / name)
        assert json.loads((made / MARK).read_text()) == {
            "made_by": "nemo-mm-rank",
            "version": 1,
            "kind": "run",
            "sources": [],
            "files": [],
        }
        assert RUN.make(made) == made


def a_link(folder: Path) -> None:
    (folder.parent / "theirs").mkdir()
    folder.symlink_to("theirs")


def nowhere(folder: Path) -> None:
    folder.symlink_to("nowhere")


def a_file(folder: Path) -> None:
    folder.write_text("mine")


def files(folder: Path) -> None:
    (folder / "pool").mkdir(parents=True)
    (folder / "pool" / "part-00000.parquet").write_bytes(b"mine")
    (folder / "config.yaml").write_text("mine: too")


def a_mark_of_somebody(folder: Path) -> None:
    folder.mkdir()
    (folder / MARK).write_text("mine")


def a_linked_mark(folder: Path) -> None:
    Claim("run").make(folder.parent / "other")
    folder.mkdir()
    (folder / MARK).symlink_to(folder.parent / "other" / MARK)


def a_later_mark(folder: Path) -> None:
    folder.mkdir()
    (folder / MARK).write_text(Mark("run", version=2).text())


def an_export(folder: Path) -> None:
    Claim("export").make(folder)


def a_locked_file(folder: Path) -> None:
    folder.mkdir()
    (folder / LOCK).write_text("mine")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (a_link, "is a link; name the folder that it leads to, "),
        (nowhere, "is a link"),
        (a_file, "exists already and is not a folder"),
        (files, f"is not empty, and nothing shows that nemo-mm-rank made it (there is no {MARK} in it)"),
        (a_mark_of_somebody, "is not empty, and nothing shows"),
        (a_linked_mark, "is not empty, and nothing shows"),
        (a_locked_file, "is not empty, and nothing shows"),
        (a_later_mark, "was made by a later version"),
        (an_export, "contains an exported blend; choose another output"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_refused_and_left(
    tmp_path: Path, there: Callable[[Path], None], said: str, overwrite: bool
) -> None:
    there(tmp_path / "out")
    before = tree(tmp_path)
    claim = Claim("run", overwrite=overwrite)
    for door in (claim.check, claim.make, lambda path: claim.held(path).__enter__()):
        with pytest.raises(UserError) as caught:
            door(tmp_path / "out")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_places_that_nobody_gives_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path, said in {
        "": "the name is empty; is a variable of the shell unset?",
        " ": "the name is empty",
        ".": "is the current folder",
        "~": "is your home folder",
        "/": "is not empty, and nothing shows that nemo-mm-rank made it",
        "https://bucket/run": "must be local folders or URLs of an object store",
        "s3://bucket": "name a folder in the bucket",
        "a\0b": "not a valid name of a folder or file",
        "a" * 300: "cannot be used: File name too long",
    }.items():
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            RUN.make(path)
    RUN.make("~/run")
    RUN.make("run")
    monkeypatch.chdir("run")
    assert RUN.make(".") == tmp_path / "here" / "run"  # it is one of ours
    assert sorted(tree(tmp_path)) == [f"here/run/{MARK}", f"home/run/{MARK}"]


def test_an_output_that_an_input_lies_in_or_that_would_be_read_as_one(tmp_path: Path) -> None:
    inside = pool(tmp_path / "out" / "deep" / "a.jsonl")
    beside = pool(tmp_path / "data" / "a.jsonl")
    RUN.make(tmp_path / "ours")
    within_ours = pool(tmp_path / "ours" / "a.jsonl")
    rooted = beside.model_copy(update={"root": str(tmp_path / "media")})
    for source, output in ((inside, "out"), (within_ours, "ours"), (rooted, "media")):
        with pytest.raises(
            UserError,
            match=r"the pool .* lies in it \(.*\); choose an output folder that contains no "
            r"input",
        ):
            Claim("run", [source]).make(tmp_path / output)
    with pytest.raises(UserError, match=r"the run .* lies in it"):
        Claim("ecodatum", runs=[tmp_path / "out" / "run"]).check(tmp_path / "out")
    for pattern in ("data/**/*.jsonl", "data/*/*.parquet", "data/*/*/part-*.parquet"):
        pool(tmp_path / "data" / "b" / "c.jsonl")
        for name in ("data/b/d.parquet", "data/b/c/part-1.parquet"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        with pytest.raises(UserError, match="would read what is written there"):
            Claim("run", [PoolSource(path=str(tmp_path / pattern))]).check(tmp_path / "data" / "run")
    # A file's own folder, and a folder of manifests, are not read below.
    Claim("run", [beside]).make(tmp_path / "data" / "run")
    Claim("run", [PoolSource(path=str(tmp_path / "data"))]).make(tmp_path / "data" / "run2")
    Claim("run", [PoolSource(path=str(tmp_path / "data" / "*.jsonl"))]).make(tmp_path / "data" / "run3")


def test_only_the_same_pools_are_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pool(tmp_path / "a.jsonl"), pool(tmp_path / "b.jsonl")
    (tmp_path / "linked.jsonl").symlink_to("a.jsonl")
    out = Claim("run", [first]).make(tmp_path / "out")
    (out / "blend.parquet").touch()
    pool(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").open("a").write('{"modality": "text", "data": "c", "annotation": "d"}\n')
    monkeypatch.chdir(tmp_path)
    for same in ("a.jsonl", "linked.jsonl", "../" + tmp_path.name + "/a.jsonl"):
        Claim("run", [PoolSource(path=same, fields={"annotation": "caption"})]).make(out)
    for others in ([second], [first, second], []):
        with pytest.raises(
            UserError, match=r"contains a run of the main job already of .*a\.jsonl, not of .*--overwrite"
        ):
            Claim("run", others).make(out)
    Claim("run", [second], overwrite=True).make(out)
    Claim("run", [second]).make(out)
    with pytest.raises(UserError, match=r"already of .*b\.jsonl, not of .*a\.jsonl"):
        Claim("run", [first]).make(out)


def test_where_nothing_was_made_of_them_other_pools_may_be_taken(tmp_path: Path) -> None:
    first, second = pool(tmp_path / "a.jsonl"), pool(tmp_path / "b.jsonl")
    with Claim("run", [first]).held(tmp_path / "out") as out:
        (out / "config.yaml").touch()
        Claim("pool").make(out / "pool")
    Claim("run", [second]).make(out)
    (out / "pool" / part_name(0)).touch()
    with pytest.raises(UserError, match="already of"):
        Claim("run", [first]).make(out)


def test_a_lock_is_never_a_link_and_never_written(tmp_path: Path) -> None:
    out = RUN.make(tmp_path / "out")
    (tmp_path / "mine").write_text("mine")
    (out / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=rf"{LOCK}: this is a link that no run made"), RUN.held(out):
        pass
    (out / LOCK).unlink()
    (out / LOCK).hardlink_to(tmp_path / "mine")
    with RUN.held(out), pytest.raises(UserError, match="another run is using this folder"), locked(out):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    (out / LOCK).unlink()
    (out / LOCK).mkdir()
    with pytest.raises(StorageError, match=r"cannot be written: Is a directory"), RUN.held(out):
        pass


def test_a_claim_that_was_cut_short_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / f".{MARK}.1a2b3c4d{TEMPORARY}").write_text("{")
    with RUN.held(tmp_path):
        assert sorted(tree(tmp_path)) == [LOCK, MARK]


def test_only_our_unfinished_files_are_cleared_and_none_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    for place in (tmp_path, tmp_path / "theirs"):
        (place / f".a.parquet.1a2b3c4d{TEMPORARY}").write_bytes(b"half")
        (place / ".notes.tmp").write_bytes(b"mine")
    out = RUN.make(tmp_path / "out")
    (out / "deep").mkdir()
    (out / "link").symlink_to(tmp_path / "theirs")
    mine = [out / ".notes.tmp", out / "deep" / ".a.b.tmp", out / "deep" / f"a{TEMPORARY}"]
    busy = out / f".b.parquet.1a2b3c4d{TEMPORARY}"
    for file in (*mine, busy, out / "deep" / f".a.1a2b3c4d{TEMPORARY}"):
        file.write_bytes(b"half")
    (out / f".c.1a2b3c4d{TEMPORARY}").symlink_to(tmp_path / ".notes.tmp")
    with busy.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        before = tree(tmp_path)
        clear(out)
    assert set(before) - set(tree(tmp_path)) == {f"out/deep/.a.1a2b3c4d{TEMPORARY}"}
    clear(out)
    assert not busy.exists()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with RUN.held(tmp_path / "out") as out:
            write_text(out / "a.txt", "a")
            write_table(out / "deep" / "a.parquet", pa.table({"a": [1]}))
        with whole(Claim("export"), tmp_path / "whole") as unfinished:
            (unfinished / "a.tar").touch()
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "whole" / MARK).stat().st_mode) == 0o666 & ~mask


def test_files_that_are_there_now_and_then(tmp_path: Path) -> None:
    out = RUN.make(tmp_path / "out")
    (out / "blend.jsonl").write_text("mine")
    drop(out, "blend.jsonl")
    with pytest.raises(
        UserError,
        match=r"blend\.jsonl: the file exists already, and no run made it; move it "
        r"elsewhere",
    ):
        take(out, "blend.jsonl")
    assert (out / "blend.jsonl").read_text() == "mine"
    (out / "blend.jsonl").unlink()
    write_text(take(out, "blend.jsonl"), "ours")
    write_text(take(out, "blend.jsonl"), "ours again")
    RUN.make(out)
    drop(out, "blend.jsonl")
    assert not (out / "blend.jsonl").exists()
    (out / "blend.jsonl").write_text("mine")
    drop(out, "blend.jsonl")
    assert (out / "blend.jsonl").read_text() == "mine"


def test_parts_are_told_by_name_and_note(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    ours, table = stage / part_name(0), pa.table({"a": [1]})
    write_table(ours, table, {"key": "x"})
    write_table(stage / "part-00001.parquet", table)  # somebody's, without our note
    write_table(stage / "part-1.parquet", table, {"key": "x"})
    (stage / "part-00002.parquet").symlink_to(ours)
    (stage / "part-00003.parquet").mkdir()
    remove(stage, is_part)
    assert sorted(os.listdir(stage)) == [f"part-0000{n}.parquet" for n in (1, 2, 3)] + ["part-1.parquet"]
    write_table(tmp_path / "own" / part_name(0), table, {"key": "x"})
    (tmp_path / "link").symlink_to("own")
    remove(tmp_path / "link", is_part)
    assert (tmp_path / "own" / part_name(0)).exists()
    remove(tmp_path / "own", is_part)
    assert not (tmp_path / "own").exists()


def test_a_file_of_somebody_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text("ours: 1")
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("ours")

    def ours(file: Path) -> bool:
        return file.read_text().startswith("ours")

    assert check_file(tmp_path / "ours", ours, "page") == tmp_path / "ours"
    assert check_file(tmp_path / "new", ours, "page") == tmp_path / "new"
    for path, said in {
        "theirs": "the file exists already, and is not a page of nemo-mm-rank; choose another file",
        "link": "is a link; name the file",
        ".": "is a folder; name a file in it",
    }.items():
        with pytest.raises(UserError, match=said):
            check_file(tmp_path / path, ours, "page")
    with pytest.raises(UserError, match="the name is empty"):
        check_file("", ours, "page")


FILL = """
import sys, time
from nemo_mm_rank.io.owned import Claim, whole
with whole(Claim("export"), sys.argv[1]) as folder:
    (folder / "blend-000000.tar").write_bytes(b"half")
    print(folder.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that fills ``out``, and has written a file."""
    process = subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(".out.")
    yield process
    process.kill()
    process.wait()


def test_what_a_killed_export_leaves_the_next_one_clears(tmp_path: Path, at_work: subprocess.Popen[str]) -> None:
    def fill(name: str) -> None:
        with whole(Claim("export"), tmp_path / name) as folder:
            (folder / "blend-000000.tar").write_bytes(b"whole")

    (tmp_path / f".out.mine{TEMPORARY}").mkdir()
    (tmp_path / f".out.mine{TEMPORARY}" / "a").write_text("mine")
    [unfinished] = [path for path in tmp_path.iterdir() if (path / MARK).exists()]
    fill("out")  # while the other is at work
    assert (unfinished / "blend-000000.tar").read_bytes() == b"half"
    at_work.kill()
    at_work.wait()
    fill("other")
    assert unfinished.exists()  # it was on the way to another folder
    (tmp_path / "out" / "blend-000000.tar").unlink()
    (tmp_path / "out" / MARK).unlink()
    fill("out")
    assert sorted(tree(tmp_path)) == [
        f".out.mine{TEMPORARY}/a",
        *(f"other/{name}" for name in (MARK, "blend-000000.tar")),
        *(f"out/{name}" for name in (MARK, "blend-000000.tar")),
    ]


def test_a_whole_folder_is_replaced_file_by_file(tmp_path: Path) -> None:
    def fill(names: list[str], overwrite: bool = False) -> None:
        with whole(Claim("export", again=False, overwrite=overwrite), tmp_path / "out") as folder:
            for name in names:
                (folder / name).write_text(name)

    fill(["1.tar", "2.tar", "3.tar"])
    (tmp_path / "out" / "4.tar").write_text("mine")
    with pytest.raises(UserError, match="contains an exported blend already; choose another output, or replace it"):
        fill(["1.tar"])
    fill(["1.tar", "5.tar"], overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == [MARK, "1.tar", "4.tar", "5.tar"]
    assert (tmp_path / "out" / "4.tar").read_text() == "mine"

    def fail() -> None:
        with whole(Claim("export"), tmp_path / "failed") as folder:
            (folder / "1.tar").symlink_to(tmp_path / "nothing")
            (folder / "2.tar").read_bytes()

    with pytest.raises(StorageError, match="No such file"):
        fail()
    assert sorted(os.listdir(tmp_path)) == ["out"]


NO_LOCKS = """
#include <errno.h>
int flock(int handle, int operation) { errno = ENOLCK; return -1; }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to take `flock` away")
def test_a_file_system_without_locks(tmp_path: Path) -> None:
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    library = str(tmp_path / "no_locks.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(tmp_path / "no_locks.c")], check=True)
    script = """
import pathlib, sys
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.owned import HOLDER, locked
folder = pathlib.Path(sys.argv[1])
holder = folder / HOLDER
with locked(folder):
    assert holder.exists()
    try:
        with locked(folder):
            raise AssertionError("held twice")
    except UserError as error:
        assert "another run is using this folder" in str(error) and str(holder) in str(error)
assert not holder.exists()
holder.write_text(sys.argv[2])
try:
    with locked(folder):
        print("taken over")
except UserError as error:
    print("refused")
"""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for holder, said in (
        (f"{socket.gethostname()} {gone.stdout.strip()}", "taken over"),
        (f"elsewhere {gone.stdout.strip()}", "refused"),
        (f"{socket.gethostname()} {os.getpid()}", "refused"),
    ):
        folder = tmp_path / said.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        (folder / ".lock-holder").unlink(missing_ok=True)
        command = [sys.executable, "-c", script, str(folder), holder]
        env = {**os.environ, "LD_PRELOAD": library}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
        assert "has no locks; .lock-holder holds it instead" in done.stderr

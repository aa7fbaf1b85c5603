"""Every command, and everything in Python, that writes a folder: what is the user's stays as it is, to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from nemo_mm_rank import curate, rank
from nemo_mm_rank.benchmark.downstream.settings import VLMSettings
from nemo_mm_rank.benchmark.downstream.vlm.job import TrainingRun
from nemo_mm_rank.benchmark.downstream.vlm.launch import work
from nemo_mm_rank.benchmark.planting import plant
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import MediaSettings, PoolSource, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import TakenColumnError, UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.files import TEMPORARY
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.owned import MARK, Claim, Mark
from nemo_mm_rank.projection.step import Projection
from nemo_mm_rank.report import write_report
from nemo_mm_rank.run import traditional
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.store import ShardStore, Stage
from nemo_mm_rank.steps import Added, Step
from tests.integration.runs import digests, tree

Write = Callable[[Path, Path, Path], object]
"""Writes a folder: the output, a pool and a finished run in."""


def write_pool(file: Path, rows: int = 12, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"modality": "text", "data": f"note {n} on green grass", "annotation": f"grass {n}", **columns}
        for n in range(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def quick(pool: Path, output: Path | str, **changes: Any) -> Result:
    settings = {"projection": {"max_epochs": 1, "folds": 2, "threads": 1}, "jsonl": False, **changes.pop("config", {})}
    return curate(pool, "grass", "50%", config=settings, output=output, progress=False, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pool.jsonl`` and ``run``, a finished run of it."""
    folder = tmp_path_factory.mktemp("doors")
    quick(write_pool(folder / "pool.jsonl"), folder / "run")
    return folder


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a demo pool."""
    folder = tmp_path_factory.mktemp("varied")
    quick(make_demo_pool(folder, 4), folder / "run")
    return folder


def say(*arguments: object) -> None:
    """Run a command in this process."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None:
        raise done.exception


def _traditional(output: Path, pool: Path, _: Path) -> None:
    config = {"pools": str(pool), "output": str(output), "traditional": {"near_duplicates": "off"}}
    traditional.curate(parse(traditional.TraditionalConfig, config))


def _adapt(output: Path, _: Path, run: Path) -> None:
    model = {"class": "tests.adapt.concepts:SmallUnite", "path": "nowhere"}
    config = run.parent / "adapt.json"
    config.write_text(json.dumps({"model": model}))
    say("adapt", run, "-c", config, "-o", output)


def _project(output: Path, _: Path, run: Path) -> None:
    [fitted] = (run / "fitted").glob("projection-*")
    Projection.load(fitted).save(output)


def _training(output: Path, _: Path, __: Path) -> None:
    table = pa.table({"pair_id": ["a"]})
    settings = parse(VLMSettings, {"kind": "vlm", "model": str(Path(__file__).parent)})
    TrainingRun(table, [0], [0], settings, MediaSettings(), 0, 0).save(output)


def _workflow(output: Path, pool: Path, _: Path) -> None:
    pytest.importorskip("nemo_curator")
    from nemo_mm_rank.curator import MultimodalRankWorkflow

    MultimodalRankWorkflow(pool=pool, query="grass", output=output).run()


def _curator(stage: str) -> Write:
    def write(output: Path, _: Path, __: Path) -> None:
        pytest.importorskip("nemo_curator")
        from nemo_curator.tasks import DocumentBatch

        from nemo_mm_rank import curator

        one = {"pair_id": "a", "pool": "p", "modality": "text", "data": "x", "annotation": "y", "error": "sns: X: y"}
        getattr(curator, stage)(str(output)).process(DocumentBatch("b", pa.Table.from_pylist([one])))

    return write


FOLDERS: dict[str, tuple[str, Write]] = {
    "curate": ("run", lambda out, pool, _: say("curate", pool, "-q", "grass", "-b", "50%", "-o", out)),
    "curate in Python": ("run", lambda out, pool, _: quick(pool, out)),
    "workflow": ("run", _workflow),
    "ecodatum": ("ecodatum", lambda out, pool, _: say("ecodatum", pool, "-o", out)),
    "ecodatum of a run": ("ecodatum", lambda out, _, run: say("ecodatum", "--run", run, "-o", out)),
    "traditional": ("traditional", _traditional),
    "benchmark": ("benchmark", lambda out, pool, _: say("benchmark", pool, "-q", "grass", "-b", 2, "-o", out)),
    "export": ("export", lambda out, _, run: say("export", run, "-o", out)),
    "adapt": ("adaptation", _adapt),
    "ingest": ("pool", lambda out, pool, _: ingest([PoolSource(path=str(pool))], out)),
    "plant": ("planted", lambda out, pool, _: plant(str(pool), out)),
    "demo pool": ("demo", lambda out, _, __: make_demo_pool(out, 1)),
    "projection": ("projection", _project),
    "training job": ("training", _training),
    "quarantine": ("quarantine", _curator("QuarantineStage")),
    "blend writer": ("batches", _curator("BlendWriter")),
    "webdataset writer": ("batches", _curator("WebDatasetWriter")),
}
HEAVY = {"benchmark", "adapt", "workflow"}
"""Whose own tests show that they work in new folders, and in those of theirs."""
VARIED = {"ecodatum", "ecodatum of a run"}
"""Which need more than a few texts that are all alike."""
FROM_POOLS = {"curate", "curate in Python", "workflow", "ecodatum", "traditional", "benchmark", "plant"}

everywhere = pytest.mark.parametrize("name", list(FOLDERS))


def refused(name: str, folder: Path, output: Path | str, finished: Path, match: str, pool: Path | None = None) -> None:
    """Check that a door is shut, in one line, and that all in ``folder`` is as it was."""
    before = tree(folder)
    with pytest.raises(UserError, match=match) as caught:
        FOLDERS[name][1](output, pool or finished / "pool.jsonl", finished / "run")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


@everywhere
def test_a_folder_of_somebody_is_left_as_it_is(name: str, finished: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(finished / "run", theirs)  # with every name that a run has
    (theirs / MARK).unlink()
    for file in ("ingest.json", "part-00000.parquet", "pool.jsonl", "truth.parquet", "blend-000000.tar", "a.txt"):
        (theirs / file).write_text("mine")
    (theirs / "pool" / "part-00099.parquet").write_text("mine")
    (theirs / f".a.1a2b3c4d{TEMPORARY}").write_text("mine")
    refused(name, tmp_path, theirs, finished, "is not empty, and nothing shows that nemo-mm-rank made it")
    for kind in ("export", "run"):
        if kind != FOLDERS[name][0]:
            (theirs / MARK).write_text(Mark(kind).text())
            refused(name, tmp_path, theirs, finished, r"contains .*; choose another output")


@everywhere
def test_links_files_and_no_name_are_refused(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    Claim(FOLDERS[name][0]).make(tmp_path / "ours")
    (tmp_path / "to-ours").symlink_to("ours")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "empty")
    refused(name, tmp_path, tmp_path / "link", finished, "is a link; name the folder that it leads to")
    refused(name, tmp_path, tmp_path / "to-ours", finished, "is a link; name the folder that it leads to")
    refused(name, tmp_path, tmp_path / "file", finished, "exists already and is not a folder")
    refused(name, tmp_path, "", finished, "the name is empty; is a variable of the shell unset")
    refused(name, tmp_path, ".", finished, "is the current folder")


@pytest.mark.parametrize("name", sorted(FROM_POOLS))
def test_no_output_has_its_input_in_it(name: str, finished: Path, tmp_path: Path) -> None:
    kind = FOLDERS[name][0]
    for folder in (tmp_path / "theirs", Claim(kind).make(tmp_path / "ours")):
        pool = write_pool(folder / "pool" / "part-00000.jsonl")
        refused(name, tmp_path, folder, finished, "lies in it", pool)
        refused(name, tmp_path, folder, finished, "lies in it", pool.parent)
        refused(name, tmp_path, pool.parent, finished, "lies in it", pool.parent / "*.jsonl")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in HEAVY])
def test_an_empty_folder_and_one_of_ours_are_written(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kind, write = FOLDERS[name]
    finished: Path = request.getfixturevalue("varied" if name in VARIED else "finished")
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", finished / "pool.jsonl", finished / "run")
    mark = Mark.read(tmp_path / "out")
    assert mark is not None
    assert mark.kind == kind
    mine = {"out/notes.txt": "mine", "out/part-00099.parquet": "mine", "out/blend-000099.tar": "mine"}
    for file, text in mine.items():
        (tmp_path / file).write_text(text)
    if kind == "export":
        refused(name, tmp_path, tmp_path / "out", finished, "contains an exported blend already")
        say("export", finished / "run", "-o", tmp_path / "out", "--overwrite")
    else:
        write(tmp_path / "out", finished / "pool.jsonl", finished / "run")
    assert {file: (tmp_path / file).read_text() for file in mine} == mine


def test_a_run_is_taken_up_for_its_own_pools_only(finished: Path, tmp_path: Path) -> None:
    pool, other = write_pool(tmp_path / "a.jsonl"), write_pool(tmp_path / "b.jsonl", 8)
    run = tmp_path / "run"
    quick(pool, run)
    first = digests(run, ("blend.parquet", "quarantine.parquet", "manifest.json"))
    mine = {"notes.txt": "mine", "pool/part-00099.parquet": "mine", "blend.jsonl": "mine", "steps/rank-mine/a": "mine"}
    for file, text in mine.items():
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(text)
    before = tree(tmp_path)
    for arguments in (["curate", other], ["curate", pool, other], ["curate", other, "--dry-run"]):
        with pytest.raises(UserError, match=r"contains a run of the main job already of .*a\.jsonl, not of .*b\.jsonl"):
            say(*arguments, "-q", "grass", "-o", run)
    with pytest.raises(UserError, match=r"choose another output, or replace it with --overwrite"):
        quick(other, run)
    assert tree(tmp_path) == before
    write_pool(pool, 14)  # it has grown
    assert len(quick(pool, run).blend) == 7
    write_pool(pool)
    quick(pool, run)
    assert digests(run, ("blend.parquet", "quarantine.parquet", "manifest.json")) == first
    assert len(quick(other, run, overwrite=True).blend) == 4
    say("curate", pool, "-q", "grass", "-b", "50%", "-o", run, "--overwrite")
    assert len(pd.read_parquet(run / "blend.parquet")) == 6
    rank(run, "a green note")
    assert {file: (run / file).read_text() for file in mine} == mine
    with pytest.raises(UserError, match=r"blend\.jsonl: the file exists already, and no run made it"):
        quick(pool, run, config={"jsonl": True})
    with pytest.raises(UserError, match=r"blend\.jsonl: the file exists already, and no run made it"):
        say("rank", run, "-q", "grass", "--jsonl")
    assert (run / "blend.jsonl").read_text() == "mine"


def test_jobs_are_taken_up_for_their_own_pools_only(varied: Path, tmp_path: Path) -> None:
    other = write_pool(tmp_path / "b.jsonl", 9)
    for name in ("ecodatum", "traditional"):
        FOLDERS[name][1](tmp_path / name, varied / "pool.jsonl", varied / "run")
        refused(name, tmp_path, tmp_path / name, varied, r"already of .*pool\.jsonl, not of .*b\.jsonl", other)
    refused("ecodatum of a run", tmp_path, tmp_path / "ecodatum", varied, r"already of .*pool\.jsonl, not of .*run")
    say("ecodatum", "--run", varied / "run", "-o", tmp_path / "ecodatum", "--overwrite")
    refused("ecodatum", tmp_path, tmp_path / "ecodatum", varied, r"already of .*run, not of .*b\.jsonl", other)


def test_a_planted_pool_is_replaced_where_that_is_said(tmp_path: Path) -> None:
    def pool_of(name: str, content: bytes) -> Path:
        file = tmp_path / name / "pool.jsonl"
        file.parent.mkdir()
        (file.parent / "a.png").write_bytes(content)
        rows = [{"modality": "image", "data": "a.png", "annotation": f"a picture {n}"} for n in range(4)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    one, two = pool_of("one", b"first"), pool_of("two", b"second")
    before = tree(tmp_path)
    plant(str(one), tmp_path / "out", without=())
    with pytest.raises(UserError, match="already of"):
        plant(str(two), tmp_path / "out")
    plant(str(two), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "media" / "0" / "a.png").read_bytes() == b"second"
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before  # though the media are links to them


def test_folders_in_a_run_that_are_links_are_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "part-00000.parquet").write_text("mine")
    for name in ("pool", "steps", "fitted", "ranking"):
        run = tmp_path / f"run-{name}"
        shutil.copytree(finished / "run", run)
        shutil.rmtree(run / name)
        (run / name).symlink_to(tmp_path / "theirs")
        before = tree(tmp_path)
        with pytest.raises(UserError, match=f"{name}: this is a link that no run made"):
            quick(finished / "pool.jsonl", run, overwrite=True)
        with pytest.raises(UserError, match=f"{name}: this is a link that no run made"):
            rank(run, "grass")
        after = tree(tmp_path)
        after.pop(f"run-{name}/.lock", None)
        before.pop(f"run-{name}/.lock", None)
        assert after == before


def test_rank_and_work_write_only_where_there_is_our_mark(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / MARK).unlink()
    before = tree(tmp_path)
    with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it"):
        say("rank", tmp_path / "run", "-q", "grass")
    with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it"):
        work(tmp_path / "run")
    assert tree(tmp_path) == before


def test_a_report_replaces_nothing_but_a_report(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    shutil.copytree(finished / "run", tmp_path / "run")
    run = tmp_path / "run"
    for name, text in {"page.html": "<html>mine</html>", "blend.csv": "mine"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "link.html").symlink_to("nothing.html")
    (run / "report.html").write_text("mine")
    before = tree(tmp_path)
    for output, said in {
        tmp_path / "page.html": "the file exists already, and is not a report of nemo-mm-rank; choose another file",
        tmp_path / "blend.csv": "the file exists already, and is not a report",
        run / "blend.parquet": "the file exists already, and is not a report",
        tmp_path / "link.html": "is a link",
        run: "is a folder; name a file in it",
        "": "the name is empty",
    }.items():
        with pytest.raises(UserError, match=said):
            say("report", run, "-o", output)
    with pytest.raises(UserError, match=r"report\.html: the file exists already, and is not a report"):
        write_report(run)
    assert tree(tmp_path) == before
    (run / "report.html").unlink()
    page = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == page
    write_report(run, tmp_path / "new.html")
    write_report(run, tmp_path / "new.html")
    assert (tmp_path / "new.html").read_bytes() == page
    (run / MARK).unlink()
    with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it"):
        write_report(run)


def test_the_demo_takes_no_folder_of_somebody(tmp_path: Path) -> None:
    for name in ("pool", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pool.jsonl").write_text("mine")
    before = tree(tmp_path)
    for folder in (tmp_path, ""):
        with pytest.raises(UserError, match=r"nothing shows that nemo-mm-rank made it|the name is empty"):
            say("demo", folder)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("writer", ["BlendWriter", "WebDatasetWriter"])
def test_a_writer_that_overwrites_removes_its_own_files_only(writer: str, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("nemo_curator")
    from nemo_mm_rank import curator

    out = tmp_path / "out"
    _curator(writer)(out, finished, finished)
    [ours] = [path for path in out.iterdir() if path.name != MARK]
    mine = ["notes.txt", f"202611300355{ours.suffix}", f"part-00000{ours.suffix}", f"abc{ours.suffix}"]
    for name in mine:
        (out / name).write_text("mine")
    (out / "deep").mkdir()
    (out / "deep" / ours.name).write_text("mine")
    stage = getattr(curator, writer)(str(out), mode="overwrite")
    assert stage.mode == "overwrite"
    assert sorted(tree(out)) == sorted([MARK, f"deep/{ours.name}", *mine])
    assert all((out / name).read_text() == "mine" for name in mine)
    shutil.rmtree(out)
    out.mkdir()
    (out / ours.name).write_text("mine")
    for mode in ("overwrite", "ignore"):
        with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it"):
            getattr(curator, writer)(str(out), mode=mode)
    assert (out / ours.name).read_text() == "mine"


def test_a_quarantine_removes_its_own_files_only(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("nemo_curator")
    from nemo_curator.tasks import DocumentBatch

    from nemo_mm_rank.curator import QuarantineStage

    columns = {"pair_id": "a", "pool": "p", "modality": "text"}
    failed, live = ({**columns, "error": error} for error in ("sns: X: y", None))
    stage = QuarantineStage(tmp_path / "out")
    stage.process(DocumentBatch("b", pa.Table.from_pylist([failed])))
    [file] = (tmp_path / "out").glob("*.parquet")
    (tmp_path / "out" / "mine.parquet").write_text("mine")
    stage.process(DocumentBatch("b", pa.table({k: pa.array([v], pa.string()) for k, v in live.items()})))
    assert sorted(tree(tmp_path / "out")) == [MARK, "mine.parquet"]
    (tmp_path / "out" / MARK).unlink()
    file.write_text("mine")
    stage.process(DocumentBatch("b", pa.table({k: pa.array([v], pa.string()) for k, v in live.items()})))
    assert file.read_text() == "mine"


def test_a_projection_is_not_written_over_somebodys_model(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="nothing shows that nemo-mm-rank made it"):
        _project(tmp_path, finished, finished / "run")
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["quality", "votes", "duplicate_of", "labelled"])
def test_a_column_that_only_ecodatum_adds_is_refused_by_it_alone(name: str, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", 12, **{name: "mine"})
    said = f"ecodatum, in the pool: '{name}' is present already and would be overwritten; rename your own columns"
    with pytest.raises(TakenColumnError, match=said):
        say("ecodatum", pool, "-o", tmp_path / "job")
    if name == "quality":
        assert quick(pool, tmp_path / "run").blend[name].tolist() == ["mine"] * 6
        with pytest.raises(TakenColumnError, match=said):
            say("ecodatum", "--run", tmp_path / "run", "-o", tmp_path / "other")


def test_a_column_of_the_pool_is_not_replaced_by_a_step_of_a_run(tmp_path: Path) -> None:
    class Quality(Step):
        name = "own"
        requires: Mapping[str, pa.DataType] = {"data": pa.string()}
        provides: Mapping[str, pa.DataType] = {"mine": pa.string()}

        def process(self, rows: Frame) -> Added:
            return Added({"mine": pa.nulls(len(rows), pa.string())})

    ingest([PoolSource(path=str(write_pool(tmp_path / "pool.jsonl", mine="mine")))], tmp_path / "pool")
    stage = Stage(Quality(), ShardStore((tmp_path / "pool",), 1), tmp_path / "steps", "x")
    with pytest.raises(TakenColumnError, match="own, in the pool: 'mine' is present already"):
        stage(0)

"""In a folder that has been worked in, only what a change touches is done again."""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ModelError, UserError
from nemo_mm_rank.io.files import read_note, write_table
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.run.curation import explain
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from tests.integration.runs import BROAD, digests, many_texts, settings, tree

SHARDS = 4


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return make_demo_pool(tmp_path / "pool", 4)


@pytest.fixture
def config(pool: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration that has been run."""
    values = settings(pool, tmp_path / "run", shards=SHARDS, budget=9)
    curate(config=values, progress=False)
    return values


def made(run: Path) -> dict[str, int]:
    """Inode of every file that a step or a fit made."""
    return {
        str(path.relative_to(run)): path.stat().st_ino
        for name in ("steps", "fitted")
        for path in (run / name).rglob("*")
        if path.is_file() and not path.name.startswith(".")  # the mark of a folder of ours is no work
    }


def done_again(config: dict[str, Any], **changes: Any) -> dict[str, int]:
    """Run with changes; return how many files of each kind were made, by the first part of their folder's name."""
    run = Path(config["output"])
    before = made(run)
    curate(config={**config, **changes}, progress=False)
    fresh = [name for name, inode in made(run).items() if before.get(name) != inode]
    first = [name.split("/")[1].split("-")[0] for name in fresh]
    kinds = [
        kind if kind == "scoring" or name.startswith("steps/") else "fitted"
        for name, kind in zip(fresh, first, strict=True)
    ]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def test_nothing_changed(config: dict[str, Any]) -> None:
    before = digests(Path(config["output"]))
    assert done_again(config) == {}
    assert digests(Path(config["output"])) == before


QUICK = {"max_epochs": 3, "folds": 2}
SCORING = {"scoring": 1}
RANKED = {"rank": SHARDS, **SCORING}
PROJECTED = {"fitted": 4, "match": SHARDS, "projection": SHARDS, **RANKED}
EMBEDDED = {"experts": SHARDS, **PROJECTED}


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"budget": 3}, {}),
        ({"ranking": {"weights": {"fused": 1}}}, SCORING),
        ({"queries": "beeps"}, RANKED),
        ({"ranking": {"broad": "off"}}, SCORING),
        ({"ranking": {"conditions": {}}}, SCORING),
        ({"engine": {"device": "cpu"}, "media": {"threads": 1}, "projection": {**QUICK, "threads": 2}}, {}),
        ({"projection": {"max_epochs": 2, "folds": 2}}, PROJECTED),
        ({"seed": 1}, PROJECTED),
        ({"sns": {"mode": "off"}}, EMBEDDED),
        ({"sns": {"mode": "backward"}}, {"sns": SHARDS, **EMBEDDED}),
        ({"media": {"video_frames": 2}}, {"sns": SHARDS, **EMBEDDED}),
    ],
)
def test_only_what_a_change_touches(config: dict[str, Any], changes: dict[str, Any], again: dict[str, int]) -> None:
    first = digests(Path(config["output"]))
    assert done_again(config, **changes) == again
    undisturbed = {**config, **changes, "output": config["output"] + "-fresh"}
    assert digests(Path(config["output"])) == digests(curate(config=undisturbed, progress=False).folder)
    curate(config=config, progress=False)  # and back
    assert digests(Path(config["output"])) == first


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"feedback": 3}, {"feedback": SHARDS, **SCORING}),  # fewer pairs say what the query means
        ({"feedback": 0}, SCORING),
        ({"weights": {"fused": 1.0}}, {"feedback": SHARDS, **SCORING}),  # other pairs are the best
    ],
)
def test_only_closeness_to_the_best_is_made_again(
    changes: dict[str, Any], again: dict[str, int], tmp_path: Path
) -> None:
    pool = many_texts(tmp_path / "pool.jsonl")
    config = settings(pool, tmp_path / "run", shards=SHARDS, budget=30, ranking={"broad": BROAD})
    first = curate(config=config, progress=False)
    assert first.manifest["ranking"]["topic"]["breadth"] == 1
    assert len(list(first.folder.glob("steps/feedback-*/part-*"))) == SHARDS
    before = digests(first.folder)
    ranking = {"ranking": {"broad": {**BROAD, **changes}}}
    assert done_again(config, **ranking) == again
    fresh = curate(config={**config, **ranking, "output": str(tmp_path / "fresh")}, progress=False)
    assert digests(first.folder) == digests(fresh.folder)
    curate(config=config, progress=False)  # and back
    assert digests(first.folder) == before


def test_a_media_file_that_changed(config: dict[str, Any], pool: Path) -> None:
    first = digests(Path(config["output"]))
    picture = pool.parent / "image" / "image-002.jpg"
    content = picture.read_bytes()
    picture.write_bytes((pool.parent / "image" / "image-001.jpg").read_bytes())
    # Its shard; what is counted and fitted over all, and the shards after that.
    assert done_again(config) == {"sns": 1, "experts": 1, **PROJECTED, "fitted": 5}
    assert digests(Path(config["output"])) != first
    stat = picture.stat()
    picture.write_bytes(content)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    curate(config=config, progress=False)
    assert digests(Path(config["output"])) == first


def test_a_pool_that_grew(config: dict[str, Any], pool: Path) -> None:
    more = {"pair_id": "new", "modality": "text", "data": "A lake under a grey sky.", "annotation": "A grey lake."}
    pool.write_text(pool.read_text("utf-8") + json.dumps(more) + "\n", encoding="utf-8")
    curate(config=config, progress=False)
    fresh = curate(config={**config, "output": config["output"] + "-fresh"}, progress=False)
    assert digests(Path(config["output"])) == digests(fresh.folder)
    assert sum(fresh.manifest["counts"]["ranked"].values()) == 21


def test_other_shards(config: dict[str, Any]) -> None:
    first = digests(Path(config["output"]))
    for pieces in ({"shards": 2}, {"shards": 9}, {"shards": None, "rows_per_shard": 5}):
        curate(config={**config, **pieces}, progress=False)
        assert digests(Path(config["output"])) == first


def test_a_run_that_fails_leaves_the_blend_and_no_wrong_ranking(config: dict[str, Any]) -> None:
    run = Path(config["output"])
    first = digests(run)
    broken = {**config, "sns": {"mode": "off"}}
    broken["models"] = {**config["models"], "words": {"class": "tests.integration.user_models:Speechless"}}
    with pytest.raises(ModelError, match="speechless failed with KeyError: 'film'"):
        curate(config=broken, progress=False)
    assert digests(run) == first  # the blend of the run before, and the manifest that says so
    with pytest.raises(UserError, match="contains no finished run: start curate again"):
        rank(run, "beeps")
    with pytest.raises(UserError, match="contains no finished run"):
        explain(run, "text-000")
    curate(config=config, progress=False)
    assert digests(run) == first
    assert "rank" in explain(run, "text-001")


def test_a_run_that_was_moved_can_be_ranked(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = curate(config={**config, "output": "run"}, progress=False).folder
    expected = rank(run, "beeps", 5).blend
    moved = shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir("/")
    assert rank(moved, "beeps", 5).blend.equals(expected)


def test_damaged_files_are_made_again(config: dict[str, Any]) -> None:
    run = Path(config["output"])
    first = digests(run)
    for name in ("sns", "experts", "projection", "match", "rank"):
        part = sorted(run.glob(f"steps/{name}-*/part-*"))[1]
        part.write_bytes(part.read_bytes()[:-100])
    curate(config=config, progress=False)
    assert digests(run) == first


def test_damaged_fits_are_made_again(config: dict[str, Any]) -> None:
    run = Path(config["output"])
    first, fitted = digests(run), tree(run / "fitted")
    files = [path for path in sorted((run / "fitted").rglob("*")) if path.is_file() and not path.name.startswith(".")]
    kinds = [str(path.relative_to(run / "fitted")).split("-")[0] for path in files]
    assert kinds == ["matching", "matching", "projection", "projection", "scoring", "text"]
    for damage in ("cut short", "a bit", "gone", "never finished"):
        for path in files:
            content = path.read_bytes()
            if damage == "cut short":
                path.write_bytes(content[:-1])
            elif damage == "a bit":
                path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            elif damage == "gone":
                path.unlink()
            else:
                of = path if path.parent.name == "fitted" else path.parent
                of.with_name(f".{of.name}.seal").unlink(missing_ok=True)
        curate(config=config, progress=False)
        assert digests(run) == first, damage
        assert tree(run / "fitted") == fitted, damage


def test_a_ranking_has_a_fit_of_its_own_and_a_damaged_one_is_not_read(config: dict[str, Any]) -> None:
    run = Path(config["output"])
    first = json.loads((run / "state.json").read_text("utf-8"))
    told = explain(run, "text-001")
    rank(run, "beeps")
    other = json.loads((run / "state.json").read_text("utf-8"))
    assert other["scoring"] != first["scoring"]
    assert [path.name for path in run.glob("fitted/scoring-*")] == [Path(other["scoring"]).name]
    (run / other["scoring"]).write_text("{", encoding="utf-8")
    for read in (partial(explain, run, "text-001"), partial(FinishedRun.load, run)):
        with pytest.raises(UserError, match="is missing or damaged; rank the run again"):
            read()
    rank(run, config["queries"])
    assert explain(run, "text-001") == told
    assert json.loads((run / "state.json").read_text("utf-8")) == first


@pytest.mark.parametrize("ranking", [{}, {"broad": BROAD, "calibration": "quantile"}, {"calibration": "matched"}])
def test_nothing_is_fitted_when_a_run_is_read(tmp_path: Path, ranking: dict[str, Any]) -> None:
    pool = many_texts(tmp_path / "pool.jsonl")
    values = settings(pool, tmp_path / "run", shards=SHARDS, budget=30, ranking=ranking)
    run = curate(config=values, progress=False).folder
    known = [f"p{number:03d}" for number in range(10)]
    told, finished, opened = [explain(run, name) for name in known], FinishedRun.load(run), Run.open(run)
    # The others' cosines change, and with them whatever would be fitted on them now.
    for part in sorted(run.glob("steps/rank-*/part-*"))[1:]:
        table = pq.read_table(part)
        for place, name in enumerate(table.column_names):
            if name.startswith("cosine__"):
                table = table.set_column(place, name, pc.subtract(table[name], pa.scalar(9.0, pa.float32())))
        write_table(part, table, read_note(part))
    again = [explain(run, name) for name in known]
    rank_in_pool = re.compile(r"rank [\d,]+ of")
    assert [rank_in_pool.sub("", one) for one in again] == [rank_in_pool.sub("", one) for one in told]
    mine = opened.scored.places[:, 0] == 0
    assert Run.open(run).scored.scores[mine].tolist() == opened.scored.scores[mine].tolist()
    assert Run.open(run).scored.scores[~mine].tolist() != opened.scored.scores[~mine].tolist()
    # New pairs need no shard at all.
    state = State.load(RunFolder(run))
    rows = state.open(RunFolder(run)).read(0)
    shutil.rmtree(run / "steps")
    read = FinishedRun.load(run)
    assert read.scoring.as_json() == finished.scoring.as_json()
    scores = QueryStep(read.config, read.models, read.scoring)(frames.from_table(rows))["score"].tolist()
    assert scores == opened.scored.scores[mine].tolist()

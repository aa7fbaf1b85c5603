"""A pool of WebDataset tars through the whole job, and the blend back into tars: the same pairs as from files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import webdataset

from nemo_mm_rank import curate
from nemo_mm_rank.cli import export
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.export import export as export_run
from tests.integration.runs import say, settings
from tests.tars import Member, damage, header_at, write_tar

BUDGET = 8


def as_tars(pool: Path, folder: Path) -> list[Path]:
    """Write a JSONL pool's pairs as two tars with the same ids; what the rows lack, the samples lack."""
    samples: list[list[Member]] = []
    for line in pool.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        key, sample = row["pair_id"], []
        media = pool.parent / row["data"] if row["modality"] in ("image", "audio", "video") else None
        sample.append((f"{key}.txt", row.pop("annotation").encode()))
        if media is not None:
            del row["data"]
            if media.exists():
                sample.append((f"{key}{media.suffix}", media.read_bytes()))
        samples.append([(f"{key}.json", json.dumps(row).encode()), *sample])
    half = len(samples) // 2
    parts = {"a.tar": samples[:half], "b.tar": samples[half:]}
    return [write_tar(folder / name, [one for sample in part for one in sample]) for name, part in parts.items()]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("files") / "pool", 3)


@pytest.fixture(scope="module")
def tars(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_tars(pool, tmp_path_factory.mktemp("tars") / "demo")[0].parent


@pytest.fixture(scope="module")
def run(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run over the tars, in shards that cut across them."""
    output = tmp_path_factory.mktemp("run") / "run"
    return curate(config=settings(tars, output, shards=3, budget=BUDGET), progress=False)


@pytest.fixture(scope="module")
def files(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run over the same pairs as JSONL and files."""
    output = tmp_path_factory.mktemp("run") / "run"
    return curate(config=settings(pool, output, shards=3, budget=BUDGET), progress=False)


def test_the_same_blend_as_from_files(run: Result, files: Result) -> None:
    names = [name for name in run.blend.columns if name != "data"]
    pd.testing.assert_frame_equal(run.blend[names], files.blend[names])
    assert set(files.blend.columns) == {*names, "data"}
    assert set(run.quarantine["pair_id"]) == set(files.quarantine["pair_id"])
    counts, expected = run.manifest["counts"], files.manifest["counts"]
    assert counts["ranked"] == expected["ranked"]
    assert counts["pool"] == expected["pool"]


def test_nothing_is_lost(run: Result, pool: Path) -> None:
    counts = run.manifest["counts"]
    rows = len(pool.read_text(encoding="utf-8").splitlines())
    assert counts["pool"]["rows"] == rows == sum(counts["ranked"].values()) + counts["quarantined"]
    assert len(run.blend) == BUDGET
    told = run.quarantine.set_index("pair_id")["message"]
    assert told["bad-missing"].startswith("data: expected a member with the image, or")
    assert told["bad-empty"] == "annotation: expected a non-empty string, found ' '"
    assert "cannot be decoded" in told["bad-corrupt"] or "cannot be opened" in told["bad-corrupt"]


def test_an_export_holds_the_blend(run: Result, tmp_path: Path) -> None:
    done = say("export", run.folder, "--format", "webdataset", "--output", tmp_path / "out", "--max-samples", 5)
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / "out" / name for name in ("blend-000000.tar", "blend-000001.tar")]
    assert done.stdout.splitlines() == [str(path) for path in paths]
    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    rows = [json.loads(sample["json"]) for sample in samples]
    assert [row["pair_id"] for row in rows] == run.blend["pair_id"].tolist()
    assert [row["rank"] for row in rows] == list(range(1, BUDGET + 1))
    assert [row["score"] for row in rows] == run.blend["score"].tolist()
    assert [sample["txt"].decode() for sample in samples] == run.blend["annotation"].tolist()
    kept = set(run.blend.columns) - {"data", "annotation"}
    assert all(set(row) - {"data"} == kept for row in rows)
    again = say("export", run.folder, "-o", tmp_path / "out")
    assert (again.returncode, again.stderr.strip()) == (
        2,
        f"error: {tmp_path}/out: contains an exported blend already; choose another output, or replace it with "
        "--overwrite (in Python: overwrite=True)",
    )
    with pytest.raises(UserError, match="a blend can be exported as webdataset"):
        export(str(run.folder), str(tmp_path / "other"), ["jsonl"])


def test_an_export_of_a_blend_from_files_has_their_bytes(files: Result, pool: Path, tmp_path: Path) -> None:
    [path] = export_run(files.folder, tmp_path / "out")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    kinds = set()
    for sample, modality, data in zip(samples, files.blend["modality"], files.blend["data"], strict=True):
        if modality in ("image", "audio", "video"):
            assert sample[Path(data).suffix[1:]] == (pool.parent / data).read_bytes()
        else:
            assert json.loads(sample["json"])["data"] == data
        kinds.add(modality)
    assert len(kinds) > 1


def test_only_a_finished_run_is_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "config.yaml").write_text("pools: x\nqueries: y\n")
    with pytest.raises(UserError, match="the ranking is not finished"):
        export_run(tmp_path, tmp_path / "out")


def test_a_changed_tar_is_noticed(tars: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pool" / "demo"
    shutil.copytree(tars, copy)
    config = settings(copy, tmp_path / "run", budget=BUDGET, sns={"mode": "off"})

    def parts() -> dict[str, int]:
        curate(config=config, progress=False)
        return {path.parent.name + path.name: path.stat().st_ino for path in (tmp_path / "run").rglob("part-*")}

    first = parts()
    assert parts() == first
    # A picture that changes and keeps its size: the archive's headers and texts are as they were.
    stat = (copy / "b.tar").stat()
    damage(copy / "b.tar", header_at(copy / "b.tar", "image-000.jpg") + 512 + 300, b"\xff")
    os.utime(copy / "b.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = parts()
    assert all(changed[name] != inode for name, inode in first.items() if name in changed)

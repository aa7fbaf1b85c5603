"""Cut scores that a run fits on its pool: the same however the pool lies and whoever reads them, shown and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from nemo_mm_rank import curate
from nemo_mm_rank.config import ExpertSpec
from nemo_mm_rank.errors import DamagedError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.report import write_report
from nemo_mm_rank.report.trimmed import CUTS
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, SNS_REASON
from nemo_mm_rank.sns.standards import Standards
from tests.command_line import CommandLine
from tests.integration.runs import digests, settings
from tests.report.pages import Elements
from tests.sns.pairs import planted, rows_of

SPANS = ["pair_id", DATA_SPANS, ANNOTATION_SPANS, SNS_REASON]
SENSE = {
    "models": {"text": {"class": "hashed-text", "dim": 512}},
    "experts": [ExpertSpec(name="sense", kind="end-to-end", encoder="text").model_dump()],
    "sns": {"mode": "bidirectional", "select": "pool"},
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = rows_of(80, 0)
    rows[:24] = planted(rows, "annotation")[:24]
    file = tmp_path_factory.mktemp("cuts") / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuts-run") / "run"
    return curate(config=settings(pool, folder, shards=1, **SENSE), progress=False).folder


def spans(run: Path) -> list[dict[str, Any]]:
    folder = RunFolder.at(run)
    rows: list[dict[str, Any]] = State.load(folder).open(folder).table(SPANS).to_pylist()
    return sorted(rows, key=lambda row: str(row["pair_id"]))


def test_foreign_sentences_are_cut_and_little_else(run: Path) -> None:
    cut = [row["pair_id"] for row in spans(run) if row[ANNOTATION_SPANS]]
    assert sum(pair < "p0024" for pair in cut) >= 10  # of 24: a third of the pool is a hard sample to learn from
    assert sum(pair >= "p0024" for pair in cut) <= 2


@pytest.mark.parametrize("changes", [{"shards": 7}, {"shards": 5, "engine": {"workers": 2}}])
def test_however_the_pool_lies(pool: Path, run: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "engine" in changes:
        pytest.importorskip("distributed", reason="needs the extra 'dask'")
    other = curate(config=settings(pool, tmp_path / "run", **SENSE, **changes), progress=False).folder
    cuts = [next((folder / "fitted").glob("sns-*.safetensors")).read_bytes() for folder in (run, other)]
    assert cuts[0] == cuts[1]
    assert spans(other) == spans(run)
    assert digests(other) == digests(run)


def test_curators_stages_cut_as_the_run_did(run: Path) -> None:
    pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")
    from nemo_curator.tasks import DocumentBatch

    from nemo_mm_rank.curator import MultimodalRankStage

    first = MultimodalRankStage(run=run).decompose()[0]
    rows = read_table(run / "pool" / "part-00000.parquet")
    batch = DocumentBatch(dataset_name="d", data=rows)
    first.setup()
    table: pa.Table = first.process(batch).to_pyarrow()
    assert sorted(table.select(SPANS).to_pylist(), key=lambda row: row["pair_id"]) == spans(run)


def test_a_moved_run_finds_them_and_a_damaged_file_is_named(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    found = Path(str(FinishedRun.load(moved).config.sns.cuts))
    assert found.is_relative_to(moved)
    assert sorted(Standards.load(found).standards) == ["text/annotation", "text/data"]
    found.write_bytes(found.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="sns-"):
        FinishedRun.load(moved)


def test_page_and_preview_say_what_they_are_to_do(
    pool: Path, run: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    standards = Standards.load(next((run / "fitted").glob("sns-*.safetensors"))).standards
    head, *rows = Elements(write_report(run, tmp_path / "page.html").read_text(encoding="utf-8")).tables[CUTS]
    assert [row[0] for row in rows] == ["text: annotation", "text: data"]
    assert [row[head.index("ROC AUC")] for row in rows] == [f"{one.told:.2f}" for _, one in sorted(standards.items())]
    assert [row[head.index("own parts lost")] for row in rows] == [
        f"{100 * o.lost:.1f} %" for _, o in sorted(standards.items())
    ]
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings(pool, tmp_path / "none", **SENSE)), encoding="utf-8")
    status, said = command_line("sns", "-c", config, "--preview", 2)
    assert status == 0, said
    for name, one in standards.items():
        line = next(line for line in said.splitlines() if line.strip().startswith(name.replace("/", ": ")))
        assert line.split()[2:4] == ["80", f"{one.told:.2f}"]


def test_a_file_of_another_run_is_used_as_it_is(pool: Path, run: Path, tmp_path: Path) -> None:
    cuts = next((run / "fitted").glob("sns-*.safetensors"))
    sns = {"mode": "bidirectional", "cuts": str(cuts)}
    other = curate(config=settings(pool, tmp_path / "run", **{**SENSE, "sns": sns}), progress=False).folder
    assert not list((other / "fitted").glob("sns-*"))
    assert spans(other) == spans(run)

"""The real pairs that come with the project: whole, licensed, and ranked by what they show."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nemo_mm_rank import curate, rank
from nemo_mm_rank.demo import real_pool
from nemo_mm_rank.run.curation import Result
from tests.command_line import CommandLine

FREE = {"CC0 1.0", "public domain", "CC BY 3.0", "CC BY-SA 3.0", "MIT", "Apache-2.0"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return curate(real_pool(), "galaxies in deep space", 4, output=tmp_path_factory.mktemp("real"), progress=False)


def test_every_pair_is_of_a_free_licence_that_names_its_author() -> None:
    rows = [json.loads(line) for line in real_pool().read_text(encoding="utf-8").splitlines()]
    assert pd.Series([row["modality"] for row in rows]).value_counts().to_dict() == dict.fromkeys(
        ["image", "audio", "text", "code"], 10
    )
    assert {row["licence"] for row in rows} == FREE
    named = (real_pool().parent / "README.md").read_text(encoding="utf-8")
    assert all(row["author"].split(",")[0] in named for row in rows if row["modality"] in ("image", "audio"))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in real_pool().parent.rglob("*") if path.is_file()) < 1_500_000


def test_every_pair_is_ranked(run: Result) -> None:
    assert run.quarantine.empty
    assert run.manifest["counts"]["ranked"] == {"audio": 10, "code": 10, "image": 10, "text": 10}


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("galaxies in deep space", "image-hubble_deep_field"),
        ("the face of a tabby cat", "image-chelsea"),
        ("an alarm clock", "audio-alarm-clock-elapsed"),
    ],
)
def test_what_is_asked_for_comes_first(run: Result, query: str, best: str) -> None:
    assert rank(run.folder, query, 1).blend["pair_id"].tolist() == [best]


@pytest.mark.slow
def test_demo_of_real_pairs(tmp_path: Path, command_line: CommandLine) -> None:
    status, printed = command_line("demo", tmp_path / "demo", "--real")
    assert status == 0, printed
    assert len(pd.read_parquet(tmp_path / "demo" / "real-run" / "blend.parquet")) == 8
    assert "on topic" not in printed

"""The text-only baseline as a job: from a pool, or a finished run's, to files that can be relied on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from nemo_mm_rank import curate as rank_pool
from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.quality.text_filters import passed_column
from nemo_mm_rank.run.traditional import TraditionalConfig, TraditionalResult, curate
from tests.integration.runs import settings as run_settings
from tests.quality.annotations import FAULTS, PARAGRAPH, write_pool

pytest.importorskip("nemo_curator")

POOL = {
    **{name: text for name, (text, _) in FAULTS.items()},
    "again": PARAGRAPH,
    "blank": " ",
    "binary": "a\0b",
}


def job(pool: Path, output: Path, **changes: Any) -> TraditionalResult:
    return curate(parse(TraditionalConfig, {"pools": str(pool), "budget": 5, "output": str(output), **changes}))


def test_a_pool_becomes_a_blend_with_the_users_columns(tmp_path: Path) -> None:
    result = job(write_pool(tmp_path, POOL), tmp_path / "run")
    blend = result.blend
    assert list(blend.columns[:7]) == ["pair_id", "rank", "score", "modality", "pool", "data", "annotation"]
    assert blend["pair_id"].tolist() == ["again", "other", "german", "good", "urls"]
    assert blend["filters_passed"].tolist() == [30, 30, 29, 28, 28]
    assert blend["annotation"].tolist() == [POOL[name] for name in blend["pair_id"]]
    assert blend["mine"].tolist() == [list(POOL).index(name) for name in blend["pair_id"]]
    assert blend[passed_column("exact_duplicate")].tolist() == [True, True, True, False, True]


def test_nothing_is_lost(tmp_path: Path) -> None:
    result = job(write_pool(tmp_path, POOL), tmp_path / "run", budget="100%")
    assert sorted([*result.blend["pair_id"], *result.quarantine["pair_id"]]) == sorted(POOL)
    reasons = {row["pair_id"]: (row["step"], row["error"]) for row in result.quarantine.to_dict("records")}
    assert reasons["binary"] == ("traditional", "TextError")
    assert reasons["blank"][0] != "traditional"  # refused at the door
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["counts"]
    assert counts["pool"] == {"rows": len(POOL), "bad_rows": 1}
    assert counts["quarantined"] == 2
    assert sum(entry["pairs"] for entry in counts["filters"].values()) == len(POOL) - 2
    assert counts["duplicates"] == {"exact_duplicate": 1, "near_duplicate": 5}
    assert sum(counts["blend"].values()) == len(POOL) - 2


@pytest.mark.parametrize("shards", [3, 7])
def test_any_number_of_shards_gives_the_same_bytes(tmp_path: Path, shards: int) -> None:
    pool = write_pool(tmp_path, POOL)
    digests = []
    for count in (1, shards):
        job(pool, tmp_path / f"run-{count}", shards=count)
        names = ("blend.parquet", "duplicates.parquet", "quarantine.parquet", "manifest.json")
        digests.append([hashlib.sha256((tmp_path / f"run-{count}" / name).read_bytes()).hexdigest() for name in names])
    assert len(list((tmp_path / f"run-{shards}" / "pool").glob("part-*"))) == shards
    assert digests[0] == digests[1]


def test_a_finished_job_is_taken_up(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, POOL)
    first = job(pool, tmp_path / "run", shards=2)
    files = sorted((tmp_path / "run" / "steps").rglob("part-*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    again = job(pool, tmp_path / "run", shards=2, budget=3)
    assert [file.stat().st_mtime_ns for file in files][1:] == times[1:]
    assert again.blend["pair_id"].tolist() == first.blend["pair_id"].tolist()[:3]


def test_the_pool_of_a_finished_run_is_used_and_its_budget_filled(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, {name: text for name, text in POOL.items() if name != "binary"})
    ranked = rank_pool(config=run_settings(pool, tmp_path / "ranked", budget=4, sns={"mode": "off"}), progress=False)
    config = {"run": str(tmp_path / "ranked"), "budget": len(ranked.blend), "output": str(tmp_path / "baseline")}
    result = curate(parse(TraditionalConfig, config))
    assert result.blend["pair_id"].tolist() == job(pool, tmp_path / "alone", budget=4).blend["pair_id"].tolist()
    assert result.quarantine["pair_id"].tolist() == ["blank"]
    assert not (tmp_path / "baseline" / "pool").exists()
    assert result.manifest["inputs"] == ranked.manifest["inputs"]
    with pytest.raises(UserError, match="contains a run of the main job; choose another output"):
        curate(parse(TraditionalConfig, {**config, "output": str(tmp_path / "ranked")}))


def test_the_printed_table_counts_by_filter_and_modality(tmp_path: Path) -> None:
    console = Console(record=True, width=100)
    job(write_pool(tmp_path, POOL), tmp_path / "run").print(console)
    lines = {line.split()[0]: line.split()[1:] for line in console.export_text().splitlines() if line.strip()}
    assert lines["(pairs)"] == ["8", "4"]
    assert lines["word_count"] == ["7", "4"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either pools or the folder of a finished run"),
        ({"pools": "a.jsonl", "run": "b"}, "give either pools or the folder of a finished run"),
        ({"pools": "a.jsonl", "filters": {}}, "filters: unknown key"),
        ({"pools": "a.jsonl", "tradional": {}}, "tradional: unknown key; did you mean 'traditional'?"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TraditionalConfig, values)
    assert message in str(caught.value)


def test_a_pool_column_with_a_name_of_ours_goes_by_another(tmp_path: Path) -> None:
    manifest = tmp_path / "pool.jsonl"
    pd.DataFrame(
        [{"pair_id": "a", "modality": "text", "data": "x", "annotation": "y", "traditional__urls_ratio": 1.0}]
    ).to_json(manifest, orient="records", lines=True)
    job(manifest, tmp_path / "run")
    assert pd.read_parquet(tmp_path / "run" / "pool" / "part-00000.parquet")[
        "original_traditional__urls_ratio"
    ].tolist() == [1.0]

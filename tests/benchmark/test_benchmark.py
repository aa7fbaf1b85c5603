"""A small benchmark from end to end: all strategies, two seeds, killed on the way, on workers, and twice the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from typer.testing import CliRunner

from nemo_mm_rank.benchmark.job import benchmark
from nemo_mm_rank.benchmark.measures import COSTS, SCHEMA
from nemo_mm_rank.benchmark.settings import BenchmarkConfig, Strategy
from nemo_mm_rank.benchmark.tables import Results
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.files import read_note, read_table, table_digest
from nemo_mm_rank.measures.selection import Labels, selection
from nemo_mm_rank.measures.statistics import mean_interval, paired_difference

SEEDS = (0, 3)


def settings(output: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "demo": 14,
        "queries": ["natural outdoor scenes with sky, sea, grass or sun"],
        "budget": "10%",
        "output": str(output),
        "seeds": list(SEEDS),
        "relevant": {"column": "on_topic", "values": [True]},
        "plant": {"total": 0.4},
        "validation": {"pairs": 5},
        "projection": {"max_epochs": 2, "folds": 2},
        "downstream": {"steps": 6, "evaluations": 2, "tokens": 128, "width": 32, "vocabulary": 128},
        "bootstrap": 100,
        "rows_per_shard": 32,
    }
    return {**values, **changes}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything in this process."""
    folder = tmp_path_factory.mktemp("benchmark") / "first"
    return benchmark(parse(BenchmarkConfig, settings(folder))).folder


def measured(folder: Path) -> pa.Table:
    """Return the results, without what takes another time each time."""
    results = read_table(folder / "results.parquet")
    return results.filter(pc.invert(pc.is_in(results["measure"], pa.array(COSTS))))


def test_every_blend_has_exactly_the_budget(first: Path) -> None:
    facts = json.loads((first / "benchmark.json").read_text())
    pool = set(read_table(first / "truth.parquet")["pair_id"].to_pylist())
    assert facts["budget"] == len(pool) // 10
    assert len(list((first / "blends").iterdir())) == len(Strategy) * len(SEEDS)
    for strategy in Strategy:
        for seed in SEEDS:
            path = first / "blends" / f"{strategy}-{seed}.parquet"
            blend = read_table(path)
            assert blend["rank"].to_pylist() == list(range(1, facts["budget"] + 1))
            assert len(set(blend["pair_id"].to_pylist()) & pool) == facts["budget"]
            note = read_note(path)
            assert note is not None
            assert note["digest"] == table_digest(blend) == facts["blends"][f"{strategy}-{seed}"]


def test_what_was_planted_is_said(first: Path) -> None:
    facts = json.loads((first / "benchmark.json").read_text())
    truth = read_table(first / "truth.parquet")
    kinds = [kind for kinds in truth["kinds"].to_pylist() for kind in kinds]
    assert facts["planted"]["counts"] == {kind: kinds.count(kind) for kind in facts["planted"]["counts"]}
    assert sum(facts["planted"]["counts"].values()) == len(kinds) > 20
    said = (first / "table1.md").read_text()
    for kind, count in facts["planted"]["counts"].items():
        assert f"{kind} {count}" in said
    for one in facts["planted"]["short"]:
        assert one in said


def test_draws_follow_the_seed_and_the_others_do_not(first: Path) -> None:
    def ids(strategy: str, seed: int) -> list[str]:
        found: list[str] = read_table(first / "blends" / f"{strategy}-{seed}.parquet")["pair_id"].to_pylist()
        return found

    for strategy in ("random", "stratified"):
        assert ids(strategy, 0) != ids(strategy, 3)
    for strategy in ("traditional", "best-expert", "ecodatum"):
        assert ids(strategy, 0) == ids(strategy, 3)


def test_validation_pairs_are_clean_on_topic_and_nowhere_else(first: Path) -> None:
    held_out = read_table(first / "validation" / "part-00000.parquet")
    assert held_out["on_topic"].to_pylist() == [True] * 5
    truth = read_table(first / "truth.parquet")
    leaks = read_table(first / "leaks.parquet")
    assert leaks["removed"].to_pylist() == [True] * len(leaks)  # none is left
    ids = held_out["pair_id"].to_pylist()
    assert set(ids) <= set(leaks["pair_id"].to_pylist())
    assert not set(leaks["pair_id"].to_pylist()) & set(truth["pair_id"].to_pylist())
    assert not set(ids) & {donor for donor in truth["donor"].to_pylist() if donor}
    pool = read_table(first / "pool" / "part-00000.parquet", ["annotation"])["annotation"].to_pylist()
    assert not set(held_out["annotation"].to_pylist()) & set(pool)


def test_results_are_what_blends_and_runs_say(first: Path) -> None:
    results = read_table(first / "results.parquet")
    assert results.schema.equals(SCHEMA)
    found = Results(results, SEEDS)
    truth = read_table(first / "truth.parquet")
    labels = Labels.of(truth, truth["relevant"].to_numpy(zero_copy_only=False))
    for strategy in Strategy:
        blends = [read_table(first / "blends" / f"{strategy}-{seed}.parquet")["pair_id"].to_pylist() for seed in SEEDS]
        values = [selection(blend, labels) for blend in blends]
        for measure in ("precision", "recall", "average_precision"):
            assert found.of(strategy, measure) == [value[measure] for value in values]
        mended = found.of(strategy, "precision_repaired")
        plain = [value["precision"] for value in values]
        assert mended == plain or (strategy.sns != "off" and all(a >= b for a, b in zip(mended, plain, strict=True)))
        shares = [sum(found.of(strategy, "share", None, m)[seed] for m in found.modalities()) for seed in range(2)]
        assert shares == pytest.approx([1, 1])
        runs = [json.loads((first / "downstream" / f"{strategy}-{seed}.json").read_text()) for seed in SEEDS]
        assert found.of(strategy, "perplexity", 6) == [run["values"][-1] for run in runs]
        assert found.of(strategy, "best_perplexity") == [min(run["values"]) for run in runs]
        assert found.of(strategy, "tokens", 6) == [6 * 128.0] * 2
        assert min(found.of(strategy, "seconds")) > 0
    assert found.steps() == [3, 6]
    spaces = {name.split("__", 1)[1] for name in results["measure"].to_pylist() if name.startswith("gap__")}
    assert spaces == {"fused", "words", "features__text"}
    assert found.of("ranked", "model_items")[0] > 0
    assert found.of("random", "model_items") == [0, 0]


def test_the_table_says_what_the_statistics_say(first: Path) -> None:
    table = (first / "table1.md").read_text()
    found = Results(read_table(first / "results.parquet"), SEEDS)
    ours, theirs = found.of("ranked", "best_perplexity"), found.of("random", "best_perplexity")
    mean = mean_interval(ours)
    assert f"{mean.value:.3f} ± {mean.high - mean.value:.3f}" in table
    difference = paired_difference(ours, theirs)
    line = next(line for line in table.splitlines() if line.startswith("| ranked - random |"))
    assert f"{difference.value:+.3f} | [{difference.low:+.3f}, {difference.high:+.3f}]" in line
    assert ("not separable" in line) == (not difference.separable)
    assert "leaks left: 0" in table
    assert "<html" in (first / "report.html").read_text()[:200]


def test_killed_on_workers_and_taken_up_it_is_the_same(first: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    folder = tmp_path / "second"
    values = settings(folder)
    config.write_text(yaml.safe_dump({**values, "engine": {"workers": 2}}))
    command = [sys.executable, "-m", "nemo_mm_rank.cli", "benchmark", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        while process.poll() is None and len(list((folder / "downstream").glob("*.json"))) < 3:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0].decode()
        os.killpg(process.pid, signal.SIGKILL)
    done = {
        path: path.stat().st_mtime_ns
        for name in ("blends", "downstream")
        for path in (folder / name).iterdir()
        if not path.name.startswith(".")
    }
    assert len(done) >= len(Strategy) * len(SEEDS) + 3
    assert not (folder / "table1.md").exists()
    benchmark(parse(BenchmarkConfig, values))
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert (folder / "table1.md").read_text() == (first / "table1.md").read_text()
    assert measured(folder).equals(measured(first))


def test_without_a_truth_there_is_no_table_of_it(tmp_path: Path) -> None:
    changes = {
        "plant": None,
        "relevant": None,
        "downstream": "off",
        "strategies": ["random", "stratified"],
        "stratified": {"by": "cluster", "clusters": 3, "shares": "proportional"},
    }
    found = benchmark(parse(BenchmarkConfig, settings(tmp_path, **changes)))
    assert "Selection" not in found.table
    assert "perplexity" not in found.table
    assert "Overlap of blends" in found.table
    assert all(read_table(tmp_path / "truth.parquet")["clean"].to_pylist())


def test_mistakes_are_said_before_any_work(tmp_path: Path) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"demo": None}, "give either pools or demo"),
        ({"pools": "x.jsonl"}, "give either pools or demo"),
        ({"seeds": [1, 1]}, "seeds: each may be named only once"),
        ({"budget": {"threshold": 0.5}}, "scores of different strategies cannot be compared"),
        ({"relevant": {"column": "on_topic"}}, "give either values or a pattern"),
        ({"relevant": {"column": "annotation", "pattern": "(dog"}}, "pattern: "),
        ({"strategies": ["rank"]}, "strategies"),
    ]
    for changes, message in mistakes:
        values = {key: value for key, value in settings(tmp_path, **changes).items() if value is not None}
        with pytest.raises(ConfigError, match=message):
            parse(BenchmarkConfig, values)
    misfits: list[tuple[dict[str, Any], str]] = [
        ({"relevant": {"column": "on_topik", "values": [True]}}, "did you mean 'on_topic'"),
        ({"relevant": {"column": "on_topic", "pattern": "x"}}, "is bool, not text"),
        ({"validation": {"pairs": 500}}, "500 of 28 pairs on topic"),
    ]
    for changes, message in misfits:
        with pytest.raises(UserError, match=message):
            benchmark(parse(BenchmarkConfig, settings(tmp_path / "run", strategies=["random"], **changes)))


def test_a_planted_leak_is_found_and_taken_out(first: Path, tmp_path: Path) -> None:
    """Validation pairs of the user's own, one of which is a picture of the pool under another name and caption."""
    demo = first / "demo"
    rows = [json.loads(line) for line in (demo / "pool.jsonl").read_text().splitlines()]
    picture = next(row for row in rows if row["pair_id"] == "image-000")
    own = tmp_path / "own"
    own.mkdir()
    (own / "copy.jpg").write_bytes((demo / picture["data"]).read_bytes())
    held_out = {"pair_id": "mine", "modality": "image", "data": "copy.jpg", "annotation": "Nobody else says this."}
    (own / "held_out.jsonl").write_text(json.dumps(held_out) + "\n")
    values = settings(
        tmp_path / "run",
        strategies=["random"],
        downstream="off",
        validation={"pools": str(own / "held_out.jsonl")},
    )
    benchmark(parse(BenchmarkConfig, values))
    leaks = read_table(tmp_path / "run" / "leaks.parquet").to_pylist()
    assert {"pair_id": "image-000", "held_out": "mine", "what": "data", "removed": True} in leaks
    assert "image-000" not in read_table(tmp_path / "run" / "truth.parquet")["pair_id"].to_pylist()
    assert np.all([leak["removed"] for leak in leaks])


def test_a_pool_on_the_command_line_takes_the_place_of_the_built_in_one(first: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    values = settings(tmp_path / "run", strategies=["random"], downstream="off", validation={"pairs": 3})
    config.write_text(yaml.safe_dump(values))
    arguments = [str(first / "demo" / "pool.jsonl"), "--config", str(config), "--budget", "7", "--seeds", "1"]
    result = CliRunner().invoke(app, ["benchmark", *arguments])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert facts["budget"] == 7
    assert facts["config"]["seeds"] == [0]
    assert facts["config"]["pools"][0]["path"] == str(first / "demo" / "pool.jsonl")
    assert "and on topic" not in result.output  # nothing is known of that

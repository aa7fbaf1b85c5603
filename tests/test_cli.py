"""The command line as a user types it: what it prints, what it leaves, and its exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from nemo_mm_rank.demo import make_demo_pool
from tests.integration.runs import say, settings

QUICK = {"projection": {"max_epochs": 2, "folds": 2, "threads": 1}, "budget": 6}


def written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("pool"), pairs_per_modality=5)


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = say("curate", "--config", written(folder / "run.yaml", settings(pool, folder / "run", **QUICK)))
    assert done.returncode == 0, done.stderr
    for part in ("Pairs", "Quarantined", "Spaces (held-out pairs only, 2 folds)", "Blend: the first 6 of 6"):
        assert part in done.stdout
    return folder / "run"


def stopped(*arguments: object) -> str:
    """Run a command that a mistake stops; return its one line."""
    done = say(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr.strip()


def test_options_go_before_the_file(pool: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {**settings(pool, tmp_path / "unused", **QUICK), "sns": {"mode": "off"}})
    options = ["--query", "a red circle", "--avoid", "the sea", "--budget", "10%", "--output", tmp_path / "run"]
    done = say("curate", pool, "--config", file, *options, "--sns", "backward", "--seed", "3", "--jsonl")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [(query["text"], query["weight"]) for query in manifest["config"]["queries"]] == [
        ("a red circle", 1.0),
        ("the sea", -1.0),
    ]
    assert manifest["config"]["seed"] == 3
    assert manifest["config"]["sns"]["mode"] == "backward"
    blend = pd.read_parquet(tmp_path / "run" / "blend.parquet")
    lines = pd.read_json(tmp_path / "run" / "blend.jsonl", lines=True)
    assert len(blend) == manifest["blend"]["pairs"] == 2
    assert lines["pair_id"].tolist() == blend["pair_id"].tolist()
    assert {"on_topic", "fault"} <= set(blend.columns)
    assert not (tmp_path / "unused").exists()


def test_a_dry_run_writes_nothing(pool: Path, tmp_path: Path) -> None:
    done = say("curate", pool, "-q", "sea", "-o", tmp_path / "run", "--sns", "forward", "--dry-run")
    assert done.returncode == 0
    assert "step     sns: adds sns_data_spans" in done.stdout
    assert "step     experts: adds emb_data__words" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(pool: Path, tmp_path: Path) -> None:
    assert stopped("curate", pool) == "error: queries: missing"
    assert "no such" in stopped("curate", tmp_path / "none.jsonl", "-q", "x", "-o", tmp_path / "r").lower()
    assert not (tmp_path / "r").exists()
    assert "a budget is a number of pairs or a share like 20%" in stopped("curate", pool, "-q", "x", "-b", "lots")
    assert "write it as ours=theirs" in stopped("curate", pool, "-q", "x", "--field", "caption")
    file = written(tmp_path / "c.yaml", {"pools": str(pool), "queries": "x", "rankin": {}})
    assert stopped("curate", "-c", file) == "error: rankin: unknown key; did you mean 'ranking'?"
    assert "is not a run" in stopped("rank", tmp_path, "-q", "x")
    bad = stopped("curate", pool, "-q", "x", "-o", tmp_path / "r", "--on-bad-row", "fail")
    assert "3 of 29 rows are bad" in bad
    assert not (tmp_path / "r" / "blend.parquet").exists()


def test_validate(pool: Path, tmp_path: Path) -> None:
    done = say("validate", pool)
    assert done.returncode == 1
    assert re.findall(r"^\S*pool.jsonl:\d+: pair .(\S+).:", done.stdout, re.M) == [
        "bad-missing",
        "bad-empty",
        "text-000",
    ]
    assert "29 rows: 26 good, 3 bad" in done.stdout
    good = [json.loads(line) for line in pool.read_text().splitlines()]
    good = [{"caption": row.pop("annotation"), **row} for row in good if row["modality"] == "code"]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, good)))
    done = say("validate", tmp_path / "code.jsonl", "--field", "annotation=caption")
    assert done.returncode == 0, done.stdout
    assert "5 rows: 5 good, 0 bad" in done.stdout
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    assert say("validate", tmp_path / "broken.parquet").returncode == 1


def test_rank_embeds_nothing_again(run: Path) -> None:
    def stamps() -> dict[str, tuple[int, int]]:
        files = [path for path in (run / "steps").rglob("*.parquet") if not path.parent.name.startswith("rank-")]
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    before, blend = stamps(), (run / "blend.parquet").read_bytes()
    done = say("rank", run, "--query", "a blue square", "--budget", "3")
    assert done.returncode == 0, done.stderr
    assert stamps() == before
    assert len(pd.read_parquet(run / "blend.parquet")) == 3
    assert say("rank", run).returncode == 0  # the run's own objective again
    assert (run / "blend.parquet").read_bytes() == blend


def test_explain(run: Path) -> None:
    blend = pd.read_parquet(run / "blend.parquet")
    first = str(blend["pair_id"].iloc[0])
    assert re.search(rf"{first} .*: chosen, rank 1 of \d+ in the pool", say("explain", run, first).stdout)
    others = {f"{modality}-{number:03d}" for modality in ("text", "code") for number in range(5)} - set(
        blend["pair_id"]
    )
    assert "not chosen, rank" in say("explain", run, min(others)).stdout
    assert "MediaError" in say("explain", run, "bad-corrupt").stdout
    assert "pool: BadRow" in say("explain", run, "bad-missing").stdout
    assert "did you mean 'code-001'?" in stopped("explain", run, "code-01")


def test_a_changed_configuration_redoes_only_what_it_touches(pool: Path, run: Path, tmp_path: Path) -> None:
    def embedded() -> set[str]:
        return {path.name for path in (run / "steps").iterdir() if path.name.startswith(("sns-", "experts-"))}

    before = embedded()
    values = settings(pool, run, **{**QUICK, "seed": 1})
    done = say("curate", "--config", written(tmp_path / "c.yaml", values))
    assert done.returncode == 0, done.stderr
    assert embedded() == before
    assert "experts     0 pairs" in done.stdout
    assert done.stdout.index("fit ") > 0


def test_help_is_quick_and_complete() -> None:
    shown = say("--help").stdout
    for name in ("curate", "rank", "explain", "validate", "demo"):
        assert name in shown

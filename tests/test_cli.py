"""The command line, as a user types it: what it prints, what it leaves, and its exit status."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from nemo_mm_rank import __version__
from nemo_mm_rank.demo import make_demo_pool
from tests.integration.runs import QUERY, say, settings

pytestmark = pytest.mark.slow  # every command is a process of its own, which imports torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Path:
    return make_demo_pool(folder / "pool", 6)


def written(path: Path, **changes: Any) -> Path:
    """Write a configuration without a pool, a query and a budget: the command line brings those."""
    values = settings(Path("unused"), path.with_suffix(""), **changes)
    for key in ("pools", "queries", "budget", "jsonl"):
        values.pop(key, None)
    path.write_text(yaml.safe_dump({**values, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return written(folder / "c.yaml", sns={"mode": "off"})


@pytest.fixture(scope="module")
def run(folder: Path, pool: Path, config: Path) -> Path:
    """A finished run, with options that go before the configuration."""
    options = ["-q", QUERY, "--query", "a calm sea", "--avoid", "electronic beeps", "--seed", 5, "--shards", 3]
    done = say("curate", pool, "-c", config, *options, "-b", "20%", "-o", folder / "run", "--jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "run"


def files(run: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file that holds what a step made."""
    found = [path for name in ("steps", "fitted") for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def refused(*arguments: object, status: int = 2) -> list[str]:
    """Run a command that has to fail; return what it says on standard error."""
    done = say(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_curate_with_options_and_a_configuration(run: Path, pool: Path) -> None:
    blend, quarantine = pd.read_parquet(run / "blend.parquet"), pd.read_parquet(run / "quarantine.parquet")
    assert len(blend) == 6  # a fifth of thirty
    assert blend["rank"].tolist() == list(range(1, 7))
    assert {"pair_id", "score", "reason", "annotation", "on_topic", "fault"} <= set(blend.columns)
    assert set(quarantine["pair_id"]) == {"bad-corrupt", "bad-missing", "bad-empty", "text-000"}
    assert len(pool.read_text().splitlines()) == 30 + len(quarantine)
    lines = [json.loads(line) for line in (run / "blend.jsonl").read_text().splitlines()]
    assert [line["pair_id"] for line in lines] == blend["pair_id"].tolist()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["counts"]["quarantined"] == 4
    assert [query["weight"] for query in manifest["config"]["queries"]] == [1.0, 1.0, -1.0]
    assert manifest["config"]["seed"] == 5
    assert manifest["blend"]["pairs"] == 6
    assert len(list((run / "pool").glob("part-*"))) == 3


def test_the_same_again_does_nothing_again(run: Path, pool: Path, config: Path, folder: Path) -> None:
    before, blend = files(run), (run / "blend.parquet").read_bytes()
    done = say("curate", "-c", run / "config.yaml")
    assert done.returncode == 0
    assert done.stdout.count("0 pairs in ") == 4  # experts; projection; match; rank
    assert "31 from an earlier start" in done.stdout
    assert files(run) == before
    assert (run / "blend.parquet").read_bytes() == blend
    for line in ("Pairs", "Spaces", "Blend: the first 6 of 6", f"run folder  {run}"):
        assert line in done.stdout


def test_rank_embeds_nothing_again(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    before, blend = files(copy), pd.read_parquet(copy / "blend.parquet")
    done = say("rank", copy, "-q", "functions that sort or count", "-b", 5)
    assert done.returncode == 0, done.stderr
    after = files(copy)
    of_the_query = re.compile(r"/\.?(rank|feedback|scoring)-")
    assert {name: at for name, at in after.items() if not of_the_query.search(name)} == {
        name: at for name, at in before.items() if not of_the_query.search(name)
    }
    assert not set(after) & {name for name in before if of_the_query.search(name)}  # another query, other scores
    again = pd.read_parquet(copy / "blend.parquet")
    assert len(again) == 5
    assert again["pair_id"].tolist() != blend["pair_id"].tolist()[:5]
    assert json.loads((copy / "manifest.json").read_text())["config"]["queries"][0]["text"].startswith("functions")
    # Back to the first query: the first blend.
    assert say("curate", "-c", run / "config.yaml", "-o", copy).returncode == 0
    assert (copy / "blend.parquet").read_bytes() == (run / "blend.parquet").read_bytes()
    # A run that is begun anew and does not come far cannot be ranked, and says so.
    (copy / "state.json").unlink()
    assert refused("rank", copy, "-q", "x") == [f"error: {copy} contains no finished run: start curate again"]


def test_rank_on_more_conditions(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    judged = say("ecodatum", "--run", run, "-o", tmp_path / "quality", "-b", "100%")
    assert judged.returncode == 0, judged.stderr
    done = say("rank", copy, "--quality", tmp_path / "quality", "--mix", "unite-adaptation", "-b", 10)
    assert done.returncode == 0, done.stderr
    ranking = json.loads((copy / "manifest.json").read_text())["config"]["ranking"]
    assert ranking["mix"] == "unite-adaptation"
    assert ranking["conditions"] == {"match": 3.0, "quality": 0.5}
    quality = pd.read_parquet(tmp_path / "quality" / "quality.parquet").set_index("pair_id")["quality"]
    blend = pd.read_parquet(copy / "blend.parquet")
    assert blend["chance_quality"].tolist() == pytest.approx(quality[blend["pair_id"]].clip(lower=0.03).tolist())
    assert refused("rank", copy, "--quality", tmp_path) == [f"error: {tmp_path} contains no finished EcoDatum job"]


def test_explain(run: Path) -> None:
    blend = pd.read_parquet(run / "blend.parquet")
    first = say("explain", run, blend["pair_id"][0])
    assert first.returncode == 0
    assert f"{blend['pair_id'][0]} (" in first.stdout
    assert "): chosen, rank 1 of 30 in the pool\n  place 1 of 6 in the blend\n" in first.stdout
    assert blend["reason"][0] in first.stdout
    other = next(f"code-{n:03d}" for n in range(6) if f"code-{n:03d}" not in set(blend["pair_id"]))
    assert "): not chosen, rank " in say("explain", run, other).stdout
    corrupt = say("explain", run, "bad-corrupt").stdout.splitlines()
    assert corrupt[0] == "bad-corrupt (image, pool demo): not ranked"
    assert corrupt[1].startswith("  experts: MediaError: 'image/corrupt.jpg': cannot be decoded as an image")
    missing = say("explain", run, "bad-missing").stdout.splitlines()
    assert missing[0] == "bad-missing: not ranked"
    assert missing[1].startswith("  pool: BadRow: data: expected a media file")
    assert refused("explain", run, "code-0000")[0].startswith(
        "error: this run has no pair 'code-0000'; did you mean 'c"
    )


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["-q", "x", "-b", "some"], ["budget: a budget must be a number of pairs or a share such as 20%, not 'some'"]),
        (["-q", "x", "-b", "0"], ["budget.count: Input should be greater than or equal to 1, not 0"]),
        ([], ["queries: missing; say what you want, as in: --query 'natural outdoor scenes' (or show it with --like)"]),
        (["--avoid", "x"], ["configuration: queries: at least one needs a positive weight"]),
        (["-q", "x", "--sns", "both"], ["sns.mode: Input should be 'off', 'forward', 'backward' or 'bidirectional', "]),
        (["-q", "x", "--workers", "-1"], ["engine.workers: Input should be greater than or equal to 0, not -1"]),
        (
            ["-q", "x", "--field", "anotation=caption"],
            ["pools.0: field map: there is no field 'anotation'; did you mean 'anno"],
        ),
        (
            ["-q", "x", "--field", "caption"],
            ["--field 'caption': write it as OUR_NAME=YOUR_NAME, for example annotation=caption"],
        ),
        (["-q", "x", "-c", "none.yaml"], ["none.yaml: No such file or directory"]),
        (["-q", "x", "-b", "-1", "--seed", "-1"], ["budget: a budget must be", "seed: Input should be greater"]),
    ],
)
def test_mistakes_are_one_line_each(pool: Path, options: list[str], lines: list[str]) -> None:
    said = refused("curate", pool, *options)
    assert len(said) == len(lines), said
    assert said[0].startswith(f"error: {lines[0]}")
    assert all(found.startswith(line) for found, line in zip(said[1:], lines[1:], strict=True))


def test_unknown_keys_and_models(pool: Path, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("querys: [x]\nsns: {mod: off}\nmodels: {text: {class: hashed-txt}}\n", encoding="utf-8")
    said = refused("curate", pool, "-q", "x", "-c", path)
    assert sorted(line.removeprefix("error: ") for line in said) == [
        "querys: unknown key; did you mean 'queries'?",
        "sns.mod: unknown key; did you mean 'mode'?",
    ]
    path.write_text(
        f"output: {tmp_path / 'run'}\nmodels: {{text: {{class: hashed-txt}}}}\nexperts: [{{name: a, "
        "kind: end-to-end, encoder: text}]\n",
        encoding="utf-8",
    )
    (line,) = refused("curate", pool, "-q", "x", "-c", path)
    assert line.startswith("error: model class 'hashed-txt' is neither a short name")
    assert line.endswith("did you mean 'hashed-text'?")
    assert not (tmp_path / "run" / "blend.parquet").exists()
    assert refused("curate", "-c", path, "-q", "x", "--field", "data=file") == [
        "error: --field, --modality, --root, --trust-root, --format, --turns, --system and --captions apply only to "
        "pools on the command line; for the pools of a configuration, write them in the configuration"
    ]


def test_a_dry_run_writes_nothing(pool: Path, folder: Path, config: Path, run: Path, tmp_path: Path) -> None:
    done = say("curate", pool, "-q", "x", "-c", config, "-o", tmp_path / "run", "-b", "7", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "pools", "query", "step", "fit", "budget", "output",
    ]  # fmt: skip
    assert f"pools    {pool}\n" in done.stdout
    assert "budget   count 7\n" in done.stdout
    (line,) = refused("curate", tmp_path / "none.jsonl", "-q", "x", "--dry-run")
    assert line == f"error: {tmp_path}/none.jsonl: no such file or folder"


def test_validate(pool: Path, tmp_path: Path) -> None:
    done = say("validate", pool)
    assert done.returncode == 1
    *bad, header, counts, last = done.stdout.splitlines()
    assert [line.split(": ")[2] for line in bad] == ["data", "annotation", "pair_id"]
    assert all(line.startswith(f"{pool}:") for line in bad)
    assert header.split() == ["pool", "text", "code", "image", "audio", "video", "all"]
    assert counts.split() == ["demo", "6", "6", "7", "6", "6", "31"]
    assert last == "34 rows: 31 good, 3 bad (1 annotation, 1 data, 1 pair_id)"
    good = tmp_path / "good.jsonl"
    good.write_text('{"text": "A passage.", "caption": "About a passage."}\n', encoding="utf-8")
    mapped = ["--field", "data=text", "--field", "annotation=caption", "--modality", "text"]
    done = say("validate", good, *mapped)
    assert done.returncode == 0
    assert done.stdout.endswith("1 rows: 1 good, 0 bad\n")
    assert say("validate", good).returncode == 1
    missing = say("validate", good, tmp_path / "none.jsonl", *mapped)
    assert missing.returncode == 1
    assert missing.stdout.startswith(f"error: {tmp_path}/none.jsonl: no such file or folder\n")


def test_several_pools_with_names_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{n}", "body": f"Passage {n} about {word}.", "caption": f"{word.title()}.", "stars": n}
        for n, word in enumerate(["dogs", "cats", "trees", "rivers", "cars", "ships", "stars", "songs"])
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:5])), encoding="utf-8")
    pd.DataFrame(rows[5:]).to_parquet(tmp_path / "b.parquet")
    path = written(
        tmp_path / "c.yaml",
        models={"text": {"class": "hashed-text", "dim": 64}},
        experts=[{"name": "words", "kind": "text-based", "encoder": "text"}],
        sns={"mode": "backward"},
    )
    fields = [part for name in ("pair_id=id", "data=body", "annotation=caption") for part in ("--field", name)]
    pools = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    done = say("curate", *pools, "-c", path, "-q", "dogs and cats", "-b", "100%", *fields, "--modality", "text")
    assert done.returncode == 0, done.stderr
    blend = pd.read_parquet(tmp_path / "c" / "blend.parquet")
    assert dict(blend["pool"].value_counts()) == {"a": 5, "b": 3}
    assert sorted(zip(blend["stars"], blend["pair_id"], strict=True)) == [(n, f"r{n}") for n in range(8)]
    assert set(blend["pair_id"][:2]) == {"r0", "r1"}


def test_bad_rows_that_are_to_stop_a_run(pool: Path, config: Path, tmp_path: Path) -> None:
    said = refused("curate", pool, "-c", config, "-q", "x", "-o", tmp_path / "run", "--on-bad-row", "fail")
    assert said[0] == "error: 3 of 34 rows are bad"
    assert [line.split(": ")[2] for line in said[1:]] == ["data", "annotation", "pair_id"]
    assert not (tmp_path / "run" / "blend.parquet").exists()


def test_demo_and_version(tmp_path: Path) -> None:
    assert say("--version").stdout == f"{version('nemo-mm-rank')}\n" == f"{__version__}\n"
    done = say("demo", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in (f"objective: {QUERY}", "sns: in", "Recall@10", "Blend: the first 10 of 40", "on topic"):
        assert line in done.stdout
    assert (tmp_path / "demo" / "run" / "blend.parquet").exists()
    assert len(pd.read_parquet(tmp_path / "demo" / "run" / "blend.parquet")) == 40


def test_a_folder_that_cannot_be_written(pool: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = refused("curate", pool, "-c", config, "-q", "x", "-o", tmp_path / "file")
    assert line == f"error: {tmp_path}/file: this exists already and is not a folder; choose another output"
    (line,) = refused("curate", pool, "-c", config, "-q", "x", "-o", tmp_path / "file" / "run")
    assert line == f"error: {tmp_path}/file/run: cannot be written: Not a directory"


def test_starting_brings_no_library_that_is_hardly_used() -> None:
    code = "import sys, nemo_mm_rank.cli, nemo_mm_rank.run.curation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"scipy.signal", "scipy.stats", "scipy.optimize", "scipy.linalg", "sklearn", "transformers", "distributed"}
    assert not slow & set(done.stdout.split())

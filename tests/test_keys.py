"""Keys and passwords in the wrong place: refused before anything is written, and not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_mm_rank.config import Config, EngineSettings, ModelSpec, PoolSource, parse
from nemo_mm_rank.errors import ConfigError, MediaError, UserError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.curation import curate
from tests.command_line import CommandLine

SECRET = "hunter2abcdef"
MISPLACED: list[dict[str, Any]] = [
    {"key_variable": f"sk-{SECRET}"},
    {"key_variable": "AKIAHUNTER2ABCDEF"},
    {"key_variable": SECRET},
    {"base_url": f"https://user:{SECRET}@127.0.0.1:9/v1"},
    {"base_url": f"https://{SECRET}@127.0.0.1:9/v1"},
    {"base_url": f"https://127.0.0.1:9/v1?api_key={SECRET}"},
    {"base_url": f"https://127.0.0.1:9/v1#{SECRET}"},
    {"base_url": f"https://[{SECRET}"},
    {"base_url": f"sk-{SECRET}"},
    {"api_key": SECRET},
    {"cache": f"memory://user:{SECRET}@answers"},
]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{"modality": "text", "data": f"text {n}", "annotation": f"words {n}"} for n in range(12)]
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def without(secret: str, said: str) -> None:
    assert secret.lower() not in said.lower()


@pytest.mark.parametrize("argument", MISPLACED)
def test_nothing_is_written(
    pool: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, argument: dict[str, Any]
) -> None:
    pytest.importorskip("openai", reason="needs the extra 'models'")
    monkeypatch.chdir(tmp_path)
    captions = {"class": "openai", "model": "m", **argument}
    config = {"models": {"text": {"class": "hashed-text"}, "captions": captions}, "budget": 3}
    describing = {"name": "words", "kind": "text-based", "encoder": "text", "describers": {"image": "captions"}}
    main = tmp_path / "main.yaml"
    main.write_text(yaml.safe_dump({**config, "experts": [describing]}), encoding="utf-8")
    for command in (
        ["curate", pool, "-q", "x", "-c", main, "-o", tmp_path / "out"],
        ["curate", pool, "-q", "x", "-c", main, "-o", tmp_path / "out", "--dry-run"],
        ["ecodatum", pool, "-c", main, "-o", tmp_path / "out"],
        ["benchmark", pool, "-q", "x", "-c", main, "-o", tmp_path / "out"],
    ):
        status, said = command_line(*command)
        assert status == 2, said
        assert said.startswith("error: ")
        without(SECRET, said)
        without("HUNTER2", said)
        assert not (tmp_path / "out").exists()
    status, said = command_line("models", "check", "-c", main)
    assert status in (1, 2)
    without(SECRET, said)
    without("HUNTER2", said)


def test_names_of_variables_stay_good(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="needs the extra 'models'")
    monkeypatch.setenv("MYKEY", "x")
    for name in ("MY_API_KEY", "_KEY", "MYKEY"):
        spec = {"class": "openai", "model": "m", "key_variable": name, "base_url": "http://127.0.0.1:9/v1"}
        loader.check_models({"captions": parse(ModelSpec, spec)})


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (PoolSource, {"path": f"ftp://user:{SECRET}@host/pool.jsonl"}),
        (PoolSource, {"path": f"simplecache::ftp://user:{SECRET}@host/pool.jsonl"}),
        (PoolSource, {"path": "pool.jsonl", "root": f"sftp://user:{SECRET}@host/media"}),
        (EngineSettings, {"scheduler_address": f"tcp://user:{SECRET}@host:8786"}),
        (ModelSpec, {"class": "x:Y", "deep": [{"in": f"https://user:{SECRET}@host"}]}),
        (Config, {"pools": f"ftp://user:{SECRET}@host/pool.jsonl", "queries": "x"}),
        (Config, {"pools": "x", "queries": "x", "import_from": [f"ftp://user:{SECRET}@host"]}),
    ],
)
def test_urls_with_passwords(settings: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a URL here contains a password") as refused:
        parse(settings, values)
    without(SECRET, str(refused.value))
    without(SECRET, repr(refused.value.__cause__))
    with pytest.raises(ValueError, match="a URL here contains a password") as raw:
        settings.model_validate(values)
    without(SECRET, str(raw.value))


def test_urls_without_passwords_stay_good() -> None:
    for path in ("sftp://me@host/pool.jsonl", "abfs://box@name.dfs.net/a.jsonl", "hf://datasets/a/b@main/x.jsonl"):
        assert PoolSource(path=path).path == path


@pytest.mark.parametrize("command", ["curate", "ecodatum", "benchmark", "validate"])
def test_a_pool_at_such_a_url(tmp_path: Path, command_line: CommandLine, command: str) -> None:
    options = {"curate": ["-q", "x"], "benchmark": ["-q", "x"]}.get(command, [])
    options += [] if command == "validate" else ["-o", str(tmp_path / "out")]
    status, said = command_line(command, f"ftp://user:{SECRET}@127.0.0.1:9/pool.jsonl", *options)
    assert status == 2
    without(SECRET, said)
    assert not (tmp_path / "out").exists()


def test_rows_with_such_urls(tmp_path: Path) -> None:
    url = f"https://user:{SECRET}@127.0.0.1:9/a.jpg"
    with pytest.raises(MediaError) as failed:
        Opener().open(url, "image", root=str(tmp_path))
    url_shown = "'https://(hidden)@127.0.0.1:9/a.jpg'"
    assert str(failed.value) == f"{url_shown}: is a URL; set media.allow_urls to true to open URLs"
    assert shown(url) == url_shown


def test_python(pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="needs the extra 'models'")
    models = {"text": {"class": "openai", "model": "m", "key_variable": f"sk-{SECRET}"}}
    experts = [{"name": "words", "kind": "text-based", "encoder": "text"}]
    values = {"pools": str(pool), "queries": "x", "output": str(tmp_path / "out"), "models": models, "experts": experts}
    with pytest.raises(UserError, match="key_variable is the name of an environment variable") as refused:
        curate(parse(Config, values))
    without(SECRET, str(refused.value))
    assert not (tmp_path / "out").exists()

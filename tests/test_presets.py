"""The built-in configurations: each is whole, and runs dry and in earnest with tiny models in the places of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nemo_mm_rank.check import Checked, check
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import Config, parse, read_yaml
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.models import loader
from nemo_mm_rank.presets import FOLDER, PRESETS, overlay, read, recommended
from tests.integration.runs import say
from tests.models import tiny_detector, tiny_encoders, tiny_omni, tiny_writers

CONFIGS = Path(__file__).parents[1] / "configs"
GIB = 2**30

TINY: dict[str, Callable[[Path], Path]] = {
    "open-clip": tiny_encoders.open_clip,
    "clap": tiny_encoders.clap,
    "unite": tiny_writers.qwen2_vl,
    "omni-embed": tiny_omni.thinker,
    "grounding-dino": tiny_detector.grounding_dino,
}
"""By class; a sentence encoder's place is taken by the classical one, and an endpoint's by plain words."""
CLASSICAL = {"sentence-transformers": {"class": "hashed-text"}, "openai": {"class": "plain-words"}}


def stand_ins(name: str, folder: Path) -> dict[str, Any]:
    """Return what takes the places of the preset's models, by the names that it gives them."""
    found: dict[str, Any] = {}
    for model, spec in read(name)["models"].items():
        kind = spec["class"]
        if kind in TINY:
            path = folder / kind
            found[model] = {"class": kind, "path": str(path if path.is_dir() else TINY[kind](path))}
        else:
            found[model] = CLASSICAL.get(kind, spec)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Path:
    return make_demo_pool(folder / "pool", 4)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole(name: str) -> None:
    values = read(name)
    config = parse(Config, {"pools": "pool.jsonl", "queries": "x", **values})
    assert not {"pools", "queries", "budget", "output"} & set(values)
    used = {config.anchor, *config.sns.grounders.values()}.union(*(expert.models for expert in config.experts))
    assert used == set(config.models)
    for spec in config.models.values():
        loader.check_arguments(spec.class_, spec.arguments)
        assert not spec.arguments.get("trust_remote_code")
    # What is told of it beforehand is what it loads, and the file tells the same.
    told = {weights.model: weights for weights in PRESETS[name].weights}
    assert set(told) == {spec.arguments["path"] for spec in config.models.values() if "path" in spec.arguments}
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    for weights in told.values():
        [line] = [line for line in lines if line.startswith(f"#   {weights.model} ")]
        assert f" {weights.download_gb} GB " in line
        assert (weights.licence or "see the model's page").split(",")[0].removesuffix(" License") in line


def test_every_file_is_a_preset_and_lies_beside_the_other_configurations() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PRESETS)
    for name in PRESETS:
        assert read_yaml(CONFIGS / f"{name}.yaml") == read(name)


def test_sections_are_overruled_key_by_key() -> None:
    below = {"models": {"a": {"class": "x", "path": "p"}, "b": {"class": "y"}}, "experts": [1, 2], "anchor": "a"}
    above = {"models": {"a": {"class": "z"}}, "experts": [3], "seed": 1}
    assert overlay(below, above) == {
        "models": {"a": {"class": "z"}, "b": {"class": "y"}},
        "experts": [3],
        "anchor": "a",
        "seed": 1,
    }
    assert below["experts"] == [1, 2]
    assert overlay({"models": {"a": 1}}, {"models": "no section"}) == {"models": "no section"}


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        (None, "cpu_small"),
        (8 * GIB, "cpu_small"),
        (int(15.6 * GIB), "openclip_clap"),  # sold as 16 GB
        (24 * GIB, "unite"),
        (int(39.4 * GIB), "omni_fuse"),
    ],
)
def test_the_largest_that_fits_is_recommended(gpu: int | None, name: str) -> None:
    assert recommended(gpu) == name


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'unit' \(the presets are .*\); did you mean 'unite'\?"):
        read("unit")
    done = say("curate", "pool.jsonl", "-q", "x", "--preset", "cpu-small")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("did you mean 'cpu_small'?")


def test_presets_lists_them() -> None:
    done = say("presets")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^│ (\w+) ", done.stdout, re.MULTILINE) == list(PRESETS)
    if not torch.cuda.is_available():
        assert "recommended for this machine (no GPU): cpu_small" in done.stdout


@pytest.mark.parametrize("name", PRESETS)
def test_dry_run_with_tiny_models(name: str, folder: Path, pool: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    own = folder / f"{name}.yaml"
    own.write_text(yaml.safe_dump({"models": stand_ins(name, folder / "models"), "seed": 3}), encoding="utf-8")
    options = ["--preset", name, "-c", own, "-o", folder / name, "--dry-run"]
    done = CliRunner().invoke(app, [str(part) for part in ["curate", pool, "-q", "the sea", *options]])
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    experts = [expert["name"] for expert in read(name)["experts"]]
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step     sns", "step     experts"]
    [embeds] = [line for line in lines if line.startswith("step     experts")]
    assert all(f"emb_data__{expert}" in embeds for expert in experts)
    assert f"anchored on {read(name)['anchor']!r}" in done.stdout
    assert not (folder / name).exists()


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_loads_and_answers(name: str, folder: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    values = overlay(read(name), {"models": stand_ins(name, folder / "models")})
    config = parse(Config, {"pools": "unused", "queries": "unused", **values})
    assert [one for one in check(config.models, "cpu", config.media) if not isinstance(one, Checked)] == []


@pytest.mark.slow
def test_a_preset_runs_with_tiny_models(folder: Path, pool: Path) -> None:
    pytest.importorskip("open_clip", reason="needs the extra 'models'")
    own = folder / "earnest.yaml"
    small = {"max_epochs": 2, "folds": 2, "threads": 1}
    values = {"models": stand_ins("cpu_small", folder / "models"), "projection": small}
    own.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = say("curate", pool, "-q", "the sea", "-p", "cpu_small", "-c", own, "-b", "5", "-o", folder / "run")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(folder / "run" / "blend.parquet")) == 5
    quarantined = pd.read_parquet(folder / "run" / "quarantine.parquet")
    assert set(quarantined["pair_id"]) == {"bad-corrupt", "bad-missing", "bad-empty", "text-000"}

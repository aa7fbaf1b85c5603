from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_mm_rank.config import Budget, Config, RankingSettings, parse, read_yaml
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.models import loader

LEAST: dict[str, Any] = {"pools": "pool.jsonl", "queries": "dogs"}


def test_two_keys_are_enough() -> None:
    config = parse(Config, LEAST)
    assert [pool.path for pool in config.pools] == ["pool.jsonl"]
    assert [(query.text, query.weight) for query in config.queries] == [("dogs", 1.0)]
    assert config.budget.fraction == 0.2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"querys": "x"}, "querys: unknown key; did you mean 'queries'?"),
        ({"sns": {"mod": "off"}}, "sns.mod: unknown key; did you mean 'mode'?"),
        ({"projection": {"fold": 3}}, "projection.fold: unknown key; did you mean 'folds'?"),
        ({"engine": {"worker": 3}}, "engine.worker: unknown key; did you mean 'workers'?"),
        (
            {"pools": [{"path": "a", "fields": {"annotatoin": "x"}}]},
            "pools.0: field map: there is no field 'annotatoin'; did you mean 'annotation'?",
        ),
        ({"anchor": "txt"}, "configuration: anchor: there is no model 'txt'; did you mean 'text'?"),
        (
            {"ranking": {"weights": {"fuse": 1}}},
            "configuration: ranking.weights: there is no score 'fuse'; did you mean 'fused'?",
        ),
        ({"budget": "many"}, "budget: a budget must be a number of pairs or a share such as 20%, not 'many'"),
        ({"budget": "0%"}, "budget.fraction: Input should be greater than 0, not 0.0"),
        ({"budget": 0}, "budget.count: Input should be greater than or equal to 1, not 0"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, not -1"),
        ({"pools": []}, "pools: Value should have at least 1 item after validation, not 0"),
        (
            {"experts": [{"name": "a", "kind": "fusion", "encoder": "text"}]},
            "experts.0: expert 'a': a fusion expert takes no 'encoder'",
        ),
        (
            {"experts": [{"name": "a", "kind": "text-based", "encoder": "tex"}]},
            "configuration: expert 'a': there is no model 'tex'; did you mean 'text'?",
        ),
        (
            {"ranking": {"quota_by": "modality", "quotas": {"imge": 0.5}}},
            "ranking: quotas: there is no modality 'imge'; did you mean 'image'?",
        ),
        (
            {"ranking": {"quotas": {"image": 0.5}}},
            "ranking: quota_by names the groups and quotas their shares: give both or neither",
        ),
        (
            {"ranking": {"quota_by": "pool", "quotas": {"a": 0.7, "b": 0.4}}},
            "ranking: quotas: the shares {'a': 0.7, 'b': 0.4} sum to more than 1",
        ),
        (
            {"experts": [{"name": "fused", "kind": "text-based", "encoder": "text"}]},
            "configuration: experts: 'fused' is the name of a built-in score; choose another name for the expert",
        ),
        ({"queries": [{"text": "x", "weight": -1}]}, "configuration: queries: at least one needs a positive weight"),
    ],
)
def test_mistakes_are_one_line_each(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Config, {**LEAST, **change})
    assert line in str(caught.value).splitlines()


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Config, {"pool": 1, "seed": -1})
    assert str(caught.value).splitlines() == [
        "pools: missing; name a pool, as in: nemo-mm-rank curate pool.jsonl",
        "queries: missing; say what you want, as in: --query 'natural outdoor scenes' (or show it with --like)",
        "seed: Input should be greater than or equal to 0, not -1",
        "pool: unknown key; did you mean 'pools'?",
    ]


@pytest.mark.parametrize(
    ("given", "of", "pairs"),
    [
        (10, 100, 10),
        ("10", 100, 10),
        ("10_000", 100, 100),
        ("20%", 33, 6),
        ("0.5%", 100, 1),
        ("29%", 100, 29),
        (" 12.5 % ", 80, 10),
    ],
)
def test_budgets(given: int | str, of: int, pairs: int) -> None:
    assert parse(Budget, given).pairs(of) == pairs


def test_what_is_not_a_yaml_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="a mapping of keys, not list"):
        read_yaml(path)
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pools: a\nqueries: b\nsns: {mode: off}\nranking: {calibration: off}\nengine:\n  # workers: 4\n")
    config = parse(Config, read_yaml(path))
    assert (config.sns.mode, config.ranking.calibration, config.engine.workers) == ("off", "off", 0)


def test_a_configuration_survives_yaml() -> None:
    config = parse(
        Config,
        {
            **LEAST,
            "sns": {"mode": "backward"},
            "models": {"text": {"class": "hashed-text", "dim": 64}},
            "experts": [{"name": "t", "kind": "end-to-end", "encoder": "text"}],
        },
    )
    again = parse(Config, config.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    assert again == config
    assert again.models["text"].arguments == {"dim": 64}


@pytest.mark.parametrize("name", ["quickstart", "dask_cuda"])
def test_configurations_that_come_along_are_whole(name: str) -> None:
    config = parse(Config, read_yaml(Path(__file__).parents[1] / "configs" / f"{name}.yaml"))
    for spec in config.models.values():
        loader.check_arguments(spec.class_, spec.arguments)
    assert config.engine.gpus == (name == "dask_cuda")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"weights": {"fused": 1.0}},
        {"weights": {"fused": 1.0}, "broad": {}},
        {"weights": {"fused": 1.0}, "broad": {"feedback": 3}},
        {"broad": "off"},
    ],
)
def test_what_is_left_out_as_a_default_is_read_back_as_it_was(given: dict[str, Any]) -> None:
    settings = RankingSettings.model_validate(given)
    for leave_out in (True, False):
        assert RankingSettings.model_validate(settings.model_dump(mode="json", exclude_defaults=leave_out)) == settings
    assert (settings.broad is None) == (given.get("broad", "off" if "weights" in given else {}) == "off")

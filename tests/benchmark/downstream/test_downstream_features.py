from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_mm_rank.benchmark.downstream import features, train
from nemo_mm_rank.benchmark.downstream.features import (
    SETS,
    Features,
    LetterPairs,
    Spectrograms,
    Thumbnails,
    frozen_encoders,
    principal,
)
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.models.base import usable
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import Modality
from tests.models import tiny_encoders

QUICK = SmallSettings(steps=2, evaluations=1, tokens=64, width=16, heads=2, components=8)


def config(**changes: Any) -> Config:
    return parse(Config, {"pools": "pool.jsonl", "queries": "x", **changes})


def other_experts() -> dict[str, Any]:
    """A ranking by a model that is none of ours."""
    return {
        "models": {"own": {"class": "tests.models.own_models:LetterCounts"}},
        "experts": [{"name": "own", "kind": "end-to-end", "encoder": "own"}],
        "anchor": "own",
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    """The demo pool, in which one picture is corrupt, in two shards."""
    folder = tmp_path_factory.mktemp("pool")
    manifest = make_demo_pool(folder / "demo", pairs_per_modality=6)
    report = ingest(config(pools=str(manifest)).pools, folder / "shards", shards=2)
    return ShardStore((folder / "shards",), report.shards)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def made(pool: ShardStore, folder: Path) -> Features:
    found = features({"pool": pool, "again": pool}, QUICK, config(**other_experts()), folder, SerialEngine())
    assert isinstance(found, Features)
    return found


def test_every_row_has_the_features_of_its_modality_and_one_that_does_not_open_has_none(made: Features) -> None:
    n = len(made.parts["pool"])
    assert n == 31
    assert len(made.annotations) == len(made.modality) == 2 * n
    there = torch.stack([column.valid for column in made.columns]).sum(dim=0)
    assert [made.parts["pool"][row] for row in torch.nonzero(there[:n] == 0).view(-1).tolist()] == ["bad-corrupt"]
    assert int(there.max()) == 1
    assert len(made.columns) == 5
    for column in made.columns:
        assert len(torch.unique(made.modality[column.valid])) == 1
        assert not column.values[~column.valid].any()
        assert torch.equal(column.values[:n], column.values[n:])


def test_an_earlier_run_s_features_are_found(made: Features, pool: ShardStore, folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    assert len(before) == 4
    again = features({"pool": pool, "again": pool}, QUICK, config(**other_experts()), folder, SerialEngine())
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")} == before
    assert isinstance(again, Features)
    assert again.vocabulary == made.vocabulary
    assert all(torch.equal(one.values, two.values) for one, two in zip(made.columns, again.columns, strict=True))


def test_the_model_is_trained_on_them(made: Features) -> None:
    blend, validation = made.rows("again")[:20], made.rows("pool")[20:]
    found = train(made, made.annotations, blend, validation, QUICK, 0)
    assert found.steps == (2,)
    assert found.tokens == (128,)
    assert 1 < found.best < 2 * len(made.vocabulary)


def test_with_the_classical_configuration_the_features_are_others() -> None:
    assert frozen_encoders("auto", config()) == SETS["signals"]
    assert frozen_encoders("auto", config(**other_experts())) == SETS["classical"]
    with pytest.raises(ConfigError, match=r"'hashed-text', which ranks as 'text'.*'signals' would do"):
        frozen_encoders("classical", config())


def test_own_encoders_are_refused_where_they_rank_under_another_name() -> None:
    own = {Modality.TEXT: {"class": "tests.models.own_models:LetterCounts", "alphabet": "abc"}}
    chosen = SmallSettings.model_validate({"features": own}).features
    assert isinstance(chosen, dict)
    with pytest.raises(ConfigError, match="LetterCounts', which ranks as 'own'"):
        frozen_encoders(chosen, config(**other_experts()))
    assert list(frozen_encoders(chosen, config())) == ["text"]


def test_models_of_one_class_and_other_weights_are_others() -> None:
    clip = {"class": "clip", "path": "one/model"}
    ranked = config(
        models={"clip": clip}, experts=[{"name": "clip", "kind": "end-to-end", "encoder": "clip"}], anchor="clip"
    )
    other = SmallSettings.model_validate({"features": {"image": {**clip, "path": "another/model"}}}).features
    same = SmallSettings.model_validate({"features": {"image": {**clip, "revision": "main"}}}).features
    assert isinstance(other, dict)
    assert isinstance(same, dict)
    assert frozen_encoders(other, ranked) == other
    with pytest.raises(ConfigError, match="'clip', which ranks as 'clip'"):
        frozen_encoders(same, ranked)


def test_components_are_those_of_the_pool_s_covariance_in_their_own_proportions() -> None:
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.normal(size=(400, 6)) @ random.normal(size=(6, 20))).float() + 3
    valid = torch.arange(400) % 4 != 0
    found = principal(Vectors(values * valid[:, None], valid), 300, 10)
    assert found.values.shape == (400, 6)  # as many as there are
    sample = values[:300][valid[:300]].double()
    variances = torch.linalg.eigvalsh(torch.cov(sample.T)).flip(0)[:6]
    fitted = found.values[:300][valid[:300]].double()
    torch.testing.assert_close(fitted.mean(dim=0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-4)
    covariance = torch.diag(6 * variances / variances.sum())
    torch.testing.assert_close(fitted.T @ fitted / len(fitted), covariance, rtol=0, atol=1e-4)
    assert not found.values[~valid].any()
    fewer = principal(Vectors(values, valid), 300, 4).values
    assert float(fewer[:300][valid[:300]].square().mean()) == pytest.approx(1, rel=1e-4)
    assert principal(Vectors(values, torch.zeros(400, dtype=torch.bool)), 300, 4).values.shape == (400, 0)


def test_signals_tell_things_apart_and_keep_the_contract() -> None:
    pictures = [tiny_encoders.image(seed, 40, 30) for seed in range(3)]
    films = [tiny_encoders.video(seed, 3) for seed in range(2)]
    sounds = [tiny_encoders.sound(seed, 0.4) for seed in range(3)]
    for encoder, items, modality in (
        (Thumbnails(), pictures, "image"),
        (Thumbnails(), films, "video"),
        (Spectrograms(), sounds, "audio"),
        (LetterPairs(), ["def f(x): return x", "Straße 🐶", "a dog"], "text"),
    ):
        found = usable(encoder.encode(items, modality), encoder, len(items))
        assert not found.errors
        assert encoder.encode(items[:1], modality).vectors.equal(found.vectors[:1])
        assert float((found.vectors @ found.vectors.T - torch.eye(len(items))).max()) < 0.999


def test_a_signal_of_nothing_fails_alone() -> None:
    found = LetterPairs().encode(["a dog", "", "x"], "code")
    assert sorted(found.errors) == [1, 2]
    assert bool(torch.isnan(found.vectors[1:]).all())


def test_letter_pairs_count_what_follows_what() -> None:
    vector = LetterPairs().encode(["aab aab"], "text").vectors[0]
    pairs = {0 * 37 + 0: 2, 0 * 37 + 1: 2, 1 * 37 + 36: 1, 36 * 37 + 0: 1}
    expected = torch.zeros(37**2)
    for place, count in pairs.items():
        expected[place] = (count / 6) ** 0.5
    torch.testing.assert_close(vector, expected)

"""A mix by search: a planted best mix is found, shares keep to what there is, and the whole job on a small run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nemo_mm_rank import curate, rank
from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.benchmark.mixing import MixConfig, Regression, SearchSettings, find_mix, search
from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.files import read_sealed, read_table
from nemo_mm_rank.ranking import quota_counts
from tests.command_line import CommandLine
from tests.integration.runs import many_texts, settings


def planted(best: Floats, noise: float) -> Any:
    """Return a loss whose least is at ``best``: that of a learner who needs a little of everything."""
    rng = np.random.default_rng(0)

    def loss(mixes: Sequence[Floats], seed: int) -> Floats:
        shares = np.stack(list(mixes))
        # The cross-entropy with the best mix is least there, and steep where a share is near to none.
        found: Floats = -((best + 0.02) * np.log(shares + 0.02)).sum(1) + noise * rng.normal(size=len(shares))
        return found

    return loss


@pytest.mark.parametrize("best", [[0.5, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.15, 0.85]])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_planted_mix_is_found(best: list[float], noise: float) -> None:
    goal = np.array(best)
    own = np.ones(len(best)) / len(best)
    trace = search(planted(goal, noise), own, np.ones(len(best)), SearchSettings())
    assert trace.mixes.shape == (48, len(best))
    assert trace.best.sum() == pytest.approx(1)
    assert np.abs(trace.best - goal).max() < 0.05


def test_no_share_is_larger_than_there_are_pairs_for() -> None:
    most = np.array([0.4, 0.5, 1.0])
    trace = search(planted(np.array([0.8, 0.1, 0.1]), 0.0), np.array([0.2, 0.3, 0.5]), most, SearchSettings(draws=8))
    for mixes in (trace.mixes, trace.best[None]):
        np.testing.assert_allclose(mixes.sum(1), 1)
        assert (mixes <= most + 1e-9).all()
    assert trace.best[0] == pytest.approx(0.4, abs=0.02)
    with pytest.raises(UserError, match="the pool has one group only, and a mix needs at least two"):
        search(planted(np.ones(1), 0.0), np.ones(1), np.ones(1), SearchSettings())


def test_the_regression_is_exact_for_a_parabola() -> None:
    rng = np.random.default_rng(1)
    mixes = rng.dirichlet(np.ones(3), 40)
    losses = ((mixes - np.array([0.2, 0.5, 0.3])) ** 2).sum(1)
    fit = Regression.of(mixes, losses)
    more = rng.dirichlet(np.ones(3), 40)
    np.testing.assert_allclose(fit(more), ((more - np.array([0.2, 0.5, 0.3])) ** 2).sum(1), atol=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    values = settings(many_texts(folder / "pool.jsonl"), folder / "run", shards=2, sns={"mode": "off"})
    rows = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    # Three of the pool's own, which must take no part, and others that are its code alone.
    target = rows[:3]
    for number, row in enumerate(rows[5:40:5]):
        said = f"Held out {number}: {row['annotation']} And more, far from it {number * 7919}."
        target.append({**row, "pair_id": f"t-{number}", "annotation": said})
    for number, row in enumerate(target[3:]):
        row["data"] = f"A text of its own, number {number}, with code {number * 104729} in it."
    (folder / "target.jsonl").write_text("\n".join(map(json.dumps, target)))
    return curate(config=values, progress=False).folder


SMALL = {"steps": 4, "evaluations": 1, "tokens": 64, "width": 16, "vocabulary": 128}


def test_the_whole_job(run: Path, tmp_path: Path) -> None:
    values = {"run": str(run), "target": str(run.parent / "target.jsonl"), "budget": 20, "seeds": 2}
    values |= {"search": {"rounds": 2, "draws": 3}, "downstream": SMALL, "output": str(tmp_path / "mix")}
    found = find_mix(parse(MixConfig, values))
    assert found.groups == ("code", "text")
    trace = read_table(tmp_path / "mix" / "trace.parquet")
    assert trace["round"].to_pylist() == [1] * 3 + [2] * 3
    for blend in (tmp_path / "mix" / "blends").iterdir():
        ids = read_table(blend)["pair_id"].to_pylist()
        assert len(ids) == len(set(ids)) == 20
        assert not {"p000", "p001", "p002"} & set(ids)
    quotas = yaml.safe_load((tmp_path / "mix" / "quotas.yaml").read_text())["ranking"]
    assert quotas["quota_by"] == "modality"
    assert sum(quotas["quotas"].values()) == pytest.approx(1)
    said = found.lines()
    assert said[0] == "6 mixes were tried at 20 pairs; shares, and perplexity on the target"
    assert any(line.startswith("found against uniform: ") for line in said)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "mix" / "downstream").iterdir()}
    again = find_mix(parse(MixConfig, values))
    assert again.lines() == said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mix" / "downstream").iterdir()} == trained


def test_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = CommandLine(capsys, monkeypatch)
    status, said = command("mix", run, "-o", tmp_path / "mix")
    assert (status, said.strip()) == (2, "error: target: missing")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"downstream": SMALL, "seeds": 2}))
    options = ["--target", run.parent / "target.jsonl", "-b", 20, "--rounds", 1, "--draws", 2, "--steps", 2]
    status, said = command("mix", run, *options, "-c", tmp_path / "c.yaml", "-o", tmp_path / "mix")
    assert status == 0, said
    assert "2 mixes were tried at 20 pairs" in said
    with pytest.raises(ConfigError, match="by"):
        parse(MixConfig, {"run": "r", "target": "t", "by": "colour"})
    status, said = command("mix", run, *options, "--by", "pool", "-c", tmp_path / "c.yaml", "-o", tmp_path / "pools")
    assert (status, "the pool has one group only, and a mix needs at least two" in said) == (2, True)


def test_clusters_are_mixed_and_ranked_by(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = CommandLine(capsys, monkeypatch)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"downstream": SMALL, "seeds": 2}))
    options = ["--target", run.parent / "target.jsonl", "-b", 20, "--rounds", 1, "--draws", 2, "--steps", 2]
    options += ["-c", tmp_path / "c.yaml", "--by", "cluster", "-o", tmp_path / "mix"]
    status, said = command("mix", run, *options, "--clusters", 1000)
    assert (status, "1,000 clusters of" in said, "ask for fewer with --clusters" in said) == (2, True, True)
    status, said = command("mix", run, *options, "--clusters", 3)
    assert status == 0, said
    clusters = read_table(tmp_path / "mix" / "clusters.parquet")
    of = dict(zip(clusters["pair_id"].to_pylist(), clusters["group"].to_pylist(), strict=True))
    ranked = sum(read_sealed(run / "manifest.json")["counts"]["ranked"].values())
    assert (len(of), set(of.values())) == (ranked, {"cluster 0", "cluster 1", "cluster 2"})
    quotas = yaml.safe_load((tmp_path / "mix" / "quotas.yaml").read_text())["ranking"]
    assert quotas["quota_by"] == str(tmp_path / "mix" / "clusters.parquet")
    sizes = Counter(of.values())
    chosen = Counter(of[pair_id] for pair_id in rank(run, budget=20, ranking=quotas).blend["pair_id"])
    wanted = quota_counts(20, quotas["quotas"])
    assert sum(chosen.values()) == 20
    if all(wanted.get(name, 0) <= sizes[name] for name in sizes):
        assert chosen == {name: count for name, count in wanted.items() if count}
    # The same again: the same clusters, and nothing is trained anew.
    status, _ = command("mix", run, *options, "--clusters", 3)
    assert (status, read_table(tmp_path / "mix" / "clusters.parquet")) == (0, clusters)

"""EcoDatum as a job: nothing lost, any sharding alike, taken up where it was, on a run's embeddings, and by search."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nemo_mm_rank import curate as rank_pool
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import parse, read_yaml
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.quality import LabelModel, label_votes
from nemo_mm_rank.quality.ensemble.fit import Ensemble
from nemo_mm_rank.run.ecodatum import EcoDatumConfig, EcoDatumResult, OperatorSetup, curate
from tests.integration.runs import settings as run_settings

FILES = ("blend.parquet", "quality.parquet", "duplicates.parquet", "quarantine.parquet", "manifest.json")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs of five modalities and four faulty ones; two pictures are there twice."""
    manifest = make_demo_pool(tmp_path_factory.mktemp("ecodatum") / "pool", 8)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    doubles = [row for row in rows if row["pair_id"].startswith("image")][:2]
    other_words = {"annotation": "Nothing of the kind is to be seen."}
    rows += [{**row, "pair_id": f"again-{row['pair_id']}", **other_words} for row in doubles]
    other = manifest.with_name("with_doubles.jsonl")
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return other


def job(pool: Path, output: Path, **changes: Any) -> EcoDatumResult:
    return curate(parse(EcoDatumConfig, {"pools": str(pool), "output": str(output), **changes}))


@pytest.fixture(scope="module")
def result(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> EcoDatumResult:
    return job(pool, tmp_path_factory.mktemp("ecodatum") / "run", shards=3)


def test_nothing_is_lost(pool: Path, result: EcoDatumResult) -> None:
    quality, counts = result.quality, result.manifest["counts"]
    everything = [*quality["pair_id"], *result.quarantine["pair_id"]]
    assert sorted(everything) == sorted(json.loads(line)["pair_id"] for line in pool.read_text().splitlines())
    assert counts["quarantined"] == len(result.quarantine) == 4
    left = quality["duplicate_of"].isna()
    assert result.manifest["ensemble"]["pairs"] == left.sum()
    assert counts["duplicates"] == (~left).sum()
    assert len(result.blend) == int(left.sum() * 0.4)
    assert set(result.blend["pair_id"]) <= set(quality.loc[left, "pair_id"])


def test_quality_is_that_of_the_votes_and_votes_those_of_the_thresholds(result: EcoDatumResult) -> None:
    ensemble = Ensemble.load(result.folder / "fitted" / "ensemble")
    steps = pd.concat(
        [
            pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("*.parquet"))], ignore_index=True)
            for folder in sorted((result.folder / "steps").iterdir())
            if folder.name.startswith("quality-") and not folder.name.startswith("quality-ensemble")
        ],
        axis=1,
    )
    pairs = pd.concat([pd.read_parquet(file) for file in sorted((result.folder / "pool").glob("part-*"))])
    steps = steps.loc[:, ~steps.columns.duplicated()].assign(
        pair_id=pairs["pair_id"].tolist(), modality=pairs["modality"].tolist()
    )
    quality = result.quality.set_index("pair_id")
    checked = 0
    for modality, functions in ensemble.functions.items():
        rows = steps[(steps["modality"] == modality) & steps["pair_id"].isin(quality.index)]
        votes = label_votes(rows, functions)
        np.testing.assert_array_equal(votes, np.stack(quality.loc[rows["pair_id"], "votes"].tolist()))
        mine = quality.loc[rows["pair_id"]]
        lowered = ensemble.predict(votes) * np.where(mine["duplicate_of"].isna(), 1, 0.05)
        np.testing.assert_allclose(lowered, mine["quality"], rtol=1e-6)
        checked += len(rows)
    assert checked == len(quality)


def test_the_model_is_fitted_to_the_votes_of_pairs_that_stay(result: EcoDatumResult) -> None:
    quality = result.quality
    votes = np.stack(quality.loc[quality["duplicate_of"].isna(), "votes"].tolist())
    ensemble = Ensemble.load(result.folder / "fitted" / "ensemble")
    assert ensemble.vetoes == {"low_information"}
    voters = votes[:, [name not in ensemble.vetoes for name in ensemble.names]]
    assert LabelModel().fit(voters).mu.tobytes() == ensemble.model.mu.tobytes()
    functions = result.manifest["ensemble"]["functions"]
    assert [entry["coverage"] for entry in functions.values()] == (votes >= 0).mean(axis=0).tolist()


def test_the_best_come_first_and_ties_go_by_the_weakest_sentence_then_by_id(result: EcoDatumResult) -> None:
    tie_break = result.manifest["tie_break"]
    assert tie_break == "quality__weakest_words"
    files = sorted(result.folder.glob("steps/quality-sentences-*/part-*.parquet"))
    pairs = pd.concat([pd.read_parquet(file) for file in sorted((result.folder / "pool").glob("part-*"))])
    agreement = pd.concat([pd.read_parquet(file) for file in files])[tie_break].set_axis(pairs["pair_id"])
    quality = result.quality[result.quality["duplicate_of"].isna()]
    modality = pairs.set_index("pair_id")["modality"][quality["pair_id"]].to_numpy()
    below = agreement[quality["pair_id"]].groupby(modality).rank(method="min") - 1  # a number says little of another
    tie = (below / pd.Series(modality, below.index).map(pd.Series(modality).value_counts())).to_numpy()
    assert not np.isnan(tie).any()
    order = quality.assign(tie=tie).sort_values(["quality", "tie", "pair_id"], ascending=[False, False, True])
    assert result.blend["pair_id"].tolist() == order["pair_id"].tolist()[: len(result.blend)]
    assert result.blend["rank"].tolist() == list(range(1, len(result.blend) + 1))
    assert result.blend["score"].nunique() < len(result.blend)


def test_of_a_picture_that_is_there_twice_the_pair_that_agrees_stays(result: EcoDatumResult) -> None:
    quality = result.quality.set_index("pair_id")
    gone = quality["duplicate_of"].dropna()
    assert {name: gone[name] for name in gone.index if name.startswith("again-")} == {
        name: name.removeprefix("again-") for name in quality.index if name.startswith("again-")
    }


@pytest.mark.parametrize("shards", [1, 7])
def test_any_number_of_shards_gives_the_same_bytes(
    pool: Path, result: EcoDatumResult, tmp_path: Path, shards: int
) -> None:
    other = job(pool, tmp_path / "run", shards=shards)
    assert len(list((other.folder / "pool").glob("part-*"))) == shards
    for name in FILES:
        digests = [hashlib.sha256((run.folder / name).read_bytes()).hexdigest() for run in (result, other)]
        assert digests[0] == digests[1], name


def test_a_job_is_taken_up_where_it_was(pool: Path, tmp_path: Path) -> None:
    first = job(pool, tmp_path / "run", shards=2)
    files = sorted((tmp_path / "run" / "steps").rglob("part-*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]
    lost = next(file for file in files if "quality-texts" in str(file))
    before = {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    lost.unlink()
    again = job(pool, tmp_path / "run", shards=2)
    kept = [file for file in files if file != lost]
    assert [file.stat().st_mtime_ns for file in kept] == [
        t for file, t in zip(files, times, strict=True) if file != lost
    ]
    assert {name: (tmp_path / "run" / name).read_bytes() for name in FILES} == before
    assert again.blend["pair_id"].tolist() == first.blend["pair_id"].tolist()


def test_a_finished_runs_embeddings_and_agreement_are_used(pool: Path, tmp_path: Path) -> None:
    ranked = rank_pool(config=run_settings(pool, tmp_path / "ranked", budget=5, sns={"mode": "off"}), progress=False)
    config = {"run": str(tmp_path / "ranked"), "output": str(tmp_path / "quality")}
    result = curate(parse(EcoDatumConfig, config))
    operators = {"quality__agreement_score", "quality__weakest", "quality__agreement_words", "quality__weakest_words"}
    assert operators <= set(result.manifest["operators"])
    assert {name.removeprefix("quality__") for name in operators} <= set(result.manifest["ensemble"]["functions"])
    assert "concrete_words" not in result.manifest["ensemble"]["functions"]
    assert result.manifest["tie_break"] == "quality__weakest_words"
    assert not list(result.folder.glob("steps/experts-*"))
    assert not (result.folder / "pool").exists()
    agreement = ranked.pairs(["pair_id", "agreement_score"]).set_index("pair_id")["agreement_score"]
    threshold = result.manifest["ensemble"]["functions"]["agreement_score"]["thresholds"]["image"]["high"]
    votes = dict(zip(result.quality["pair_id"], result.quality["votes"], strict=True))
    place = list(result.manifest["ensemble"]["functions"]).index("agreement_score")
    selected = {name for name, mine in votes.items() if name.startswith("image") and mine[place] == 1}
    assert selected == {n for n in votes if n.startswith("image") and agreement[n] >= threshold}
    assert selected


def test_a_search_finds_thresholds_and_never_chooses_what_it_learns_from(pool: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    ids = [row["pair_id"] for row in rows if row["modality"] in ("text", "image")][::2]
    truth = pd.DataFrame({"pair_id": ids, "clean": [place % 2 == 0 for place in range(len(ids))]})
    truth.to_parquet(tmp_path / "truth.parquet")
    search: dict[str, Any] = {"truth": str(tmp_path / "truth.parquet"), "tops": [30, 50], "margins": [0, 10]}
    search["functions"] = ["agreement_words", "concrete_words"]
    result = job(pool, tmp_path / "run", search=search, budget="100%")
    trace = pd.read_parquet(result.folder / "search.parquet")
    assert trace["best"].sum() == 1
    assert trace.loc[trace["best"], "m"].item() == trace["m"].max()
    console = Console(record=True, width=160)
    result.print(console)
    shown = re.search(r"the best of 16 choices of thresholds\s+M .*\n[^\n]*\n\s*([\d.]+) ", console.export_text())
    assert shown is not None
    assert float(shown[1]) == pytest.approx(trace["m"].max(), abs=6e-4)
    assert set(result.blend["pair_id"]).isdisjoint(ids)
    assert result.manifest["ensemble"]["pairs"] == len(result.blend)
    job(pool, tmp_path / "run", budget="100%")
    assert not (result.folder / "search.parquet").exists()


def test_a_worker_in_another_process_gives_the_same_bytes(pool: Path, result: EcoDatumResult, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    from nemo_mm_rank.engine.dask import DaskEngine

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        config = {"pools": str(pool), "output": str(tmp_path / "run"), "shards": 3}
        other = curate(parse(EcoDatumConfig, config), engine=DaskEngine(client))
    for name in FILES:
        assert (other.folder / name).read_bytes() == (result.folder / name).read_bytes(), name


def test_the_command_line_runs_the_job(pool: Path, result: EcoDatumResult, tmp_path: Path) -> None:
    config = tmp_path / "eco.yaml"
    config.write_text("budget: 10%\nengine: {workers: 0}\n")
    options = ["ecodatum", str(pool), "-c", str(config), "-b", "5", "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "5 pairs chosen of" in done.output
    blend = pd.read_parquet(tmp_path / "run" / "blend.parquet")
    assert blend["pair_id"].tolist() == result.blend["pair_id"].tolist()[:5]


def test_the_printed_table_says_what_somebody_should_know(result: EcoDatumResult) -> None:
    console = Console(record=True, width=160)
    result.print(console)
    text = console.export_text()
    assert "agreement_words" in text
    assert re.search(r"low_information .* veto *\n", text)
    assert "note: labeling function 'dark' never votes; it is left out" in text


def test_the_example_configuration_is_the_default_one(pool: Path, tmp_path: Path, result: EcoDatumResult) -> None:
    values = read_yaml(Path(__file__).parents[2] / "configs" / "ecodatum.yaml")
    assert parse(EcoDatumConfig, values).budget == parse(EcoDatumConfig, {"pools": "pool.jsonl"}).budget
    other = job(pool, tmp_path / "run", **{name: values[name] for name in ("operators", "duplicates", "ensemble")})
    assert other.blend["pair_id"].tolist() == result.blend["pair_id"].tolist()


def test_how_the_pool_was_scored_is_read_back(result: EcoDatumResult) -> None:
    setup, ensemble = OperatorSetup.load(result.folder)
    assert [step.identity() for step in setup.steps] == result.manifest["steps"]
    assert list(ensemble.names) == list(result.manifest["ensemble"]["functions"])
    with pytest.raises(UserError, match="contains no finished EcoDatum job"):
        OperatorSetup.load(result.folder / "pool")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either pools or the folder of a finished run"),
        ({"pools": "a", "ensemble": {"functions": {"a": {"column": "x"}}}}, "give select, reject or both"),
        (
            {
                "pools": "a",
                "ensemble": {"functions": {"a": {"column": "x", "select": "top 60%", "reject": "bottom 50%"}}},
            },
            "cannot select 60 % and reject 50 % of the same pairs",
        ),
        (
            {"pools": "a", "ensemble": {"functions": {"a": {"column": "x", "select": "best 60%"}}}},
            "a threshold is a score, or a share like 'top 40%'",
        ),
        ({"pools": "a", "search": {"truth": "/not/there"}}, "no such file"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(EcoDatumConfig, values)
    assert message in str(caught.value)


def test_a_column_that_there_is_not_is_refused_with_the_nearest_that_is(pool: Path, tmp_path: Path) -> None:
    functions = {"words": {"column": "quality__word", "reject": "bottom 20%"}}
    with pytest.raises(ConfigError, match=r"no column 'quality__word'; did you mean 'quality__words'\?"):
        job(pool, tmp_path / "run", ensemble={"functions": functions})
    with pytest.raises(ConfigError, match=r"tie_break: there is no column 'nothing'"):
        job(pool, tmp_path / "run", tie_break="nothing")


def test_an_operator_of_one_s_own_votes(pool: Path, tmp_path: Path) -> None:
    own = {"red": {"class": "tests.quality.operators.operator_models:Redness", "times": 0.5}}
    found = job(pool, tmp_path / "run", shards=2, operators={"own": own})
    assert "red" in found.manifest["ensemble"]["functions"]
    assert found.manifest["config"]["operators"]["own"] == own
    operated, _ = OperatorSetup.load(found.folder)
    assert operated.operators.own["red"].arguments == {"times": 0.5}
    with pytest.raises(ConfigError, match="takes no 'tims'"):
        job(pool, tmp_path / "other", operators={"own": {"red": {**own["red"], "tims": 1}}})
    assert not (tmp_path / "other").exists()

"""The page of a real, small benchmark: its verdicts, its tables, and what every strategy chose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nemo_mm_rank.benchmark.job import benchmark
from nemo_mm_rank.benchmark.page import Benchmark, findings, write_benchmark_report
from nemo_mm_rank.benchmark.settings import BenchmarkConfig
from nemo_mm_rank.config import parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_sealed, write_sealed
from nemo_mm_rank.measures.statistics import holm, paired_difference
from tests.report.pages import Elements, Opened, data_of

STRATEGIES = ["random", "ranked", "stratified"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "demo": 9,
        "queries": ["natural outdoor scenes with sky, sea, grass or sun"],
        "budget": 6,
        "output": str(tmp_path_factory.mktemp("benchmark") / "run"),
        "strategies": STRATEGIES,
        "seeds": 3,
        "relevant": {"column": "on_topic", "values": [True]},
        "plant": {"total": 0.4},
        "validation": {"pairs": 3},
        "projection": {"max_epochs": 2, "folds": 2},
        "downstream": {"steps": 6, "evaluations": 3, "tokens": 128, "width": 32, "vocabulary": 128},
        "bootstrap": 100,
    }
    return benchmark(parse(BenchmarkConfig, values)).folder


@pytest.fixture(scope="module")
def elements(folder: Path) -> Elements:
    return Elements((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return data_of((folder / "report.html").read_text(encoding="utf-8"))


def test_the_tables_are_those_of_table1(elements: Elements, folder: Path) -> None:
    text = (folder / "table1.md").read_text(encoding="utf-8") + (folder / "cost.md").read_text(encoding="utf-8")
    grids = {name: rows for name, rows in elements.tables.items() if f"## {name}\n" in text}
    assert len(grids) == text.count("\n## ")
    for title, (head, *rows) in grids.items():
        section = text.split(f"## {title}\n")[1].split("\n## ")[0]
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line[:1] == "|"]
        assert [head, *rows] == [lines[0], *lines[2:]], title


def test_verdicts_are_what_the_statistics_say(folder: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    values = {
        name: results[(results["measure"] == "precision") & (results["strategy"] == name)]["value"].tolist()
        for name in STRATEGIES
    }
    found = {name: paired_difference(values["ranked"], values[name]) for name in ("random", "stratified")}
    adjusted = holm([one.p for one in found.values()])
    text = next(one.text for one in findings(Benchmark.open(folder)) if one.text.startswith("By precision"))
    assert "the best of our strategies is ranked" in text
    for (name, one), p in zip(found.items(), adjusted, strict=True):
        said = "better than" if one.value > 0 else "worse than"
        piece = next(piece for piece in text.removesuffix(".").split("; ")[1:] if name in piece)
        assert piece.startswith(said if one.separable else "not separable from")
        assert piece.endswith(" (not after Holm)") == (one.separable and p >= 0.05)


def test_every_strategy_has_its_curve(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    chart = html.split("<h3>Held-out perplexity</h3>")[1].split("</figure>")[0]
    assert chart.count('<path class="band') == 3
    assert chart.count('<path class="line strong') == 1
    assert chart.count('<path class="line') == 3
    results = pd.read_parquet(folder / "results.parquet").query("measure == 'perplexity'")
    assert chart.count('<path class="point') == 3 * results["step"].nunique()
    for name in STRATEGIES:
        last = results[results["strategy"] == name].groupby("step")["value"].mean().iloc[-1]
        assert f"{name} ends at {last:.4g}" in chart


def test_pairs_know_who_chose_them_and_what_was_planted(data: dict[str, Any], folder: Path) -> None:
    assert [blend["name"] for blend in data["blends"]] == ["ranked", "random", "stratified"]
    for blend in data["blends"]:
        chosen = pd.read_parquet(folder / "blends" / f"{blend['name']}-0.parquet").sort_values("rank")["pair_id"]
        assert blend["size"] == len(chosen) == 6
        ranked = set(data["id"][: data["shown"]])
        assert [data["id"][index] for index in blend["pairs"]] == [pair for pair in chosen if pair in ranked]
    truth = pd.read_parquet(folder / "truth.parquet").set_index("pair_id")
    for index, (kinds, relevant) in enumerate(zip(data["truth"], data["relevant"], strict=True)):
        assert kinds == list(truth.loc[data["id"][index], "kinds"])
        assert relevant == truth.loc[data["id"][index], "relevant"]


def test_the_first_seed_and_the_run_are_one(data: dict[str, Any], folder: Path) -> None:
    run = pd.read_parquet(folder / "runs" / "off" / "blend.parquet")
    assert [data["id"][index] for index in data["blends"][0]["pairs"]] == run["pair_id"].tolist()


def test_filter_by_strategy(browser: Any, folder: Path, data: dict[str, Any]) -> None:
    with Opened.at(browser, folder / "report.html") as opened:
        for place, name in ((1, "random"), (2, "stratified"), (0, "ranked")):
            opened.page.select_option("#filters select >> nth=1", label=f"chosen by {name}")
            assert opened.shown() == [data["id"][index] for index in data["blends"][place]["pairs"]]
        opened.page.select_option("#filters select >> nth=1", label="chosen by none")
        opened.view("all")
        chosen = {index for blend in data["blends"] for index in blend["pairs"]}
        assert opened.shown() == [data["id"][index] for index in range(data["shown"]) if index not in chosen]
        opened.page.check("input[value=truth]")
        dots = opened.page.eval_on_selector_all(
            "[data-space=fused] .points", "all => all.map(e => e.getAttribute('d').split('h0').length - 1)"
        )
        noisy = sum(bool(kinds) for kinds in data["truth"])
        assert dots == [data["shown"] - noisy, noisy]
        assert opened.complaints == []
        assert opened.requests == []


def test_without_a_run_of_ours_there_is_the_rest(browser: Any, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    page = write_benchmark_report(copied)
    names = [section["id"] for section in Elements(page.read_text(encoding="utf-8")).named("section")]
    assert names == ["overview", "training", "selection", "mix", "cost", "provenance"]
    with Opened.at(browser, page, wait_for="#cost") as opened:
        assert opened.complaints == []


def test_the_same_folder_gives_the_same_bytes_and_an_unfinished_one_none(folder: Path, tmp_path: Path) -> None:
    again = write_benchmark_report(folder, tmp_path / "again.html")
    assert again.read_bytes() == (folder / "report.html").read_bytes()
    (tmp_path / "results.parquet").write_bytes((folder / "results.parquet").read_bytes())
    with pytest.raises(UserError, match="the benchmark is not finished"):
        write_benchmark_report(tmp_path)


def test_leaks_and_few_seeds_are_told(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("runs", "features"))
    facts = read_sealed(copied / "benchmark.json")
    facts["validation"]["leaks"] = 2
    facts["config"]["seeds"] = [0]
    write_sealed(copied / "benchmark.json", facts)
    said = {one.text: one.mark for one in findings(Benchmark.open(copied))}
    assert said["2 pairs of the pool too near to a validation pair."] == "warn"
    assert said["1 seed: too few to tell strategies apart."] == "warn"
    assert any("not known from one seed" in text for text in said)

"""The search: what is counted by bin is what voting says, and a grid is tried as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.config import parse
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.errors import ConfigError, MissingColumnError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.quality import LabelingFunction, LabelModel, label_votes, lf_summary
from nemo_mm_rank.quality.ensemble.fit import thresholds
from nemo_mm_rank.quality.ensemble.search import BinCounts, Binning, SearchResult, SearchSettings, candidates, search
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings
from nemo_mm_rank.quality.ensemble.step import label_step
from nemo_mm_rank.quality.ensemble.votes import PatternCounts
from nemo_mm_rank.ranking import Files

NAMES = ("clip", "icc", "boxes", "blurry")


def pool(n: int, seed: int = 0) -> pd.DataFrame:
    """Scores that know the truth more or less, in two modalities; every fifth pair is labelled."""
    random = np.random.default_rng(seed)
    clean = random.random(n) < 0.6
    frame = pd.DataFrame(
        {"modality": np.where(np.arange(n) % 3, "image", "video"), "pair_id": np.arange(n).astype(str)}
    )
    for name, noise in zip(NAMES, (0.5, 1.0, 1.5, 3.0), strict=True):
        frame[name] = np.where(clean, 1.0, 0.0) + random.normal(0, noise, n) + 10 * (frame["modality"] == "video")
    frame.loc[::7, "icc"] = np.nan
    labels = [bool(label) if place % 5 == 0 else None for place, label in enumerate(clean)]
    return frame.assign(labelled=pd.array(labels, dtype="boolean"))


def shards(folder: Path, frame: pd.DataFrame, count: int = 3) -> Files:
    files = []
    for part in range(count):
        rows = frame.iloc[len(frame) * part // count : len(frame) * (part + 1) // count]
        files.append((folder / f"{count}-{part}.parquet",))
        write_table(files[-1][0], pa.Table.from_pandas(rows, preserve_index=False))
    return Files(tuple(files))


def ensemble(*names: str, **changes: Any) -> EnsembleSettings:
    functions = {name: {"column": name, "select": "top 40%", "reject": "bottom 40%"} for name in names}
    return parse(EnsembleSettings, {"functions": functions, **changes})


def by_hand(frame: pd.DataFrame, levels: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Measure one choice of thresholds by voting row by row, thresholds by modality from the raw pool."""
    raw = frame["labelled"].isna()
    votes = np.full((len(frame), len(levels)), -1)
    for modality in ("image", "video"):
        mine = (frame["modality"] == modality).to_numpy()
        functions = []
        for name, (top, margin) in levels.items():
            scores = np.sort(frame.loc[raw & mine, name].dropna().to_numpy())
            high = scores[len(scores) - int(len(scores) * (top - margin) / 100 + 1e-9)]
            low = scores[int(len(scores) * (100 - top - margin) / 100 + 1e-9) - 1]
            functions.append(LabelingFunction(name, low, high))
        votes[mine] = label_votes(frame[mine], functions)
    votes = votes.astype(np.int8)
    model = LabelModel().fit(votes[raw])
    chosen = model.predict_proba(votes[~raw]) > 0.5
    clean = frame.loc[~raw, "labelled"].to_numpy(dtype=bool)
    data = lf_summary(votes[raw]).data
    f1 = 2 * (chosen & clean).sum() / (chosen.sum() + clean.sum())
    return {"f1": f1, "overlap": data.overlap, "conflict": data.conflict, "coverage": data.coverage}


def found(
    folder: Path, frame: pd.DataFrame, names: tuple[str, ...] = NAMES, count: int = 3, **changes: Any
) -> SearchResult:
    return search(shards(folder, frame, count), ensemble(*names), parse(SearchSettings, changes), SerialEngine().map)


def test_every_point_of_a_small_grid_is_measured_as_by_hand(tmp_path: Path) -> None:
    frame = pool(600)
    weights = {"f1": 2.0, "overlap": 0.5, "conflict": 0.25, "coverage": 1.5}
    result = found(tmp_path, frame, NAMES[:3], tops=[30, 50], margins=[0, 10], weights=weights)
    trace = result.trace.to_pandas()
    assert len(trace) == 4**3
    for row in trace.iloc[::7].to_dict("records"):
        levels = {name: (row[f"{name}__top"], row[f"{name}__margin"]) for name in NAMES[:3]}
        expected = by_hand(frame, levels)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        m = 2 * row["f1"] + 0.5 * row["overlap"] - 0.25 * row["conflict"] + 1.5 * row["coverage"]
        assert row["m"] == pytest.approx(m)
    assert trace.loc[trace["best"], "m"].item() == trace["m"].max()
    assert trace["best"].to_numpy().argmax() == trace["m"].to_numpy().argmax()  # the first of equals
    best = result.settings.functions["clip"]
    assert str(best.select) == f"{result.best['clip__top'] - result.best['clip__margin']:g} %"


def test_any_sharding_finds_the_same(tmp_path: Path) -> None:
    frame = pool(200)
    traces = [found(tmp_path, frame, NAMES[:3], count, tops=[40, 60], margins=[0]).trace for count in (1, 4)]
    assert traces[0].equals(traces[1])
    shuffled = frame.sample(frac=1, random_state=1)
    assert found(tmp_path, shuffled, NAMES[:3], 2, tops=[40, 60], margins=[0]).trace.equals(traces[0])


def test_a_large_grid_is_searched_with_a_seed_and_comes_close(tmp_path: Path) -> None:
    frame = pool(300)
    grid: dict[str, Any] = {"tops": [30, 40, 50, 60], "margins": [0]}
    whole = found(tmp_path, frame, NAMES[:3], **grid)
    assert whole.trace.num_rows == 4**3
    some = found(tmp_path, frame, NAMES[:3], **grid, exhaustive=10, evaluations=40)
    again = found(tmp_path, frame, NAMES[:3], **grid, exhaustive=10, evaluations=40)
    assert some.trace.equals(again.trace)
    assert 20 <= some.trace.num_rows <= 60
    values = np.sort(whole.trace["m"].to_numpy())
    assert some.best["m"] >= values[int(0.8 * len(values))]
    other = found(tmp_path, frame, NAMES[:3], **grid, exhaustive=10, evaluations=40, seed=1)
    assert not other.trace.equals(some.trace)


def test_only_named_functions_are_searched_and_numbers_stay(tmp_path: Path) -> None:
    settings_ = parse(SearchSettings, {"functions": ["icc"], "tops": [50], "margins": [0, 20]})
    options = candidates(ensemble(*NAMES), settings_)
    assert {name: len(some) for name, some in options.items()} == {"clip": 1, "icc": 2, "boxes": 1, "blurry": 1}
    fixed = parse(EnsembleSettings, {"functions": {"blurry": {"column": "blurry", "reject": 0.28}}})
    assert len(candidates(fixed, parse(SearchSettings, {}))["blurry"]) == 1
    result = found(tmp_path, pool(100), functions=["icc"], tops=[50], margins=[0, 20])
    assert result.trace.column_names[:2] == ["icc__top", "icc__margin"]
    assert result.settings.functions["clip"] == ensemble("clip").functions["clip"]


def test_points_without_three_functions_that_say_anything_have_no_measure(tmp_path: Path) -> None:
    frame = pool(100).assign(blurry=1.0)
    with pytest.raises(ConfigError, match="no thresholds leave 3 labeling functions"):
        found(tmp_path, frame, ("clip", "icc", "blurry"), tops=[50])


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no labeling function 'clap'; did you mean 'clip'"):
        found(tmp_path, pool(20), functions=["clap"])
    with pytest.raises(ConfigError, match="'clip' has no candidate"):
        found(tmp_path, pool(20), tops=[20], margins=[30])
    frame = pool(20)
    frame["labelled"] = frame["labelled"].where(frame["labelled"].isna(), True)
    with pytest.raises(ConfigError, match="the labelled set has no noisy pair"):
        found(tmp_path, frame)
    with pytest.raises(MissingColumnError, match="shard 0 lacks 'labelled'"):
        found(tmp_path, frame.drop(columns="labelled"))


def test_labels_are_looked_up_by_id(tmp_path: Path) -> None:
    truth = pd.DataFrame({"pair_id": ["b", "a", "z"], "clean": [False, True, True], "kinds": [["x"], [], []]})
    truth.to_parquet(tmp_path / "truth.parquet")
    frame = label_step(tmp_path / "truth.parquet")(pd.DataFrame({"pair_id": ["a", "b", "c"]}))
    assert frame["labelled"].to_numpy(dtype=object, na_value=None).tolist() == [True, False, None]


tied = st.lists(st.one_of(st.none(), st.integers(0, 3).map(float), st.floats(-2, 2)), min_size=1, max_size=25)


@given(tied, st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 2)), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_bin_votes_as_every_score_in_it(scores: list[float | None], levels: list[tuple[float, float]]) -> None:
    frame = pd.DataFrame({"x": np.array(scores, dtype=float)})
    options = [LabelingFunction("x", low, low + gap) for low, gap in levels]
    binning = Binning.of([options])
    counted = BinCounts.of(binning.bins(frame))
    for place, option in enumerate(options):
        expected = PatternCounts.of(label_votes(frame, [option]))
        ours = PatternCounts.merged([PatternCounts(binning.pick(counted.bins, [place]), counted.counts)])
        assert ours.patterns.tolist() == expected.patterns.tolist()
        assert ours.counts.tolist() == expected.counts.tolist()


@given(tied, st.integers(1, 49), st.integers(1, 50))
@settings(deadline=None)
def test_shares_are_never_exceeded_whatever_is_tied(scores: list[float | None], top: int, bottom: int) -> None:
    frame = pd.DataFrame({"modality": "text", "x": np.array(scores, dtype=float)})

    class InMemory:
        count = 1

        def read(self, part: int, columns: Any = None) -> pa.Table:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            return table.select([name for name in columns if name in table.column_names])

    function = {"column": "x", "select": f"top {top}%", "reject": f"bottom {bottom}%"}
    [resolved] = thresholds(InMemory(), parse(EnsembleSettings, {"functions": {"x": function}}))["text"]
    votes = label_votes(frame, [resolved])[:, 0]
    there = frame["x"].notna().sum()
    assert (votes == 1).sum() <= there * top / 100
    assert (votes == 0).sum() <= there * bottom / 100
    if frame["x"].dropna().is_unique:
        assert (votes == 1).sum() == there * top // 100
        assert (votes == 0).sum() == there * bottom // 100

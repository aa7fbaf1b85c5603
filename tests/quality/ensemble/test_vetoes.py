"""Vetoes: what they take from a quality, that they are no part of the label model, and that they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nemo_mm_rank import frames
from nemo_mm_rank.config import Budget, parse
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality import LabelModel, lf_summary
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, Ensemble, Fitted, fit, settle
from nemo_mm_rank.quality.ensemble.search import Candidate, SearchSettings, candidates, search
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings
from nemo_mm_rank.quality.ensemble.step import EnsembleStep, choose, reasons
from nemo_mm_rank.quality.ensemble.votes import PatternCounts
from tests.quality.ensemble.shards import InMemory

VOTERS = ("clip", "icc", "boxes")
BOTH: dict[str, Any] = {"select": "top 40%", "reject": "bottom 40%"}


def pool(n: int = 400) -> pd.DataFrame:
    """Three scores that know the truth more or less, and two of defects that they know nothing of."""
    random = np.random.default_rng(0)
    clean = random.random(n) < 0.6
    frame = pd.DataFrame({"pair_id": [f"{place:04d}" for place in range(n)], "pool": "p", "modality": "image"})
    for name, noise in zip(VOTERS, (0.4, 0.6, 0.8), strict=True):
        frame[name] = clean + random.normal(0, noise, n)
    return frame.assign(dark=np.arange(n) % 10 / 10, odd=np.arange(n) % 4 / 10)


def settings(**functions: dict[str, Any]) -> EnsembleSettings:
    vetoes = {"dark": {"column": "dark", "reject": 0.0, "veto": True}}
    vetoes["odd"] = {"column": "odd", "reject": 0.0, "veto": True}
    first, *rest = VOTERS
    # A veto may stand anywhere among the functions.
    named = {first: {"column": first, **BOTH}, **vetoes, **{name: {"column": name, **BOTH} for name in rest}}
    return parse(EnsembleSettings, {"functions": {**named, **functions}})


def fitted(frame: pd.DataFrame, **functions: dict[str, Any]) -> Fitted:
    return fit(InMemory(frame), settings(**functions), SerialEngine().map)


def test_every_veto_is_a_factor_and_the_label_model_knows_of_none() -> None:
    frame = pool()
    ensemble = fitted(frame).ensemble
    assert ensemble.names == ("clip", "dark", "odd", "icc", "boxes")
    assert ensemble.vetoes == {"dark", "odd"}
    assert ensemble.voters == VOTERS
    votes = ensemble.votes(frame)
    voters = votes[:, [0, 3, 4]]
    alone = LabelModel().fit(voters)
    assert ensemble.model.mu.tobytes() == alone.mu.tobytes()
    against = (frame["dark"] == 0).to_numpy().astype(int) + (frame["odd"] == 0).to_numpy()
    assert np.bincount(against).tolist() == [280, 100, 20]
    expected = alone.predict_proba(voters) * np.array([1, 0.05, 0.0025])[against]
    np.testing.assert_allclose(ensemble.predict(votes), expected, rtol=1e-15)


def test_a_veto_is_never_taken_to_be_wrong() -> None:
    frame = pool()
    frame["dark"] = -frame["clip"]  # it speaks against the pairs that agree best
    against: dict[str, Any] = {"column": "dark", "reject": "bottom 40%"}
    vetoed, voted = fitted(frame, dark={**against, "veto": True}), fitted(frame, dark=against)
    assert "dark" in vetoed.ensemble.vetoes
    assert vetoed.left_out == {}
    assert {name: fault.kind for name, fault in voted.left_out.items()} == {"dark": "inverted"}


def test_a_veto_that_tells_no_pairs_apart_is_left_out_and_told() -> None:
    found = fitted(
        pool(),
        dark={"column": "dark", "reject": -1.0, "veto": True},
        odd={"column": "odd", "reject": 1.0, "veto": True},
    )
    assert found.ensemble.names == VOTERS
    assert {name: fault.kind for name, fault in found.left_out.items()} == {"dark": "silent", "odd": "constant"}
    assert found.warnings == [
        "labeling function 'dark' never votes; it is left out",
        "labeling function 'odd' rejects 100.0% of the pairs; it is left out",
    ]


def test_vetoes_are_not_among_the_three_that_a_label_model_needs() -> None:
    with pytest.raises(
        ConfigError, match=r"at least 3 labeling functions \(not counting vetoes\) must have something to say"
    ):
        fitted(pool(), boxes={"column": "boxes", "reject": "bottom 40%", "veto": True})


def test_a_settled_ensemble_takes_the_votes_of_all_functions() -> None:
    frame = pool()
    silent: dict[str, Any] = {"column": "clip", "reject": -100.0}
    mine = settings(silent=silent)
    ensemble = fitted(frame, silent=silent).ensemble
    votes = np.concatenate([ensemble.votes(frame), np.full((len(frame), 1), -1, dtype=np.int8)], axis=1)
    settled = settle(PatternCounts.of(votes), mine)
    assert settled is not None
    assert (settled.voters, settled.vetoes, list(settled.left_out)) == ([0, 3, 4], [1, 2], [5])
    assert settled.predict(votes).tobytes() == ensemble.predict(votes[:, :5]).tobytes()


def test_the_manifest_tells_votes_and_vetoes_apart() -> None:
    frame = pool()
    found = fitted(frame)
    table = found.as_json()["functions"]
    assert list(table) == list(found.ensemble.names)
    assert {name: entry["veto"] for name, entry in table.items()} == {
        "clip": False,
        "dark": True,
        "odd": True,
        "icc": False,
        "boxes": False,
    }
    assert [table[name]["weight"] for name in VOTERS] == found.ensemble.model.weights.tolist()
    assert (table["dark"]["weight"], table["odd"]["weight"]) == (None, None)
    assert (table["dark"]["rejects"], table["odd"]["rejects"]) == (0.1, 0.25)
    data = lf_summary(found.ensemble.votes(frame)).data
    assert found.as_json()["data"] == {"coverage": data.coverage, "overlap": data.overlap, "conflict": data.conflict}


def test_an_artifact_comes_back_to_the_bit(tmp_path: Path) -> None:
    frame = pool()
    ensemble = fitted(frame).ensemble
    ensemble.save(tmp_path)
    again = Ensemble.load(tmp_path)
    assert (again.names, again.vetoes, dict(again.functions)) == (
        ensemble.names,
        ensemble.vetoes,
        dict(ensemble.functions),
    )
    assert again.predict(again.votes(frame)).tobytes() == ensemble.predict(ensemble.votes(frame)).tobytes()
    assert EnsembleStep(again).identity() == EnsembleStep(ensemble).identity()
    no_veto = Ensemble(ensemble.names, ensemble.functions, ensemble.model)
    assert EnsembleStep(no_veto).identity() != EnsembleStep(ensemble).identity()


def test_a_duplicate_of_a_better_pair_is_vetoed_and_its_votes_stay() -> None:
    frame = pool()
    step = EnsembleStep(fitted(frame).ensemble)
    plain = step(frame)
    gone = np.arange(len(frame)) % 3 == 0
    out = step(frame.assign(**{DUPLICATE_OF: pd.Series(["0001" if lost else None for lost in gone])}))
    before, after = (frames.numbers(one, "quality") for one in (plain, out))
    np.testing.assert_allclose(after, before * np.where(gone, 0.05, 1), rtol=1e-6)
    assert (after[~gone] == before[~gone]).all()
    assert frames.array(out, "votes").equals(frames.array(plain, "votes"))
    none = step(frame.assign(**{DUPLICATE_OF: pd.Series([None] * len(frame), dtype=pd.ArrowDtype(pa.string()))}))
    assert frames.numbers(none, "quality").tolist() == before.tolist()


def test_reasons_tell_votes_and_vetoes_apart() -> None:
    votes = np.array([[1, 0, -1, 0], [1, -1, -1, 1], [-1, 0, 0, -1], [-1, -1, -1, -1]], dtype=np.int8)
    assert reasons(votes, ("clip", "dark", "odd", "icc"), {"dark", "odd"}).to_pylist() == [
        "selected by clip; rejected by icc; vetoed by dark",
        "selected by clip, icc",
        "vetoed by dark, odd",
        "no labeling function votes",
    ]


def test_the_blend_says_what_vetoed_a_pair() -> None:
    frame = pool()
    ensemble = fitted(frame).ensemble
    scored = EnsembleStep(ensemble)(frame)
    choice = choose(InMemory(scored), ensemble.names, Budget(fraction=1.0), len(frame), vetoes=ensemble.vetoes)
    said = dict(zip(choice.chosen["pair_id"].to_pylist(), choice.chosen["reason"].to_pylist(), strict=True))
    dark, odd = ({f"{place:04d}" for place in range(0, 400, every)} for every in (10, 4))
    assert {name for name, line in said.items() if line.endswith("vetoed by dark, odd")} == dark & odd
    assert {name for name, line in said.items() if "vetoed by" in line} == dark | odd


def test_a_search_keeps_vetoes_and_outliers_as_they_are() -> None:
    functions: dict[str, dict[str, Any]] = {
        "dark": {"column": "dark", "reject": ["outliers", 0.1], "veto": True},
        "odd": {"column": "odd", "reject": "outliers"},
        "clip": {"column": "clip", "reject": "bottom 20%", "veto": True},
    }
    mine = settings(**functions)
    options = candidates(mine, parse(SearchSettings, {"tops": [60, 80], "margins": [0]}))
    assert options["dark"] == [Candidate(None, None, mine.functions["dark"])]
    assert options["odd"] == [Candidate(None, None, mine.functions["odd"])]
    assert [(str(one.settings.reject), one.settings.veto) for one in options["clip"]] == [
        ("40 %", True),
        ("20 %", True),
    ]


def test_a_search_selects_no_pair_that_is_vetoed() -> None:
    frame = pool()
    labels = pd.array([place % 2 == 0 if place % 7 == 0 else None for place in range(len(frame))], dtype="boolean")
    frame = frame.assign(labelled=labels)
    grid = parse(SearchSettings, {"tops": [60], "margins": [10]})
    found = search(InMemory(frame), settings(), grid, SerialEngine().map)
    raw = frame["labelled"].isna()
    ensemble = fit(InMemory(frame), found.settings, SerialEngine().map).ensemble
    votes = ensemble.votes(frame[~raw])
    clean = frame.loc[~raw, "labelled"].to_numpy(dtype=bool)
    chosen = ensemble.predict(votes) > 0.5
    assert (ensemble.model.predict_proba(votes[:, [0, 3, 4]]) > 0.5).sum() > chosen.sum() > 0
    f1 = 2 * (chosen & clean).sum() / (chosen.sum() + clean.sum())
    assert found.best["f1"] == pytest.approx(f1, abs=1e-15)
    # What the metric says of votes, it says of those that the label model is made of.
    data = lf_summary(ensemble.votes(frame[raw])[:, [0, 3, 4]]).data
    measured = [found.best[name] for name in ("coverage", "overlap", "conflict")]
    assert measured == pytest.approx([data.coverage, data.overlap, data.conflict], abs=1e-15)

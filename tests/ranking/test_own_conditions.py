"""A condition of the user's own, by import path: in the score, in words, in every reader, and only where trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.config import ConditionSpec, Config, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.models import loader
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.report import write_report
from nemo_mm_rank.run.curation import Result, explain
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.trust import Trust
from tests.integration.runs import BROAD, digests, many_texts, settings

CODE = '''
import numpy as np


class Long:
    """Says that long data is likely, and nothing of data with a 3."""

    columns = ("data", "agreement_score")
    least = 0.01

    def __init__(self, name, characters, times=1.0):
        self.name, self.characters, self.times = name, characters, times

    def chances(self, table):
        texts = table["data"].to_pylist()
        more = np.array([(len(text) - self.characters) / 12 for text in texts])
        return np.where(["3 of" in text for text in texts], np.nan, np.clip(more, 0, 1) * self.times)


class Broken(Long):
    def chances(self, table):
        return 1 / 0


class Wide(Long):
    def chances(self, table):
        return super().chances(table)[:, None]


class Else(Long):
    def __init__(self, name, characters):
        super().__init__("else", characters)


class Lacking(Long):
    columns = ("data", "sharpness")


class NoChances:
    name, columns = "long", ()
'''
SPEC: dict[str, Any] = {"class": "long_of_mine:Long", "strength": 2.0, "characters": 55}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("library")
    (folder / "long_of_mine.py").write_text(CODE, encoding="utf-8")
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    sys.modules.pop("long_of_mine", None)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, library: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own")
    conditions = {"match": 3.0, "long": SPEC}
    ranking = {"broad": BROAD, "conditions": conditions}
    values = settings(many_texts(folder / "pool.jsonl"), folder / "run", shards=3, budget="25%", ranking=ranking)
    return {**values, "import_from": [str(library)], "sns": {"mode": "off"}}


@pytest.fixture(scope="module")
def run(config: dict[str, Any]) -> Result:
    return curate(config=config, progress=False)


def expected(text: str) -> float:
    return float("nan") if "3 of" in text else max(0.01, min((len(text) - 55) / 12, 1.0))


def test_it_takes_part_like_any_other(config: dict[str, Any], run: Result) -> None:
    blend = run.blend
    np.testing.assert_array_equal(blend["chance_long"].astype(float), [expected(text) for text in blend["data"]])
    about = run.manifest["ranking"]["conditions"]
    assert about["long"] == {
        "strength": 2.0,
        "known": 120 - sum("3 of" in text for text in run.pairs(["data"])["data"]),
    }
    assert run.manifest["config"]["ranking"]["conditions"] == {"match": 3.0, "long": SPEC}
    first = blend.iloc[0]
    chance = f"{expected(first['data']):.0%}".replace("%", " %")
    assert f"; long {chance}; match" in first["reason"]
    told = explain(run.folder, first["pair_id"])
    assert f"  long         {chance} likely x weight 2 of its logarithm" in told
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    page = write_report(run.folder).read_text("utf-8")
    assert "if long" in page
    assert "probability of long" in page
    whole = curate(config={**config, "output": config["output"] + "-1", "shards": 1}, progress=False)
    assert digests(whole.folder) == digests(run.folder)


def test_it_decides(config: dict[str, Any], run: Result) -> None:
    without = {**config["ranking"], "conditions": {"match": 3.0}}
    other = curate(config={**config, "output": config["output"] + "-2", "ranking": without}, progress=False)
    assert "chance_long" not in other.blend
    assert run.blend["chance_long"].mean() > np.nanmean([expected(text) for text in other.blend["data"]]) + 0.01


def test_new_pairs_are_scored_by_it(run: Result, library: Path) -> None:
    finished = FinishedRun.load(run.folder, Trust((str(library),)))
    step = QueryStep(finished.config, finished.models, finished.scoring)
    assert {"data", "agreement_score", "match_probability"} <= step.requires.keys()
    folder = RunFolder(run.folder)
    table = State.load(folder).open(folder).read(1)
    done = step(frames.from_table(table))
    scores = dict(zip(frames.strings(done, "pair_id"), done["score"].tolist(), strict=True))
    blend = dict(zip(run.blend["pair_id"], run.blend["score"], strict=True))
    mine = scores.keys() & blend.keys()
    assert mine
    assert {name: scores[name] for name in mine} == {name: blend[str(name)] for name in mine}


def made(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_ino for path in sorted(run.glob("steps/*/part-00000.parquet"))}


def test_only_what_changes_is_computed_again(config: dict[str, Any], run: Result, library: Path) -> None:
    before, first = made(run.folder), digests(run.folder)

    def again(**changes: Any) -> list[str]:
        conditions = {"match": 3.0, "long": {**SPEC, **changes}}
        rank(run.folder, ranking={"conditions": conditions}, import_from=library)
        return sorted({name.split("-")[0] for name, inode in made(run.folder).items() if before.get(name) != inode})

    assert again(strength=1.0) == ["feedback"]  # other pairs are the best
    assert again(characters=8) == ["conditions", "feedback"]
    assert "conditions" not in again(strength=0)
    assert not list(run.folder.glob("steps/conditions-*"))
    again()
    rank(run.folder, import_from=library)
    assert digests(run.folder) == first


def test_readers_need_none_of_its_code_and_others_are_asked(
    run: Result, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(run.blend["pair_id"][0])
    told = explain(run.folder, name)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(sys, "path", [folder for folder in sys.path if folder != str(library)])
        elsewhere.delitem(sys.modules, "long_of_mine", raising=False)
        loader.release({"long": ConditionSpec.model_validate(SPEC)})
        assert explain(run.folder, name) == told
        FinishedRun.load(run.folder, trust=None)
        for read in (rank, FinishedRun.load):
            with pytest.raises(UserError) as refused:
                read(run.folder)
            assert str(refused.value) == (
                f"{run.folder}: condition 'long' of this run is the class 'long_of_mine:Long', which is not this "
                "package's, and the folder of a run may come from anybody: if you trust this one, say so with "
                "--trust-run (trust_run in Python), or name the folder of the class with --import-from"
            )
        with pytest.raises(UserError, match="condition 'long' of this run"):  # what comes with the folder stays foreign
            rank(run.folder, ranking={"conditions": FinishedRun.load(run.folder, None).config.ranking.conditions})
        assert "long_of_mine" not in sys.modules
    # One that the caller names is the caller's own.
    own = {"class": f"{__name__}:Even", "strength": 1.0}
    assert rank(run.folder, ranking={"conditions": {"even": own}}).blend["chance_even"].isin([0.5, 1.0]).all()
    rank(run.folder, ranking={"conditions": {"match": 3.0, "long": SPEC}}, import_from=library)


class Even:
    name, columns, least = "even", ("pair_id",), 0.5

    def chances(self, table: Any) -> np.ndarray:
        return np.array([int(name[1:]) % 2 == 0 for name in table["pair_id"].to_pylist()], dtype=np.float64)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class": "long_of_mine:Long", "characters": 8, "times": 2}, "'long' has values outside of"),
        (
            {"class": "long_of_mine:Wide", "characters": 8},
            r"'long' has probabilities of shape \(\d+, 1\) for \d+ pairs",
        ),
        ({"class": "long_of_mine:Broken", "characters": 8}, "condition 'long' failed with ZeroDivisionError"),
        ({"class": "long_of_mine:Else", "characters": 8}, "condition 'long' calls itself 'else'"),
        ({"class": "long_of_mine:Lacking", "characters": 8}, "conditions: the shards lack 'sharpness'"),
        ({"class": "long_of_mine:NoChances"}, r"cannot be used as condition: it lacks least, chances\(\)"),
        ({"class": "long_of_mine:Long"}, "needs 'characters'"),
        ({"class": "long_of_mine:Long", "character": 8}, "takes no 'character'; did you mean 'characters'"),
        ({"class": "long_of_mine:Short"}, "has no class 'Short'"),
    ],
)
def test_what_is_wrong_is_said(run: Result, library: Path, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        rank(run.folder, ranking={"conditions": {"long": spec}}, import_from=library)


@pytest.mark.parametrize(
    ("ranking", "said"),
    [
        ({"conditions": {"match": SPEC}}, "ranking.conditions: 'match' cannot be used as a name: it is taken"),
        ({"conditions": {"a__b": SPEC}}, "ranking.conditions: 'a__b' cannot be used as a name"),
        ({"conditions": {"words": SPEC}}, "ranking.conditions: 'words' cannot be used as a name: it is taken"),
        (
            {"conditions": {"long": SPEC}, "scores": {"long": "x.parquet"}},
            "ranking.conditions: 'long' cannot be used as a name: it is taken",
        ),
        ({"conditions": {"long": {**SPEC, "strength": -1}}}, "conditions.long.*strength"),
        ({"conditions": {"long": {"strength": 1}}}, "conditions.long.*class"),
        ({"weights": {"long": 1.0}, "conditions": {"long": SPEC}}, "no score 'long'"),
    ],
)
def test_settings_that_cannot_be_meant(ranking: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(Config, {"pools": "-", "queries": "x", "ranking": ranking})


def test_settings_come_back_as_they_were() -> None:
    values = {"pools": "-", "queries": "x", "ranking": {"conditions": {"match": 1.0, "long": SPEC}}}
    config = parse(Config, values)
    assert config.ranking.strengths == {"match": 1.0, "long": 2.0}
    assert config.ranking.computed["long"].arguments == {"characters": 55}
    dumped = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    assert dumped["ranking"]["conditions"] == values["ranking"]["conditions"]  # type: ignore[index]
    assert parse(Config, dumped) == config

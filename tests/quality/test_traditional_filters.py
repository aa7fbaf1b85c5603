"""The filters are Curator's: the same classes, defaults, scores and verdicts as its own stages give."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from nemo_mm_rank import frames
from nemo_mm_rank.config import parse, read_yaml
from nemo_mm_rank.errors import ConfigError, ModelError, UserError
from nemo_mm_rank.quality.text_filters import (
    LABEL,
    MARGIN,
    ROW_FILTERS_PASSED,
    Rule,
    TraditionalSettings,
    TraditionalStep,
    passed_column,
    rules,
    score_column,
)
from nemo_mm_rank.quality.traditional import curator_stages
from nemo_mm_rank.run.traditional import TraditionalConfig
from tests.quality.annotations import FAULTS, OTHER, PARAGRAPH

nemo_curator = pytest.importorskip("nemo_curator")

ROOT = Path(__file__).resolve().parents[2]
LID = ROOT.parent / "shared" / "models" / "lid.176.ftz"
needs_lid = pytest.mark.skipif(not LID.exists(), reason="the shared fastText file does not lie beside this checkout")


def frame(annotations: dict[str, str | None]) -> pd.DataFrame:
    return pd.DataFrame({"pair_id": list(annotations), "annotation": list(annotations.values())})


def curators(frame: pd.DataFrame, stages: list[Any]) -> pd.DataFrame:
    """Put the frame through real Curator stages, in this process."""
    from nemo_curator.tasks import DocumentBatch

    batch = DocumentBatch(dataset_name="test", data=frame.copy())
    for stage in stages:
        stage.setup()
        batch = stage.process(batch)
    left: pd.DataFrame = batch.to_pandas()
    return left


def test_the_defaults_are_those_of_curators_own_cascade() -> None:
    file = Path(nemo_curator.__file__).parent / "config" / "text" / "heuristic_filter_english_pipeline.yaml"
    theirs = [
        dict(stage["filter_obj"]) for stage in yaml.safe_load(file.read_text())["stages"] if "filter_obj" in stage
    ]
    ours: list[dict[str, Any]] = []
    for rule in rules(TraditionalSettings()):
        document_filter = rule.make()
        assert document_filter.name == rule.name
        class_ = next(c for c in type(document_filter).__mro__ if c.__module__.startswith("nemo_curator."))
        known = inspect.signature(class_).parameters
        others = {name: p.default for name, p in known.items() if name not in (*rule.arguments, "lang", "url_regex")}
        ours.append({"class": class_.__name__, **rule.arguments, **others})
    theirs = [{"class": values.pop("_target_").rpartition(".")[2], **values} for values in theirs]
    assert sorted(map(repr, map(plain, ours))) == sorted(map(repr, map(plain, theirs)))


def plain(values: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value if isinstance(value, str) else float(value)) for name, value in values.items())


def test_near_duplicates_are_searched_as_curators_workflow_does() -> None:
    workflow = Path(nemo_curator.__file__).parent / "config" / "text" / "fuzzy_deduplication_pipeline.yaml"
    theirs = yaml.safe_load(workflow.read_text())["workflow"][0]
    near = TraditionalSettings().near_duplicates
    assert near != "off"
    assert (near.seed, near.char_ngrams, near.bands, near.rows) == tuple(
        theirs[name] for name in ("seed", "char_ngrams", "num_bands", "minhashes_per_band")
    )


@pytest.mark.parametrize("name", list(FAULTS))
def test_faults_fail_the_filters_that_they_should(name: str) -> None:
    text, failed = FAULTS[name]
    judged = TraditionalStep(TraditionalSettings())(frame({name: text}))
    names = [rule.name for rule in rules(TraditionalSettings())]
    assert tuple(n for n in names if not judged[passed_column(n)].iloc[0]) == failed
    assert judged[ROW_FILTERS_PASSED].iloc[0] == 28 - len(failed)


@needs_lid
def test_every_score_and_verdict_is_that_of_curators_score_filter() -> None:
    settings = parse(TraditionalSettings, {"language": {"model": str(LID), "lang": "en"}})
    pool = frame({**{name: text for name, (text, _) in FAULTS.items()}, "again": PARAGRAPH, "dot": ".", "one": "dog"})
    judged = TraditionalStep(settings)(pool).set_index("pair_id")
    stages = curator_stages(settings)
    assert len(stages) == len(rules(settings)) == 29
    for rule, stage in zip(rules(settings), stages, strict=True):
        kept = curators(pool, [stage]).set_index("pair_id")
        passed = judged[passed_column(rule.name)]
        assert list(kept.index) == list(passed[passed].index), rule.name
        scores = kept[score_column(rule.name)]
        if rule.name == "lang_id":
            ours = judged.loc[kept.index]
            assert [str([a, b]) for a, b in zip(ours[score_column("lang_id")], ours[LABEL], strict=True)] == list(
                scores
            )
        else:
            assert judged.loc[kept.index, score_column(rule.name)].tolist() == scores.tolist(), rule.name


NO_GRAM_TWICE = "Two dogs run over the wet grass of a park."


def test_the_most_frequent_ngram_is_curators_and_the_first_where_several_are() -> None:
    from nemo_curator.stages.text.filters.heuristic.repetition import RepeatingTopNGramsFilter

    from nemo_mm_rank.quality.curator_filters import TopNGramsFilter

    once_more = "the red car and the red bus and the red bike"
    for n in (2, 3, 4):
        ours, theirs = TopNGramsFilter(n=n), RepeatingTopNGramsFilter(n=n)
        assert ours.score_document("one") == theirs.score_document("one") == 1.0
        if n == 2:  # "the red" is there thrice, and alone in that
            assert ours.score_document(once_more) == theirs.score_document(once_more) == 3 * len("the red") / 44
        words = NO_GRAM_TWICE.split()
        possible = {len(" ".join(words[i : i + n])) / len(NO_GRAM_TWICE) for i in range(len(words) - n + 1)}
        assert theirs.score_document(NO_GRAM_TWICE) in possible
        assert ours.score_document(NO_GRAM_TWICE) == len(" ".join(words[:n])) / len(NO_GRAM_TWICE)


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_process() -> None:
    code = (
        "import pandas as pd; from nemo_mm_rank.quality.text_filters import TraditionalSettings, TraditionalStep;"
        f"out = TraditionalStep(TraditionalSettings())(pd.DataFrame({{'annotation': [{NO_GRAM_TWICE!r}]}}));"
        "print(out.drop(columns='annotation').to_json())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = TraditionalStep(TraditionalSettings())(pd.DataFrame({"annotation": [NO_GRAM_TWICE]}))
    assert said.stdout.splitlines()[-1] == here.drop(columns="annotation").to_json()


@needs_lid
def test_language_is_judged_by_the_real_file() -> None:
    settings = parse(TraditionalSettings, {"language": {"model": str(LID), "lang": "EN"}})
    judged = TraditionalStep(settings)(frame({"en": OTHER, "de": FAULTS["german"][0]}))
    assert judged[LABEL].tolist() == ["en", "de"]
    assert judged[passed_column("lang_id")].tolist() == [True, False]
    assert (judged[score_column("lang_id")] > 0.9).all()
    any_language = parse(TraditionalSettings, {"language": {"model": str(LID)}})
    assert TraditionalStep(any_language)(frame({"de": FAULTS["german"][0]}))[passed_column("lang_id")].all()


@needs_lid
def test_the_step_can_be_sent_to_a_worker_after_its_model_is_loaded() -> None:
    step = TraditionalStep(parse(TraditionalSettings, {"language": {"model": str(LID)}}))
    here = step(frame({"a": OTHER}))
    there = pickle.loads(pickle.dumps(step))(frame({"a": OTHER}))
    assert frames.to_table(there).equals(frames.to_table(here))


def test_a_file_that_is_none_of_fasttext_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "model.ftz").write_text("no model")
    step = TraditionalStep(parse(TraditionalSettings, {"language": {"model": str(tmp_path / "model.ftz")}}))
    with pytest.raises(ModelError, match=r"lang_id: .*model\.ftz has wrong file format"):
        step(frame({"a": OTHER}))


def test_annotations_that_are_no_text_are_quarantined_with_their_reason() -> None:
    judged = TraditionalStep(TraditionalSettings())(frame({"empty": " ", "null": None, "good": OTHER, "nul": "a\0b"}))
    assert frames.strings(judged, "error") == [
        "traditional: TextError: the text is empty",
        "traditional: TextError: the text is missing",
        None,
        "traditional: TextError: the text holds a NUL character: this is binary data",
    ]
    assert frames.array(judged, ROW_FILTERS_PASSED).to_pylist() == [None, None, 28, None]
    only_bad = TraditionalStep(TraditionalSettings())(frame({"empty": "\n"}))
    assert frames.strings(only_bad, "error") == ["traditional: TextError: the text is empty"]


def test_the_margin_is_the_mean_distance_from_the_thresholds() -> None:
    off = {name: "off" for name, _ in TraditionalSettings().filters}
    settings = parse(
        TraditionalSettings,
        {
            "filters": {
                **off,
                "numbers_ratio": 0.5,
                "words_without_alphabets": 0.5,
                "word_count": {"least": 1, "most": 9},
            }
        },
    )
    # "a 11": 2 of 4 characters are digits (margin 0), 1 of 2 words has a letter (0).
    # "ab c1": 1 of 5 characters (0.6), both words (1); the word count has no part in it; divided by one more than two.
    judged = TraditionalStep(settings)(frame({"edge": "a 11", "inside": "ab c1", "outside": "1 1 1"}))
    assert judged[MARGIN].tolist() == pytest.approx([0.0, 1.6 / 3, 0.0])
    assert judged[ROW_FILTERS_PASSED].tolist() == [3, 3, 1]


@pytest.mark.parametrize(
    ("rule", "score", "margin"),
    [
        (Rule("a", "", "", {}, most=0.2), 0.0, 1.0),
        (Rule("a", "", "", {}, most=0.2), 0.3, 0.0),
        (Rule("a", "", "", {}, most=0.0), 0.0, 1.0),
        (Rule("a", "", "", {}, least=0.8), 0.9, 0.5),
        (Rule("a", "", "", {}, least=1.0), 1.0, 1.0),
        (Rule("a", "", "", {}, least=1.0), 0.99, 0.0),
    ],
)
def test_margins_at_the_ends(rule: Rule, score: float, margin: float) -> None:
    assert rule.margin(np.array([score])).tolist() == pytest.approx([margin])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": {"urls": 0.2}}, "filters.urls: unknown key; did you mean 'urls_ratio'?"),
        ({"filters": {"urls_ratio": 1.2}}, "less than or equal to 1"),
        ({"filters": {"word_count": {"least": 9, "most": 3}}}, "nothing lies between 9 and 3"),
        ({"language": {"model": "no-such.ftz"}}, "no such file: no-such.ftz"),
        ({"near_duplicates": {"rows": 0}}, "greater than or equal to 1"),
        ({"near_duplicate": "off"}, "near_duplicate: unknown key; did you mean 'near_duplicates'?"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TraditionalSettings, values)
    assert message in str(caught.value)


def test_what_is_off_is_not_there() -> None:
    settings = parse(
        TraditionalSettings,
        {
            "filters": {"word_count": False, "repeating_dup_ngrams": "off"},
            "exact_duplicates": False,
            "near_duplicates": False,
        },
    )
    names = [rule.name for rule in rules(settings)]
    assert len(names) == 28 - 1 - 6
    assert "word_count" not in names
    assert not [name for name in TraditionalStep(settings).provides if "band" in name or "exact" in name]


def test_everything_off_leaves_nothing_to_choose_by() -> None:
    off = {name: "off" for name, _ in TraditionalSettings().filters}
    with pytest.raises(ConfigError, match="every filter is off"):
        parse(TraditionalSettings, {"filters": off, "exact_duplicates": False, "near_duplicates": "off"})


def test_the_configuration_that_comes_along_says_the_defaults() -> None:
    config = parse(TraditionalConfig, read_yaml(ROOT / "configs" / "traditional.yaml"))
    assert config.traditional == TraditionalSettings()


def test_without_curator_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nemo_curator", None)
    for use in (TraditionalStep(TraditionalSettings()).identity, lambda: curator_stages(TraditionalSettings())):
        with pytest.raises(UserError, match=r"nemo-mm-rank\[curator\]"):
            use()

"""Filters and modifiers for Curator 0.9 inside its own modules, on a real run's pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("nemo_curator.datasets", reason="needs nemo-curator 0.9: make test-curator09")

from nemo_curator import Modify, ScoreFilter, Sequential
from nemo_curator.datasets import DocumentDataset

from nemo_mm_rank import frames
from nemo_mm_rank.dask.legacy_filters import (
    AnnotationSentenceModifier,
    BlendMembershipFilter,
    ModifyPairs,
    ObjectiveFilter,
    PairAgreementFilter,
    SNSModifier,
)
from nemo_mm_rank.errors import ConfigError, MissingColumnError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.schema import ANNOTATION, FUSED, PAIR_ID, annotation_column
from tests.legacy.pools import computed, config_of, in_thirds, made_by, pairs

ANCHOR = annotation_column("text")


@pytest.fixture
def made(run: Path) -> pa.Table:
    return made_by(run)


def dataset(table: pa.Table) -> DocumentDataset:
    return in_thirds(frames.from_table(table))


def kept(filtered: DocumentDataset) -> list[str]:
    names: list[str] = computed(filtered)[PAIR_ID].to_pylist()
    return names


def test_agreement_is_the_cosine_of_the_two_sides(made: pa.Table, scheduler: None) -> None:
    agreement = made["agreement_score"].to_numpy()
    middle = float(np.nanmedian(agreement))
    wanted = made[PAIR_ID].filter(pa.array(agreement >= middle)).to_pylist()
    judge = PairAgreementFilter(FUSED, ANCHOR, middle - 1e-6)
    out = ScoreFilter(judge, text_field=judge.fields, score_field="cosine", score_type=float)(dataset(made))
    assert 5 < len(wanted) < made.num_rows - 5
    assert kept(out) == wanted
    table = computed(out)
    np.testing.assert_allclose(table["cosine"].to_numpy(), table["agreement_score"].to_numpy(), atol=1e-6)
    # Inverted, the others come, those without any embedding among them.
    others = ScoreFilter(judge, text_field=judge.fields, score_type=float, invert=True)(dataset(made))
    assert sorted(kept(others) + wanted) == made[PAIR_ID].to_pylist()


def test_agreement_of_two_spaces_is_refused(made: pa.Table) -> None:
    narrow = pa.array([[1.0] * 64] * made.num_rows, pa.list_(pa.float32()))
    frame = frames.from_table(made.append_column("narrow", narrow))
    with pytest.raises(ConfigError, match="embeddings of 64 and 128 dimensions do not share a space"):
        PairAgreementFilter("narrow", FUSED, 0).score_document(frame)


def test_objective_is_the_score_of_the_run(run: Path, made: pa.Table, scheduler: None) -> None:
    finished = FinishedRun.load(run)
    expected = made["cosine__fused"].to_numpy()
    least = float(np.nanquantile(expected, 0.7))
    judge = ObjectiveFilter.fused(finished.config, least, finished.models)
    for field in (judge.fields, FUSED):
        out = ScoreFilter(judge, text_field=field, score_field="objective", score_type=float)(dataset(made))
        assert kept(out) == made[PAIR_ID].filter(pa.array(expected >= least)).to_pylist()
        table = computed(out)
        assert table["objective"].to_pylist() == table["cosine__fused"].to_pylist()


def test_a_partition_without_rows(run: Path, made: pa.Table, scheduler: None) -> None:
    finished = FinishedRun.load(run)
    first = made[PAIR_ID][0].as_py()
    whole = dataset(made)
    empty = DocumentDataset(whole.df[whole.df[PAIR_ID] == first])
    agree = PairAgreementFilter(FUSED, ANCHOR, -2)
    aim = ObjectiveFilter.fused(finished.config, -2, finished.models)
    chain = [ScoreFilter(judge, text_field=judge.fields, score_type=float) for judge in (agree, aim)]
    assert kept(Sequential(chain)(empty)) == ([first] if made["error"][0].as_py() is None else [])


def test_membership_of_a_blend(run: Path, made: pa.Table, scheduler: None) -> None:
    blend = read_table(run / "blend.parquet")
    judge = BlendMembershipFilter(run / "blend.parquet")
    for field in (PAIR_ID, [PAIR_ID]):
        out = ScoreFilter(judge, text_field=field, score_field="share", score_type=float)(dataset(made))
        assert kept(out) == sorted(blend[PAIR_ID].to_pylist())
    best = computed(out).filter(pc.equal(computed(out)[PAIR_ID], blend[PAIR_ID][0]))
    assert best["share"].to_pylist() == [1.0]


def test_a_filter_names_the_column_that_it_lacks(made: pa.Table) -> None:
    judge = PairAgreementFilter(FUSED, ANCHOR, 0)
    with pytest.raises(MissingColumnError, match=f"PairAgreementFilter: the frame has no column '{ANCHOR}'"):
        judge.score_document(frames.from_table(made)[FUSED])


def test_annotations_are_trimmed_to_what_the_data_support(run: Path, scheduler: None) -> None:
    finished = FinishedRun.load(run)
    modifier = SNSModifier(finished.config, finished.models)
    frame = pairs(run)
    module = ModifyPairs(modifier, [*modifier.fields, "media_root"], ANNOTATION)
    out = computed(Sequential([module])(in_thirds(frame)))
    before = dict(zip(frame[PAIR_ID], frame[ANNOTATION], strict=True))
    after = dict(zip(out[PAIR_ID].to_pylist(), out[ANNOTATION].to_pylist(), strict=True))
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(set(after[name].split()) < set(before[name].split()) for name in changed)
    assert out.drop_columns([ANNOTATION]).equals(frames.to_table(frame).sort_by(PAIR_ID).drop_columns([ANNOTATION]))
    with pytest.raises(NotImplementedError):  # why there is ModifyPairs
        Modify(modifier, text_field=list(modifier.fields))(in_thirds(frame))


def test_sentences_that_do_not_fit_a_text_go(run: Path, scheduler: None) -> None:
    config = config_of(run)
    captions = ["A red boat on the sea. Press the button twice.", "Press the button twice.", None]
    frame = pd.DataFrame({"caption": captions, "title": ["A boat on the sea", "Boats", "Nothing"]})
    whole = in_thirds(frame)
    # A single sentence, and what is missing, stay as they are.
    expected = ["A red boat on the sea.", captions[1], None]
    for module in (
        Modify(AnnotationSentenceModifier(config, "a boat on the sea"), text_field="caption"),
        ModifyPairs(AnnotationSentenceModifier(config), ["caption", "title"], "caption"),
    ):
        assert module(DocumentDataset(whole.df)).df.compute()["caption"].tolist() == expected
    with pytest.raises(ConfigError, match="give an objective and one field, or no objective and two fields, not 1"):
        AnnotationSentenceModifier(config).modify_document(frame["caption"])

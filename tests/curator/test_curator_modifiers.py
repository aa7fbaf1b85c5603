from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from nemo_curator.stages.text.modifiers import Modify
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, SNSSettings
from nemo_mm_rank.curator import AnnotationSentenceModifier, SNSModifier, SNSStage
from nemo_mm_rank.errors import ConfigError, MissingColumnError, UserError
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, DATA_SPANS, SNS_REASON

SNS = {"mode": "bidirectional"}
FIELDS = ["modality", "data", "annotation", "media_root"]
SEA = "The sea is calm and blue under a clear blue sky."
FOREIGN = "The invoice is due at the end of the month."


@pytest.mark.parametrize("output", [ANNOTATION, ANNOTATION_SPANS, DATA_SPANS, SNS_REASON])
def test_a_pair_at_a_time_is_what_the_stage_does(output: Any, batch: DocumentBatch, rows: pa.Table) -> None:
    done = SNSStage(sns=SNS).process(batch).data
    expected: list[Any] = done[output].to_pylist()
    corrupt = rows["pair_id"].to_pylist().index("bad-corrupt")
    if output == ANNOTATION:
        expected = list(annotation_texts(frames.from_table(done), MediaSettings()))
        assert expected != rows[ANNOTATION].to_pylist()
    if output == SNS_REASON:
        expected[corrupt] = done["error"][corrupt].as_py()
    modify = Modify(SNSModifier(SNS, output=output), input_fields=[FIELDS], output_fields="out")
    found = modify.process(DocumentBatch("demo", rows)).data["out"].tolist()
    assert [None if isinstance(value, float) and np.isnan(value) else value for value in found] == expected
    assert any(value is not None for value in expected)


def test_other_names_and_pickling(rows: pa.Table) -> None:
    frame = rows.to_pandas().rename(columns={"annotation": "caption"})
    modifier = pickle.loads(pickle.dumps(SNSModifier(SNS, fields={"annotation": "caption"})))
    fields = [name if name != "annotation" else "caption" for name in FIELDS]
    found = Modify(modifier, input_fields=[fields], output_fields="caption").process(DocumentBatch("demo", frame)).data
    plain = Modify(SNSModifier(SNS), input_fields=[FIELDS], output_fields="annotation").process(
        DocumentBatch("d", rows)
    )
    assert found["caption"].tolist() == plain.data["annotation"].tolist()
    assert found["caption"].tolist() != rows["annotation"].to_pylist()


def test_what_can_be_mended_is_said() -> None:
    with pytest.raises(ConfigError, match="no output 'anotation'; did you mean 'annotation'"):
        SNSModifier(SNS, output="anotation")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no field 'captoin'"):
        SNSModifier(SNS, fields={"captoin": "x"})
    with pytest.raises(ConfigError, match=r"sns\.mode"):
        SNSModifier({"mode": "sideways"})
    modifier = SNSModifier(SNS)
    with pytest.raises(MissingColumnError, match="the input fields lack 'modality', 'annotation'"):
        modifier.modify_document(data="x")
    with pytest.raises(MissingColumnError, match="reads no field 'anotation'; did you mean 'annotation'"):
        modifier.modify_document(modality="text", data="x", anotation="y")
    with pytest.raises(ConfigError, match="give either an objective or the field"):
        AnnotationSentenceModifier()
    with pytest.raises(ConfigError, match="give either an objective or the field"):
        AnnotationSentenceModifier("x", "y")
    with pytest.raises(UserError, match="the input fields are 'annotation' and 'about', not a single one"):
        AnnotationSentenceModifier(against="about").modify_document("x")
    with pytest.raises(UserError, match="with an objective there is one input field"):
        AnnotationSentenceModifier("x").modify_document(a="x", b="y")


def test_sentences_against_an_objective() -> None:
    modifier = pickle.loads(pickle.dumps(AnnotationSentenceModifier("calm blue sea and sky")))
    frame = pd.DataFrame({"text": [f"{SEA} {FOREIGN}", SEA, None, " "]})
    found = Modify(modifier, input_fields="text").process(DocumentBatch("demo", frame)).data["text"]
    assert found.tolist()[:2] == [SEA, SEA]
    assert pd.isna(found.iloc[2])  # what cannot be judged stays as it is
    assert found.iloc[3] == " "


def test_sentences_against_another_field() -> None:
    rows = [
        (f"{SEA} {FOREIGN}", "a calm blue sea"),
        (f"{SEA} {FOREIGN}", "an invoice at the end of a month"),
        (f"{SEA} {FOREIGN}", None),
    ]
    frame = pd.DataFrame(rows, columns=["caption", "about"])
    modifier = AnnotationSentenceModifier(against="about", annotation="caption", sns=SNSSettings(nucleus=0.8))
    modify = Modify(modifier, input_fields=[["caption", "about"]], output_fields="caption")
    found = modify.process(DocumentBatch("demo", frame)).data["caption"].tolist()
    assert found == [SEA, FOREIGN, f"{SEA} {FOREIGN}"]

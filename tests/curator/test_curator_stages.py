from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nemo_curator.backends.base import BaseStageAdapter
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.string import WordCountFilter
from nemo_curator.stages.text.io.writer import JsonlWriter, ParquetWriter
from nemo_curator.stages.text.modifiers import Modify
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank import frames
from nemo_mm_rank.curator import ExpertEmbeddingStage, MatchStage, ProjectionStage, RankScoreStage, SNSStage
from nemo_mm_rank.curator.stages import StepStage, to_table
from nemo_mm_rank.errors import ConfigError, MissingColumnError, ModelError
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.matching import MatchStep
from nemo_mm_rank.models import loader
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.ranking.queries import score_step
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.schema import ANNOTATION_SPANS, ERROR, FUSED, PAIR_ID, SPANS, VECTOR
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step


@pytest.fixture(scope="module")
def finished(run: Result) -> FinishedRun:
    return FinishedRun.load(run.folder)


@pytest.fixture
def stages(finished: FinishedRun) -> list[StepStage]:
    config, models = finished.config, finished.models
    spaces: dict[str, Any] = {"experts": config.experts, "models": models}
    return [
        SNSStage(sns=config.sns, **spaces),
        ExpertEmbeddingStage(**spaces),
        ProjectionStage(projection=finished.projection),
        MatchStage(matcher=finished.matcher, models=models),
        RankScoreStage(queries=config.queries, ranking=config.ranking, **spaces),
    ]


@pytest.fixture(scope="module")
def steps(finished: FinishedRun) -> list[Step]:
    config, models = finished.config, finished.models
    embed = ExpertStep(config.experts, models, config.anchor, config.media)
    return [
        SNSStep(config.sns, config.sns_expert, models, config.media),
        embed,
        ProjectionStep(finished.projection, list(Projection.load(finished.projection).sources), config.anchor),
        MatchStep(finished.matcher, models, config.media),
        score_step(config, models, embed.provides),
    ]


@pytest.fixture(scope="module")
def expected(steps: list[Step], rows: pa.Table) -> list[pa.Table]:
    """The rows after every plain step."""
    frame, tables = frames.from_table(rows), []
    for step in steps:
        frame = step(frame)
        tables.append(frames.to_table(frame))
    return tables


def as_batch(table: pa.Table) -> DocumentBatch:
    return DocumentBatch(dataset_name="demo", data=table)


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """Check that the tables are equal to the bit, whatever the order of their columns."""
    assert sorted(found.column_names) == sorted(expected.column_names)
    for name in expected.column_names:
        assert found[name].combine_chunks().equals(expected[name].combine_chunks()), name


def test_the_same_as_the_plain_steps_to_the_bit(
    stages: list[StepStage], expected: list[pa.Table], batch: DocumentBatch, rows: pa.Table
) -> None:
    before = rows.to_pydict()
    assert expected[0][ANNOTATION_SPANS].null_count < rows.num_rows  # something is trimmed
    for stage, table in zip(stages, expected, strict=True):
        done = stage.process(batch)
        assert_same(done.data, table)
        assert (done.dataset_name, done._metadata) == (batch.dataset_name, batch._metadata)
        batch = done
    assert rows.to_pydict() == before


def test_pandas_and_what_curator_makes_of_our_lists(
    stages: list[StepStage], expected: list[pa.Table], rows: pa.Table
) -> None:
    keep_all = ScoreFilter(WordCountFilter(min_words=0), text_field="annotation")
    batch = DocumentBatch(dataset_name="demo", data=rows.to_pandas())
    for stage, table in zip(stages, expected, strict=True):
        given = batch.to_pandas().copy()
        done = stage.process(batch)
        pd.testing.assert_frame_equal(batch.to_pandas(), given)
        assert_same(done.data, table)
        batch = keep_all.process(done)
        assert isinstance(batch.data, pd.DataFrame)
    objects = batch.data[FUSED].dropna()
    assert isinstance(objects.iloc[0], np.ndarray)
    assert_same(to_table(batch), expected[-1])


def test_numbers_among_the_texts_of_a_batch(stages: list[StepStage]) -> None:
    frame = pd.DataFrame(
        {
            "pair_id": ["a", "b", "c", "d"],
            "pool": "demo",
            "modality": "text",
            "data": ["The sea.", "The sky.", 7, "Sand."],
            "annotation": ["A sea.", 5, "A beach.", None],
            "mine": ["x", 1, None, [2]],
        }
    )
    done = stages[1].process(DocumentBatch(dataset_name="demo", data=frame)).data
    assert done[ERROR].to_pylist() == [
        None,
        "batch: TextError: annotation is 5, no text",
        "batch: TextError: data is 7, no text",
        "experts: TextError: the text is missing",
    ]
    assert done["annotation"].to_pylist() == ["A sea.", "5", "A beach.", None]
    assert done["mine"].to_pylist() == ['"x"', "1", None, "[2]"]
    # A frame that goes to a step without Curator says the same.
    errors = frames.strings(stages[1].step(frame.drop(columns="mine")), ERROR)
    assert errors == [
        None,
        "experts: TextError: '5' is a int, not a text",
        "experts: TextError: '7' is a int, not a text",
        "experts: TextError: the text is missing",
    ]


def test_a_batch_of_nulls_keeps_its_types(stages: list[StepStage], batch: DocumentBatch) -> None:
    failed = to_table(batch).append_column(ERROR, pa.array(["x: Y: z"] * batch.num_items))
    for stage in stages:
        frame = stage.process(as_batch(failed)).to_pandas()  # nothing in it shows what it was
        table = to_table(as_batch(frame))
        failed = table
    assert table.schema.field(FUSED).type == VECTOR
    assert table.schema.field(ANNOTATION_SPANS).type == SPANS
    assert table[ERROR].to_pylist() == ["x: Y: z"] * batch.num_items


def test_curator_filters_between_and_a_file_that_pandas_reads(
    stages: list[StepStage], expected: list[pa.Table], rows: pa.Table, tmp_path: Path, through: Any
) -> None:
    def shout(value: str) -> str:
        return value.upper()

    words = ScoreFilter(WordCountFilter(min_words=8), text_field="annotation", score_field="words")
    source = {"source_files": ["pool.jsonl"]}
    batch = DocumentBatch(dataset_name="demo", data=rows, _metadata=source)
    modify = Modify(shout, "pool")
    writer = ParquetWriter(path=str(tmp_path / "parquet"))
    out = through([stages[0], words, *stages[1:], modify, writer], [batch])
    table = expected[-1]
    counts = [len(text.split()) for text in table["annotation"].to_pylist()]
    keep = pa.array([count >= 8 for count in counts])
    assert 0 < sum(keep.to_pylist()) < len(counts)
    frame = pd.read_parquet(out[0].data[0])
    assert frame["words"].tolist() == [count for count in counts if count >= 8]
    assert set(frame["pool"]) == {"DEMO"}
    back = to_table(as_batch(frame.drop(columns=["words", "pool"])))
    assert_same(back, table.filter(keep).drop_columns(["pool"]))
    # From Arrow alone: what pandas opens although it wrote nothing of its own into it.
    done = stages[-1].process(as_batch(expected[-2]))
    done._metadata = source
    file = ParquetWriter(path=str(tmp_path / "arrow")).process(done).data[0]
    assert not pq.read_schema(file).metadata
    assert_same(to_table(as_batch(pd.read_parquet(file))), table)
    lines = JsonlWriter(path=str(tmp_path / "jsonl")).process(done).data[0]
    assert pd.read_json(lines, lines=True)[PAIR_ID].tolist() == table[PAIR_ID].to_pylist()


@pytest.mark.parametrize("as_pandas", [False, True])
@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_of_no_or_one_row(
    size: int, as_pandas: bool, stages: list[StepStage], expected: list[pa.Table], rows: pa.Table
) -> None:
    table = rows.slice(0, size)
    batch = DocumentBatch(dataset_name="demo", data=table.to_pandas() if as_pandas else table)
    for stage, wanted in zip(stages, expected, strict=True):
        batch = stage.process(batch)
        assert batch.data.select(wanted.column_names).equals(wanted.slice(0, size)), stage.name


def test_metrics_and_measurements(stages: list[StepStage], expected: list[pa.Table], batch: DocumentBatch) -> None:
    adapter = BaseStageAdapter(stages[0].with_(batch_size=2))
    adapter.setup()
    parts = [DocumentBatch("demo", batch.data.slice(0, 9)), DocumentBatch("demo", batch.data.slice(9))]
    out = adapter.process_batch(parts)
    table = expected[0]
    errors = batch.num_items - table[ERROR].null_count
    spans = table.select(["sns_data_spans", "sns_annotation_spans"]).to_pylist()
    trimmed = sum(any(value is not None for value in row.values()) for row in spans)
    assert errors == 1
    measured = dict(out[0]._stage_perf[-1].custom_metrics)
    assert measured.pop("seconds") > 0
    assert measured == {
        "pairs": batch.num_items,
        "kept": batch.num_items - errors,
        "quarantined": errors,
        "trimmed": trimmed,
    }
    assert pa.concat_tables(one.data for one in out).select(table.column_names).equals(table)
    again = BaseStageAdapter(stages[1]).process_batch(out)
    assert [[perf.stage_name for perf in one._stage_perf] for one in again] == [["sns", "experts"]] * 2
    assert again[0]._stage_perf[-1].custom_metrics["quarantined"] == 0  # the failed one was passed by


@pytest.mark.parametrize("place", range(5))
def test_missing_columns_are_named_before_a_model_loads(
    place: int, stages: list[StepStage], batch: DocumentBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loader, "load", load)
    stage = stages[place]
    attributes, columns = stage.inputs()
    lacking = DocumentBatch("demo", pa.table({"annotation": ["x"], "other": [1]}))
    missing = [name for name in columns if name != "annotation"]
    run: Callable[[], Any]
    for run in (lambda: stage.process(lacking), lambda: BaseStageAdapter(stage).process_batch([lacking])):
        with pytest.raises(MissingColumnError) as caught:
            run()
        assert str(caught.value).startswith(
            f"{stage.name}: the frame has no column {', '.join(map(repr, missing))}; it has"
        )
    assert attributes == ["data"]


def test_corrupt_media_keeps_its_row(stages: list[StepStage], batch: DocumentBatch) -> None:
    for stage in stages:
        batch = stage.process(batch)
    rows = {row[PAIR_ID]: row for row in batch.data.to_pylist()}
    corrupt = rows["bad-corrupt"]
    assert corrupt[ERROR].startswith("sns: MediaError: ")
    assert corrupt[FUSED] is None
    assert corrupt["annotation"] == "The calm blue sea under a clear blue sky."
    assert sum(row[ERROR] is not None for row in rows.values()) == 1


def test_a_model_that_is_missing(tmp_path: Path, batch: DocumentBatch) -> None:
    models = {"text": {"class": "sentence-transformers", "path": str(tmp_path / "nothing")}}
    expert = [{"name": "words", "kind": "text-based", "encoder": "text"}]
    stage = ExpertEmbeddingStage(models=models, experts=expert)
    for do in (stage.setup_on_node, stage.setup):
        with pytest.raises(ModelError, match="nothing: there is no such folder"):
            do()
    with pytest.raises(ConfigError, match="no model 'txet'; did you mean 'text'"):
        ExpertEmbeddingStage(models=models, experts=[{"name": "words", "kind": "text-based", "encoder": "txet"}])
    with pytest.raises(ConfigError, match=r"sns\.mood: unknown key; did you mean 'mode'"):
        SNSStage(sns={"mood": "forward"})
    with pytest.raises(ModelError, match="contains no projection"):
        ProjectionStage(projection=tmp_path)
    with pytest.raises(ModelError, match="contains no matcher"):
        MatchStage(matcher=tmp_path)
    with pytest.raises(ConfigError, match="at least one needs a positive weight"):
        RankScoreStage(queries=[{"text": "dogs", "weight": -1}])


def test_a_matcher_says_which_model_it_needs(finished: FinishedRun) -> None:
    models = {name: model for name, model in finished.models.items() if name != "text"}
    with pytest.raises(
        ConfigError, match="models: there is no model 'text', which embeds the sentences for the matcher"
    ):
        MatchStage(matcher=finished.matcher, models=models)


def test_stages_are_pickled_without_their_models(
    stages: list[StepStage], expected: list[pa.Table], batch: DocumentBatch
) -> None:
    for stage, table in zip(stages, expected, strict=True):
        stage.setup()
        small = pickle.dumps(stage)
        assert len(small) < 50_000
        batch = pickle.loads(small).process(batch)
        assert_same(batch.data, table)
        assert stage.with_(name="other").name == "other"


def test_models_load_in_setup_and_go_in_teardown(stages: list[StepStage], monkeypatch: pytest.MonkeyPatch) -> None:
    loader.release()
    loaded: dict[Any, Any] = {}
    monkeypatch.setattr(loader, "_loaded", loaded)
    embed = stages[1]
    embed.setup_on_node()
    assert not loaded
    embed.setup()
    keys = set(loaded)
    assert keys
    embed.setup()
    assert set(loaded) == keys
    loader.load("mine", "hashed-text", {})
    embed.teardown()
    assert len(loaded) == 1  # what others loaded stays


def test_what_a_pipeline_says_of_them(stages: list[StepStage]) -> None:
    text = Pipeline("p", stages=list(stages)).describe()
    assert "Stage 1: sns" in text
    assert "Required columns: pair_id, pool, modality, data, annotation" in text
    assert "Output columns: emb_fused, agreement_score, error" in text
    chances = "match_probability, match_whole, match_sentence, weakest, weakest_sentence"
    assert f"Output columns: {chances}, error" in text
    assert "Error" not in text

"""Curator's tasks of other kinds as pairs, and scored in their place: stage by stage, in this process."""

from __future__ import annotations

import doctest
import json
import math
import pickle
import shutil
import uuid
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.stages.synthetic.omni.ocr_conversationalize import OCRConversationData
from nemo_curator.stages.synthetic.omni.utils.conversation import ConversationSample, Message
from nemo_curator.stages.video.io.clip_writer import ClipWriterStage
from nemo_curator.tasks import AudioTask, DocumentBatch, ImageBatch, ImageObject, InterleavedBatch
from nemo_curator.tasks.image import ImageSampleTask
from nemo_curator.tasks.ocr import OCRData, OCRDenseItem
from nemo_curator.tasks.video import Clip, Video, VideoTask, _Window
from nemo_curator.utils.performance_utils import StagePerfStats
from PIL import Image

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.curator import (
    AudioPairsStage,
    AudioScoreStage,
    ClipPairsStage,
    ClipScoreFilterStage,
    ExpertEmbeddingStage,
    ImageKeepStage,
    ImagePairsStage,
    ImageSamplePairsStage,
    InterleavedPairsStage,
    InterleavedScoreFilterStage,
    MultimodalRankStage,
    PoolReader,
    audio,
    images,
    pairs,
)
from nemo_mm_rank.curator import interleaved as interleaved_documents
from nemo_mm_rank.curator import samples as sample_tasks
from nemo_mm_rank.curator.clips import clip_caption
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io import batches
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.pool import validate
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, DATA_SPANS, ERROR, PAIR_ID, POOL

NOTHING = "expected a non-empty string, found nothing"


def rows_of(pool: Path, modality: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    return [row for row in rows if row["pair_id"].startswith(f"{modality}-00")][:3]


def image_task(pool: Path) -> ImageBatch:
    images = [
        ImageObject(
            image_path=str(pool.parent / row["data"]),
            image_id=f"i{number}",
            metadata={"caption": row["annotation"], "licence": "CC", "error": "mine"},
            image_data=np.array(Image.open(pool.parent / row["data"]).convert("RGB")),
            embedding=np.array([3.0, 4.0], np.float32),
        )
        for number, row in enumerate(rows_of(pool, "image"))
    ]
    return ImageBatch("shots", images, _metadata={"mine": 1}, _stage_perf=[StagePerfStats(stage_name="before")])


def errors(table: pa.Table) -> list[Any]:
    return [None if error is None else error.rpartition(" (")[0] for error in table[ERROR].to_pylist()]


def test_images_by_pixels_or_path(pool: Path) -> None:
    task = image_task(pool)
    before = [image.image_data.copy() for image in task.data]
    done = ImagePairsStage(embedding="clip").process(task)
    assert (done.dataset_name, done._metadata, done._stage_perf) == ("shots", {"mine": 1}, task._stage_perf)
    assert done.data[PAIR_ID].to_pylist() == ["i0", "i1", "i2"]
    assert done.data[POOL].to_pylist() == ["shots"] * 3
    assert done.data["licence"].to_pylist() == ["CC"] * 3
    assert done.data["original_error"].to_pylist() == ["mine"] * 3
    assert errors(done.data) == [None] * 3
    for content, pixels in zip(done.data[DATA_BYTES].to_pylist(), before, strict=True):
        assert np.array_equal(np.array(Image.open(BytesIO(content))), pixels)
    assert np.allclose(done.data["emb_data__clip"].to_pylist(), [[0.6, 0.8]] * 3)
    for image in task.data:
        image.image_data = None
    by_path = ImagePairsStage(root=pool.parent).process(task).data
    assert DATA_BYTES not in by_path.column_names
    assert errors(by_path) == [None] * 3
    assert "give a root" in str(errors(ImagePairsStage().process(task).data)[0])


def test_images_that_are_no_pairs(pool: Path, tmp_path: Path) -> None:
    task = image_task(pool)
    fine = task.data[0]
    task.data += [
        ImageObject(image_id="i1", metadata={"caption": "Again."}, image_data=fine.image_data),
        ImageObject(image_id="dumb", image_data=fine.image_data),
        ImageObject(image_id="odd", metadata={"caption": "Odd."}, image_data=np.zeros((2, 2, 7), np.uint8)),
        ImageObject(image_id="gone", image_path=str(tmp_path / "gone.jpg"), metadata={"caption": "Gone."}),
        ImageObject(),
    ]
    found = errors(ImagePairsStage(root=tmp_path).process(task).data)
    assert found[:3] == [None] * 3
    assert found[3].startswith("pool: BadRow: pair_id: expected an id that no other row has, found the id of shots:2")
    assert found[4] == f"pool: BadRow: annotation: {NOTHING}"
    assert found[5] == "pool: BadRow: data: expected pixels, found an array of uint8 in shape (2, 2, 7)"
    assert "no such file" in found[6]
    assert found[7] == f"pool: BadRow: data: {NOTHING}"
    assert ImagePairsStage().process(ImageBatch("empty", [])).data.num_rows == 0
    assert errors(ImagePairsStage(embedding="clip", root=tmp_path).process(task).data)[4] == (
        "pool: BadRow: embedding by 'clip': expected a vector, found nothing"
    )


def test_captions_from_parquet(pool: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["i0", "i2"], "text": ["One.", "Two."]}), tmp_path / "captions.parquet")
    stage = ImagePairsStage(captions=tmp_path / "captions.parquet", captions_id="key", caption="text")
    table = pickle.loads(pickle.dumps(stage)).process(image_task(pool)).data
    assert table[ANNOTATION].to_pylist() == ["One.", None, "Two."]
    assert table["caption"].null_count == 1  # of the row that is none
    with pytest.raises(UserError, match=r"image_pairs: .*captions.parquet: there is no column 'image_id'"):
        ImagePairsStage(captions=tmp_path / "captions.parquet", caption="text").process(image_task(pool))


def test_embeddings_that_are_given_are_not_made_again(pool: Path, run: Result, tmp_path: Path) -> None:
    """The same scores, whether the expert looks at the images or somebody has embedded them before."""
    models = {"text": {"class": "hashed-text", "dim": 128}, "image": {"class": "image-features"}}
    experts = [{"name": "see", "kind": "fusion", "encoders": {"image": "image"}}]
    spec: dict[str, Any] = {"models": models, "experts": experts}
    task = image_task(pool)
    column = "emb_data__see__image"
    made = ExpertEmbeddingStage(**spec).process(ImagePairsStage().process(task)).data
    for image, vector in zip(task.data, made[column].to_pylist(), strict=True):
        image.embedding = np.array(vector) * 7
    given = ImagePairsStage(embedding="see__image").process(task)
    again = ExpertEmbeddingStage(given=["see"], **spec)
    assert again._models.keys() == {"text"}
    table = again.process(given).data
    assert np.allclose(np.array(table[column].to_pylist()), np.array(made[column].to_pylist()), atol=1e-6)
    assert table["emb_annotation__text"].equals(made["emb_annotation__text"])
    assert errors(table) == [None] * 3
    with pytest.raises(ConfigError, match=r"given: there is no expert 'sea'; did you mean 'see'\?"):
        ExpertEmbeddingStage(given=["sea"], **spec)


def test_images_kept_by_a_blend_or_a_score(pool: Path, run: Result, tmp_path: Path) -> None:
    pq.write_table(pa.table({"pair_id": ["i2", "i0"], "score": [0.5, 2.0]}), tmp_path / "part.parquet")
    stage = ImageKeepStage(blend=tmp_path)
    stage.setup()
    assert [image.image_id for image in stage.process(image_task(pool)).data] == ["i0", "i2"]
    stage = ImageKeepStage(blend=tmp_path / "part.parquet", least=1)
    stage.setup()
    kept = stage.process(image_task(pool))
    assert ([image.image_id for image in kept.data], kept._metadata) == (["i0"], {"mine": 1})
    files = ImageWriterStage(str(tmp_path / "tars"), images_per_tar=1).process(kept).data
    assert pq.read_table(files[-1])["image_id"].to_pylist() == ["i0"]

    ranked = MultimodalRankStage(run=run.folder)
    batch = ImagePairsStage().process(image_task(pool))
    for inner in ranked.decompose():
        batch = inner.process(batch)
    scores = batch.data["score"].to_pylist()
    task = image_task(pool)
    task.data.append(ImageObject(image_id="dumb", image_data=task.data[0].image_data))
    least = sorted(scores)[1]
    for quarantine, names in ((None, ["dumb"]), (tmp_path / "failed", [])):
        stage = ImageKeepStage(run=run.folder, least=least, quarantine=quarantine)
        stage.setup()
        done = stage.process(ImageBatch("shots", list(task.data))).data
        expected = [f"i{number}" for number, score in enumerate(scores) if score >= least]
        assert [image.image_id for image in done] == [*expected, *names]
        assert [image.metadata["score"] for image in done[:2]] == [score for score in scores if score >= least]
        assert stage._consume_custom_metrics() == {"pairs": 4, "kept": 3, "quarantined": 1}
    assert pd.read_parquet(tmp_path / "failed")["pair_id"].to_list() == ["dumb"]
    assert task.data[-1].metadata["error"].startswith("pool: BadRow: annotation")
    both: dict[str, Any] = {"run": run.folder, "blend": tmp_path}
    for wrong in (dict[str, Any](), both):
        with pytest.raises(ConfigError, match="image_keep: give either a blend or a run"):
            ImageKeepStage(**wrong)
    with pytest.raises(ConfigError, match=r"the run gives no score 'beauty'; it gives .*score"):
        ImageKeepStage(run=run.folder, column="beauty").process(image_task(pool))


def audio_tasks(pool: Path) -> list[AudioTask]:
    entries = [
        {"audio_filepath": str(pool.parent / row["data"]), "text": row["annotation"], "id": f"a{number}", "wer": 1.5}
        for number, row in enumerate(rows_of(pool, "audio"))
    ]
    return [AudioTask(dataset_name="calls", data=entry, _metadata={"source_files": ["m.jsonl"]}) for entry in entries]


def test_samples_of_images_as_one_batch(pool: Path, tmp_path: Path) -> None:
    rows = rows_of(pool, "image")
    words = [
        OCRDenseItem(bbox_2d=[0, 0, 9, 9], text_content=text, valid=text != "smudge")
        for text in ("No", "smudge", "parking")
    ]
    files = [pool.parent / row["data"] for row in rows]
    said = [Message(sender="user", fragments=["Read."]), Message(sender="assistant", fragments=["It says no parking."])]
    samples = [
        OCRData(image_path=files[0], image_id="words", ocr_dense=words, ocr_scoring_model="m"),
        OCRConversationData(image_path=files[1], image_id="talk", conversation=ConversationSample(conversation=said)),
        OCRData(image_path=files[2], image_id="bad", ocr_dense=words, is_valid=False, error="OCR failed"),
        OCRData(image_path=tmp_path / "gone.jpg", image_id="gone", ocr_dense=words),
        OCRData(image_path=str(files[0]), ocr_dense=[]),
    ]
    tasks = [ImageSampleTask(dataset_name="signs", data=one, _metadata={"split": "train"}) for one in samples]
    stage = ImageSamplePairsStage(root=pool.parent)
    [batch] = stage.process_batch(tasks)
    assert (batch.dataset_name, batch._metadata) == ("signs", {"split": "train"})
    table = batch.data
    assert table[ANNOTATION].to_pylist()[0] == "No parking"
    assert table["ocr_scoring_model"].to_pylist() == ["m", None, None, None, None]
    found = errors(table)
    assert found[0] is None
    assert found[1] == f"pool: BadRow: annotation: {NOTHING}"
    assert "expected a valid sample, found OCR failed" in found[2]
    assert "expected a media file below the pool's root" in found[3]
    assert NOTHING in found[4]
    [talk] = ImageSamplePairsStage(root=pool.parent, text="conversation").process_batch(tasks[1:2])
    assert talk.data[ANNOTATION].to_pylist() == ["It says no parking."]
    assert ExpertEmbeddingStage().process(talk).data[ERROR].null_count == 1
    with pytest.raises(ConfigError, match="put ImageSamplePairsStage before it"):
        ExpertEmbeddingStage().process(tasks[0])


def test_audio_tasks_as_one_batch(pool: Path) -> None:
    tasks = audio_tasks(pool)
    tasks[0].data["parts"] = [{"start": 0.5, "end": 1.0, "text": "b"}, {"start": 0, "end": 0.25}]
    tasks[2].data["parts"] = [{"start": 2, "end": 1}]
    tasks += [
        AudioTask(data={"audio_filepath": str(pool.parent / "gone.wav"), "text": "Gone.", "id": "gone"}),
        AudioTask(data={"text": "A wave.", "id": "wave", "waveform": np.zeros((1, 8000)), "sample_rate": 8000}),
        AudioTask(data={"audio_filepath": str(pool), "id": "dumb"}),
        AudioTask(data={}),
    ]
    stage = AudioPairsStage(root=pool.parent, fields={"pair_id": "id"}, segments="parts")
    [batch] = stage.process_batch(tasks)
    assert batch.dataset_name == "calls,"
    assert batch._metadata == {"source_files": ["m.jsonl"]}
    table = batch.data
    assert table[PAIR_ID].to_pylist() == ["a0", "a1", "a2", "gone", "wave", "dumb", None]
    assert table["wer"].to_pylist()[:2] == [1.5, 1.5]
    assert table[DATA_SPANS].to_pylist()[:3] == [[[0, 0.25], [0.5, 1]], None, None]
    found = errors(table)
    assert (found[0], found[1], found[4]) == (None, None, None)
    assert "parts: expected a list of {start, end} in seconds, found [{'start': 2, 'end': 1}]" in found[2]
    assert "no such file" in found[3]
    assert found[5] == f"pool: BadRow: annotation: {NOTHING}"
    assert "data: expected a non-empty string" in found[6]
    assert len(table[DATA_BYTES][4].as_py()) == 44 + 2 * 8000
    embedded = ExpertEmbeddingStage().process(batch).data
    assert embedded[ERROR].null_count == 3
    assert stage.process_batch([]) == []


def test_audio_tasks_scored_one_by_one(pool: Path, run: Result, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"run": run.folder, "root": pool.parent, "fields": {"pair_id": "id"}}
    [batch] = AudioPairsStage(root=pool.parent, fields={"pair_id": "id"}).process_batch(audio_tasks(pool))
    for inner in MultimodalRankStage(run=run.folder).decompose():
        batch = inner.process(batch)
    tasks = audio_tasks(pool)
    tasks.insert(1, AudioTask(data={"audio_filepath": str(pool.parent / "gone.wav"), "text": "Gone.", "id": "gone"}))
    done = AudioScoreStage(**arguments).process_batch(tasks)
    assert done == tasks
    assert [task.data["score"] for task in done if "error" not in task.data] == batch.data["score"].to_pylist()
    assert done[0].data["agreement_score"] == batch.data["agreement_score"][0].as_py()
    assert math.isnan(done[1].data["score"])
    assert "no such file" in done[1].data["error"]
    for task in tasks:
        json.dumps(task.data)
    tasks = audio_tasks(pool)
    tasks[1].data["text"] = None
    done = AudioScoreStage(quarantine=tmp_path / "failed", **arguments).process_batch(tasks)
    assert done == [tasks[0], None, tasks[2]]
    assert pd.read_parquet(tmp_path / "failed")["pair_id"].to_list() == ["a1"]
    assert AudioScoreStage(**arguments).process_batch([]) == []


def clips_of(pool: Path) -> list[Clip]:
    return [
        Clip(
            uuid=uuid.uuid5(uuid.NAMESPACE_URL, str(number)),
            source_video="film.mp4",
            span=(number, number + 1.5),
            buffer=(pool.parent / row["data"]).read_bytes(),
            windows=[_Window(0, 9, caption={"qwen": row["annotation"]}), _Window(9, 18, caption={"qwen": "The end."})],
            cosmos_embed1_embedding=np.array([[0.0, 2.0]], np.float32),
        )
        for number, row in enumerate(rows_of(pool, "video"))
    ]


def test_clips_as_pairs_and_filtered(pool: Path, run: Result, tmp_path: Path) -> None:
    clips = clips_of(pool)
    empty = Clip(uuid=uuid.uuid4(), source_video="film.mp4", span=(8, 9), windows=[_Window(0, 9, caption={"q": "?"})])
    silent = Clip(uuid=uuid.uuid4(), source_video="film.mp4", span=(9, 10), buffer=clips[0].buffer)
    task = VideoTask("films", Video(Path(pool), clips=[*clips, empty, silent]), _metadata={"mine": 1})
    done = ClipPairsStage(embedding="cosmos").process(task)
    assert done._metadata == {"mine": 1}
    assert done.data[PAIR_ID].to_pylist() == [str(clip.uuid) for clip in [*clips, empty, silent]]
    assert done.data[ANNOTATION][0].as_py() == f"{clips[0].windows[0].caption['qwen']}\nThe end."
    assert done.data[DATA_BYTES].to_pylist()[:3] == [clip.buffer for clip in clips]
    assert done.data["emb_data__cosmos"].to_pylist() == [[0, 1]] * 3 + [None, None]
    assert done.data["end"].to_pylist()[:2] == [1.5, 2.5]
    assert errors(done.data)[:3] == [None] * 3
    assert errors(ClipPairsStage().process(task).data)[3:] == [
        "pool: BadRow: data: expected a clip with its bytes, found none",
        f"pool: BadRow: annotation: {NOTHING}",
    ]
    clips[0].windows[0].enhanced_caption = {"llama": "Better."}
    assert [clip_caption(clips[0]), clip_caption(clips[0], "qwen")] == [
        "Better.",
        f"{clips[0].windows[0].caption['qwen']}\nThe end.",
    ]
    assert clip_caption(clips[0], "gpt") is None
    clips[0].windows[0].enhanced_caption = {}

    batch = ClipPairsStage().process(task)
    for inner in MultimodalRankStage(run=run.folder).decompose():
        batch = inner.process(batch)
    scores = batch.data["score"].to_pylist()[:3]
    least = sorted(scores)[1]
    high = [clip for clip, score in zip(clips, scores, strict=True) if score >= least]
    out = ClipScoreFilterStage(run=run.folder, least=least).process(task)
    assert out is task
    assert out.data.clips == [*high, empty, silent]
    assert [clip in out.data.filtered_clips for clip in clips] == [clip not in high for clip in clips]
    assert "none" in empty.errors["clip_score_filter"]
    out = ClipScoreFilterStage(run=run.folder, least=least, quarantine=tmp_path / "failed").process(out)
    assert out.data.clips == high
    assert out.data.filtered_clips[-2:] == [empty, silent]
    assert set(pd.read_parquet(tmp_path / "failed")["pair_id"]) == {str(empty.uuid), str(silent.uuid)}
    assert ClipScoreFilterStage(run=run.folder, least=0).process(VideoTask("f", Video(Path(pool)))).data.clips == []


def interleaved(pool: Path) -> tuple[InterleavedBatch, list[dict[str, Any]]]:
    first, second, third = rows_of(pool, "image")

    def row(sample: str, position: int, modality: str, **more: Any) -> dict[str, Any]:
        none = dict.fromkeys(["content_type", "text_content", "binary_content", "source_ref", "materialize_error"])
        return {"sample_id": sample, "position": position, "modality": modality, **none, **more}

    def ref(path: Any) -> str:
        return str(InterleavedBatch.build_source_ref(str(path), None))

    rows = [
        row("a", -1, "metadata"),
        row("a", 2, "text", text_content=second["annotation"]),
        row("a", 0, "text", text_content=first["annotation"]),
        row("a", 1, "image", binary_content=(pool.parent / first["data"]).read_bytes(), content_type="image/png"),
        row("a", 3, "image", source_ref=ref(pool.parent / second["data"])),
        row("b", 0, "image", binary_content=(pool.parent / third["data"]).read_bytes()),
        row("b", 1, "text", text_content=" "),
        row("c", 0, "text", text_content="Words alone."),
        row("d", 0, "image", source_ref=ref("/etc/hostname")),
        row("d", 1, "text", text_content="A host."),
        row("d", 2, "image", source_ref="{"),
        row("d", 3, "image"),
        row("d", 4, "image", source_ref=ref(pool.parent / "gone.png")),
    ]
    return InterleavedBatch("pages", pa.Table.from_pylist(rows), _metadata={"mine": 1}), rows


def test_images_with_the_text_beside_them(pool: Path) -> None:
    task, rows = interleaved(pool)
    done = InterleavedPairsStage(root=pool.parent).process(task)
    assert done._metadata == {"mine": 1}
    table = done.data
    assert table[PAIR_ID].to_pylist() == ["a:1", "a:3", "b:0", "d:0", "d:2", "d:3", "d:4"]
    first, second = rows[2]["text_content"], rows[1]["text_content"]
    assert table[ANNOTATION].to_pylist()[:3] == [f"{first}\n{second}", second, None]
    assert table[DATA_BYTES].to_pylist()[:2] == [
        rows[3]["binary_content"],
        Path(json.loads(rows[4]["source_ref"])["path"]).read_bytes(),
    ]
    assert table["sample_id"].to_pylist()[:2] == ["a", "a"]
    found = errors(table)
    assert found[:2] == [None, None]
    assert found[2] == f"pool: BadRow: annotation: {NOTHING}"
    assert "'/etc/hostname', which leads out of the root of the pool" in found[3]
    assert "found a reference that cannot be read: '{'" in found[4]
    assert found[5].endswith("found none")
    assert found[6].endswith("found failed to read path")
    assert errors(InterleavedPairsStage().process(task).data)[1] is not None  # nobody has said where it may lie
    nothing = InterleavedPairsStage().process(InterleavedBatch("none"))
    assert nothing.data.num_rows == 0
    only = InterleavedBatch("texts", pa.Table.from_pylist(rows[7:8]))
    assert InterleavedPairsStage().process(only).data.num_rows == 0


def test_interleaved_images_filtered_by_score(pool: Path, run: Result, tmp_path: Path) -> None:
    task, rows = interleaved(pool)
    batch = InterleavedPairsStage(root=pool.parent).process(task)
    for inner in MultimodalRankStage(run=run.folder).decompose():
        batch = inner.process(batch)
    scores = dict(zip(batch.data[PAIR_ID].to_pylist(), batch.data["score"].to_pylist(), strict=True))
    high, _ = sorted((name for name in ("a:1", "a:3")), key=lambda name: -scores[name])
    arguments: dict[str, Any] = {"run": run.folder, "least": scores[high], "root": pool.parent}
    out = InterleavedScoreFilterStage(**arguments).process(task)
    assert out._metadata == {"mine": 1}
    frame = out.to_pandas()
    images = frame[frame["modality"] == "image"]
    assert len(images) == 6
    assert images["score"].dropna().to_list() == [scores[high]]
    assert images["error"].notna().sum() == 5
    assert frame[frame["modality"] != "image"]["score"].isna().all()
    strict = InterleavedScoreFilterStage(quarantine=tmp_path / "failed", **arguments).process(task).to_pandas()
    assert (strict["modality"] == "image").sum() == 1
    assert "error" not in strict.columns
    assert len(pd.read_parquet(tmp_path / "failed")) == 5
    only = InterleavedBatch("texts", pa.Table.from_pylist(rows[7:8]))
    assert len(InterleavedScoreFilterStage(**arguments).process(only).data) == 1


def test_wrong_tasks_and_batches_without_rows(pool: Path, run: Result) -> None:
    with pytest.raises(ConfigError, match="image_pairs: takes ImageBatch, not AudioTask"):
        ImagePairsStage().process(AudioTask(data={}))
    with pytest.raises(ConfigError, match="clip_score_filter: takes VideoTask, not DocumentBatch"):
        ClipScoreFilterStage(run=run.folder, least=0).process(DocumentBatch(dataset_name="x", data=pa.table({})))
    empty = ImageBatch("none", [])
    keep = ImageKeepStage(run=run.folder, least=0)
    keep.setup()
    assert keep.process(empty).data == []
    rows = ImagePairsStage().process(empty)
    assert MultimodalRankStage(run=run.folder).decompose()[-1].name == "rank"
    for stage in MultimodalRankStage(run=run.folder).decompose():
        rows = stage.process(rows)
    assert rows.data.num_rows == 0


@pytest.mark.usefixtures("ffprobe")
def test_the_folder_that_clip_writer_leaves_is_a_pool(pool: Path, tmp_path: Path, through: Any) -> None:
    clips = clips_of(pool)
    clips[1].windows = []
    clips[2].windows[1].enhanced_caption = {"llama": "Better."}
    low = Clip(uuid=uuid.uuid4(), source_video="film.mp4", span=(8, 9), buffer=clips[0].buffer)
    gone = Clip(uuid=uuid.uuid4(), source_video="film.mp4", span=(8, 9), windows=clips[0].windows)
    out = tmp_path / "out"
    arguments = {"output_path": str(out), "input_path": str(pool.parent), "caption_models": ["qwen"]}
    flags = dict.fromkeys(("dry_run", "generate_embeddings", "generate_previews", "generate_captions"), False)
    writer = ClipWriterStage(upload_clips=True, enhanced_caption_models=["llama"], **arguments, **flags)
    writer.setup()
    captions = [f"{clips[0].windows[0].caption['qwen']}\nThe end.", "Better."]
    plain = f"{clips[2].windows[0].caption['qwen']}\nThe end."
    writer.process(VideoTask("films", Video(pool, clips=[*clips, gone], filtered_clips=[low])))
    (out / "metas/v0/zz.json").write_text("[")
    [batch] = through([PoolReader(pools=out)])
    known = {row[PAIR_ID]: row for row in batch.data.to_pylist()}
    assert known.keys() == {*(str(clip.uuid) for clip in [*clips, gone]), None}
    first, second, third, fourth = (known[str(clip.uuid)] for clip in [*clips, gone])
    assert [first[ERROR], third[ERROR]] == [None, None]
    assert [first[ANNOTATION], third[ANNOTATION]] == captions
    assert (first[POOL], first[DATA], first["duration_span"]) == ("out", f"clips/{clips[0].uuid}.mp4", [0, 1.5])
    assert f"annotation: {NOTHING}" in second[ERROR]
    assert "no such file" in fourth[ERROR]
    assert "row: expected a JSON object" in known[None][ERROR]
    assert ExpertEmbeddingStage().process(batch).data[ERROR].null_count == 2
    source = {"path": str(out), "fields": {"annotation": "qwen_caption"}}
    [batch] = through([PoolReader(pools=[source])])
    assert plain in batch.data[ANNOTATION].to_pylist()
    assert validate([PoolSource(path=str(out))]).bad == 3
    (out / f"metas/v0/{gone.uuid}.json").unlink()  # else it is looked for again
    done = ingest([PoolSource(path=str(out))], tmp_path / "pool")
    assert (done.good, ingest([PoolSource(path=str(out))], tmp_path / "pool").fresh) == (2, False)
    shutil.rmtree(out / "metas/v0")
    (out / "metas/v0").mkdir()
    [batch] = through([PoolReader(pools=out)])
    assert "the folder contains no clips" in batch.data[ERROR][0].as_py()


@pytest.mark.parametrize("module", [batches, images, audio, interleaved_documents, pairs, sample_tasks])
def test_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed

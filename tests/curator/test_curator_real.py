"""Curator's own tutorial pipelines on real items, ours among its stages: into pairs here, scored in place on Ray.

What needs a GPU, DALI, FFmpeg or NeMo's speech models there is done by hand: tasks of the type that its documentation
says, with what it would have put into them.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.audio.io.convert import AudioToDocumentStage
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.stages.interleaved.io import InterleavedParquetWriterStage, InterleavedWebdatasetReader
from nemo_curator.stages.interleaved.stages import InterleavedAspectRatioFilterStage
from nemo_curator.stages.text.io.writer import JsonlWriter
from nemo_curator.stages.video.clipping.clip_extraction_stages import FixedStrideExtractorStage
from nemo_curator.stages.video.io.clip_writer import ClipWriterStage
from nemo_curator.stages.video.io.video_reader import VideoReader
from nemo_curator.tasks import ImageBatch, ImageObject
from nemo_curator.tasks.video import _Window
from PIL import Image
from ray.cluster_utils import Cluster

from nemo_mm_rank.curator import (
    AudioScoreStage,
    BlendWriter,
    ClipPairsStage,
    ClipScoreFilterStage,
    ExpertEmbeddingStage,
    ImageKeepStage,
    ImagePairsStage,
    InterleavedPairsStage,
    InterleavedScoreFilterStage,
    MultimodalRankStage,
    PairColumnsStage,
    PoolReader,
    QuarantineStage,
)
from nemo_mm_rank.run.curation import Result

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/real_pool"
TEN = 10

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def cluster(ray_alone: None, ffprobe: None) -> Iterator[None]:
    """One cluster for all pipelines of this file: each of them connects to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        there = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        patch.setenv("RAY_ADDRESS", there.address)
        yield
        there.shutdown()  # type: ignore[no-untyped-call]


def go(name: str, stages: list[Any], tasks: list[Any] | None = None) -> list[Any]:
    return list(Pipeline(name, stages=stages).run(RayActorPoolExecutor(show_progress=False), tasks) or [])


def real(modality: str, pool: str | None = None) -> list[dict[str, Any]]:
    """Return ten real pairs."""
    if not REAL.is_dir():
        pytest.skip(f"needs {REAL}")
    lines = (REAL / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["modality"] == modality and pool in (None, row["pool"])]
    return rows[:TEN]


def failed(folder: Path) -> dict[str, str]:
    table = pd.read_parquet(folder)
    return dict(zip(table["pair_id"], table["message"], strict=True))


def test_image_curation_example(run: Result, tmp_path: Path, through: Any) -> None:
    rows = real("image", "coco")
    images = [
        ImageObject(
            image_path=str(REAL / row["data"]),
            image_id=row["pair_id"],
            metadata={"caption": row["annotation"], "licence": row["licence"]},
            image_data=np.array(Image.open(REAL / row["data"]).convert("RGB")),
        )
        for row in rows
    ]
    images[3].metadata = {}
    batches = [ImageBatch("coco", images[start : start + 5]) for start in (0, 5)]
    score: list[Any] = [MultimodalRankStage(run=run.folder, quarantine=tmp_path / "failed")]
    through([ImagePairsStage(), *score, BlendWriter(str(tmp_path / "scored"))], batches)
    scored = pd.read_parquet(tmp_path / "scored").set_index("pair_id")
    assert failed(tmp_path / "failed").keys() == {rows[3]["pair_id"]}
    assert set(scored.index) | {rows[3]["pair_id"]} == {row["pair_id"] for row in rows}
    assert scored["annotation"].to_dict() == {row["pair_id"]: row["annotation"] for row in rows if row != rows[3]}
    assert scored["licence"].to_dict() == {row["pair_id"]: row["licence"] for row in rows if row != rows[3]}

    least = float(scored["score"].median())
    batches = [ImageBatch("coco", images[start : start + 5]) for start in (0, 5)]
    keep = ImageKeepStage(run=run.folder, least=least, quarantine=tmp_path / "bad")
    done = go("keep", [keep, ImageWriterStage(str(tmp_path / "tars"), remove_image_data=True)], batches)
    written = pd.concat(pd.read_parquet(file) for task in done for file in task.data if file.endswith(".parquet"))
    assert set(written["image_id"]) == set(scored.index[scored["score"] >= least])
    members = set()
    for file in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(file) as tar:
            members |= {name.removesuffix(".jpg") for name in tar.getnames()}
    assert members == set(written["image_id"])
    assert failed(tmp_path / "bad").keys() == {rows[3]["pair_id"]}
    chosen = through([ImageKeepStage(blend=tmp_path / "scored", least=least)], [ImageBatch("coco", images)])
    assert {image.image_id for image in chosen[0].data} == members


def test_fleurs(run: Result, tmp_path: Path, through: Any) -> None:
    pytest.importorskip("soundfile", reason="needs soundfile, which Curator's audio stages read files by")
    from nemo_curator.stages.audio.common import (
        GetAudioDurationStage,
        ManifestReader,
        ManifestWriterStage,
        PreserveByValueStage,
    )

    rows = real("audio", "audiocaps")
    # What CreateInitialManifestFleursStage leaves, and the transcript and error rate of the stages behind it.
    entries = [
        {"audio_filepath": str(REAL / row["data"]), "text": row["annotation"], "wer": 10.0, "id": row["pair_id"]}
        for row in rows
    ]
    entries[4]["audio_filepath"] = str(REAL / "audio/gone.wav")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    score = AudioScoreStage(run=run.folder, root=REAL, fields={"pair_id": "id"}, quarantine=tmp_path / "failed")
    better = PreserveByValueStage("score", -100, "ge")
    read = [ManifestReader(str(manifest)), GetAudioDurationStage()]
    go("fleurs", [*read, score, better, ManifestWriterStage(str(tmp_path / "out.jsonl"))])
    out = {entry["id"]: entry for entry in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert failed(tmp_path / "failed").keys() == {rows[4]["pair_id"]}
    assert out.keys() == {row["pair_id"] for row in rows} - {rows[4]["pair_id"]}
    assert all(out[row["pair_id"]]["text"] == row["annotation"] for row in rows if row != rows[4])
    assert all(entry["duration"] > 1 and math.isfinite(entry["score"]) for entry in out.values())
    assert all(-1 <= entry["agreement_score"] <= 1 for entry in out.values())

    fields = {"pair_id": "id", "data": "audio_filepath", "annotation": "text"}
    columns = PairColumnsStage(fields=fields, modality="audio", pool="fleurs", root=REAL)
    stages = [AudioToDocumentStage(), columns, ExpertEmbeddingStage(), QuarantineStage(tmp_path / "bad")]
    wanted = ["pair_id", "data", "annotation", "duration"]
    low = PreserveByValueStage("wer", 75, "le")
    through([*read, low, *stages, JsonlWriter(str(tmp_path / "jsonl"), fields=wanted)])
    lines = [json.loads(line) for file in (tmp_path / "jsonl").iterdir() for line in file.open() if line.strip()]
    assert {line["pair_id"]: line["annotation"] for line in lines} == {key: value["text"] for key, value in out.items()}
    assert failed(tmp_path / "bad").keys() == {rows[4]["pair_id"]}


def test_interleaved_pipeline(run: Result, tmp_path: Path, through: Any) -> None:
    rows = real("image", "flickr8k")
    with tarfile.open(tmp_path / "pages.tar", "w") as tar:
        for number, row in enumerate(rows):
            sample = {"texts": [row["annotation"] if number != 7 else None, None], "images": [None, f"{number}.jpg"]}
            image = (REAL / row["data"]).read_bytes()
            for name, content in ((f"{number}.json", json.dumps(sample).encode()), (f"{number}.jpg", image)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    reader = InterleavedWebdatasetReader(str(tmp_path / "pages.tar"))
    ranked = MultimodalRankStage(run=run.folder, quarantine=tmp_path / "failed")
    through([reader, InterleavedPairsStage(), ranked, BlendWriter(str(tmp_path / "scored"))])
    scored = pd.read_parquet(tmp_path / "scored").set_index("pair_id")
    assert failed(tmp_path / "failed").keys() == {"7:1"}
    assert scored["annotation"].to_dict() == {f"{n}:1": row["annotation"] for n, row in enumerate(rows) if n != 7}

    least = float(scored["score"].median())
    keep = InterleavedScoreFilterStage(run=run.folder, least=least, quarantine=tmp_path / "bad")
    ratio = InterleavedAspectRatioFilterStage(min_aspect_ratio=0.1, max_aspect_ratio=10)
    go("interleaved", [reader, ratio, keep, InterleavedParquetWriterStage(str(tmp_path / "out"))])
    out = pd.concat(map(pd.read_parquet, (tmp_path / "out").glob("*.parquet")))
    kept = out[out["modality"] == "image"]
    assert {f"{name}:1" for name in kept["sample_id"]} == set(scored.index[scored["score"] >= least])
    assert np.allclose(sorted(kept["score"]), sorted(scored["score"][scored["score"] >= least]))
    assert len(out[out["modality"] == "text"]) == TEN - 1
    assert failed(tmp_path / "bad").keys() == {"7:0"}  # Curator's filters number what is left anew


def test_video_split_clip_example(run: Result, tmp_path: Path, through: Any) -> None:
    rows = real("video", "audiocaps_video")
    source, out = tmp_path / "videos", tmp_path / "out"
    source.mkdir()
    captions = {}
    for row in rows:
        (source / Path(row["data"]).name).symlink_to(REAL / row["data"])
        captions[Path(row["data"]).name] = row["annotation"]
    cut = FixedStrideExtractorStage(clip_len_s=20, clip_stride_s=20, min_clip_length_s=1, limit_clips=0)
    tasks = through([VideoReader(str(source)), cut])
    assert len(tasks) == TEN
    clips = [clip for task in tasks for clip in task.data.clips]
    assert len(clips) >= TEN
    for task in tasks:  # as ClipTranscodingStage and CaptionGenerationStage do
        for clip in task.data.clips:
            clip.buffer = task.data.source_bytes
            clip.windows = [_Window(0, 99, caption={"qwen": captions[Path(clip.source_video).name]})]
        task.data.source_bytes = None
    clips[2].buffer, clips[5].windows = None, []
    lost = {str(clips[2].uuid), str(clips[5].uuid)}
    ranked = MultimodalRankStage(run=run.folder, quarantine=tmp_path / "failed")
    through([ClipPairsStage(), ranked, BlendWriter(str(tmp_path / "scored"))], tasks)
    scored = pd.read_parquet(tmp_path / "scored").set_index("pair_id")
    assert failed(tmp_path / "failed").keys() == lost
    assert set(scored.index) | lost == {str(clip.uuid) for clip in clips}

    least = float(scored["score"].median())
    low = ClipScoreFilterStage(run=run.folder, least=least, quarantine=tmp_path / "bad")
    arguments: dict[str, Any] = {"output_path": str(out), "input_path": str(source), "upload_clips": True}
    arguments |= dict.fromkeys(("dry_run", "generate_embeddings", "generate_previews", "generate_captions"), False)
    writer = ClipWriterStage(caption_models=["qwen"], enhanced_caption_models=[], **arguments)
    done = go("clips", [low, writer], tasks)
    assert sum(len(task.data.clips) + len(task.data.filtered_clips) for task in done) == len(clips)
    kept = {file.stem for file in (out / "clips").iterdir()}
    assert kept == set(scored.index[scored["score"] >= least])
    assert failed(tmp_path / "bad").keys() == lost
    through([PoolReader(pools=out), BlendWriter(str(tmp_path / "again"))])
    again = pd.read_parquet(tmp_path / "again").set_index("pair_id")
    assert again["annotation"].to_dict() == scored["annotation"][list(kept)].to_dict()
    assert again["error"].isna().all()

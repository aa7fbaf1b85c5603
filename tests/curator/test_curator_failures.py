"""A stage that fails for nearly all of a modality ends the pipeline, as it ends `curate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from nemo_curator.tasks import DocumentBatch, ImageBatch, ImageObject

from nemo_mm_rank.curator import ExpertEmbeddingStage, ImageKeepStage, MultimodalRankStage, PoolReader
from nemo_mm_rank.errors import ConfigError, FailedError
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ERROR
from tests.curator.conftest import Through

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
SAID = (
    r"experts failed for {} of {} pairs of image, most often: {} x experts: MediaError: '.*': cannot be decoded as "
    r"image: it is a Git LFS pointer, .*; once that is mended, run the pipeline again, or go on without these pairs: "
    r"allow_failures='100%'"
)


def batch(images: int, texts: int = 30) -> DocumentBatch:
    n = images + texts
    columns = {
        "pair_id": [f"p{number}" for number in range(n)],
        "pool": ["mine"] * n,
        "modality": ["image"] * images + ["text"] * texts,
        "data": [f"{number}.png" if number < images else f"Words of number {number}." for number in range(n)],
        "annotation": [f"The words of number {number}." for number in range(n)],
        "data_bytes": pa.array([POINTER] * images + [None] * texts, pa.binary()),
    }
    return DocumentBatch(dataset_name="mine", data=pa.table(columns))


def test_nearly_all_of_a_modality() -> None:
    with pytest.raises(FailedError, match=SAID.format(20, 20, 20)):
        ExpertEmbeddingStage().process(batch(20))
    for stage, images in ((ExpertEmbeddingStage(), 19), (ExpertEmbeddingStage(allow_failures="100%"), 40)):
        assert stage.process(batch(images)).data[ERROR].null_count == 30
    with pytest.raises(ConfigError, match="allow_failures"):
        ExpertEmbeddingStage(allow_failures="most")


def test_what_a_worker_has_seen_counts_and_what_failed_before_does_not() -> None:
    stage = ExpertEmbeddingStage()
    stage.process(batch(12))
    with pytest.raises(FailedError, match=SAID.format(24, 24, 12)):
        stage.process(batch(12))
    table = batch(25).data
    before = pa.array(["pool: BadRow: said before (x:1)"] * 25 + [None] * 30)
    given = DocumentBatch(dataset_name="mine", data=table.append_column(ERROR, before))
    assert ExpertEmbeddingStage().process(given).data[ERROR].null_count == 30


def test_stages_of_stages_hand_it_on(run: Result, tmp_path: Path) -> None:
    task = ImageBatch(
        "shots", [ImageObject(image_id=f"i{n}", image_path=f"{n}.png", metadata={"caption": "A."}) for n in range(25)]
    )
    for number in range(25):
        (tmp_path / f"{number}.png").write_bytes(POINTER)
    arguments: dict[str, Any] = {"run": run.folder, "root": tmp_path}
    with pytest.raises(FailedError, match=r"failed for 25 of 25 pairs of image"):
        ImageKeepStage(**arguments).process(task)
    kept = ImageKeepStage(**arguments, allow_failures=1.0).process(task).data
    assert all("Git LFS pointer" in (image.metadata or {})["error"] for image in kept)
    for stage in MultimodalRankStage(run=run.folder, allow_failures=0.5).decompose():
        assert stage.allow_failures == 0.5


def test_in_a_pipeline(tmp_path: Path, through: Through) -> None:
    rows = [f'{{"modality": "image", "data": "{n}.png", "annotation": "Number {n}."}}' for n in range(25)]
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    for number in range(25):
        (tmp_path / f"{number}.png").write_bytes(POINTER)
    with pytest.raises(FailedError, match=SAID.format(25, 25, 25)):
        through([PoolReader(pools=tmp_path / "pool.jsonl"), ExpertEmbeddingStage()], None)

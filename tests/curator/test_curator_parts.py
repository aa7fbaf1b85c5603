"""Data of several parts in Curator's batches, whose filters go through pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.schema import CONTENTS, DATA_PARTS, PARTS, SOURCE_CONTENTS, SOURCE_MEDIA
from tests.parts_pool import write

tasks = pytest.importorskip("nemo_curator.tasks", reason="needs the extra 'curator'")
batches = pytest.importorskip("nemo_mm_rank.curator.stages", reason="needs Curator 1.4")


def test_parts_come_back_from_pandas_as_they_were(tmp_path: Path) -> None:
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    parts = [{"modality": "text", "data": "a cat"}, {"modality": "image", "data": "a.png"}]
    rows: list[dict[str, Any]] = [
        {"data": parts, "annotation": "several"},
        {"data": "words", "modality": "text", "annotation": "one"},
    ]
    [batch] = read_pools([PoolSource(path=str(write(tmp_path / "pool.jsonl", rows)))])
    table = pa.table(batch.pairs)
    back = batches.to_table(tasks.DocumentBatch(dataset_name="pool", data=table.to_pandas()))
    assert back.schema.field(DATA_PARTS).type == PARTS
    assert back[DATA_PARTS].to_pylist() == [parts, None]
    media = pa.array([[parts[1], parts[1]], None], PARTS)
    contents = pa.array([[b"x", None], None], CONTENTS)
    more = table.append_column(SOURCE_MEDIA, media).append_column(SOURCE_CONTENTS, contents)
    back = batches.to_table(tasks.DocumentBatch(dataset_name="pool", data=more.to_pandas()))
    assert [back.schema.field(name).type for name in (SOURCE_MEDIA, SOURCE_CONTENTS)] == [PARTS, CONTENTS]
    assert back.to_pylist() == more.to_pylist()
    none = batches.to_table(tasks.DocumentBatch(dataset_name="pool", data=table.slice(1).to_pandas()))
    assert none.schema.field(DATA_PARTS).type == PARTS

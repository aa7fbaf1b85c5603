"""Which pairs a projection is fitted on: bounded, the same however the pool lies, and shared evenly by modalities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.config import Config
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.run.fits import even_shares, read_sample
from nemo_mm_rank.schema import ANNOTATION, ERROR, MODALITY, PAIR_ID, VECTOR, annotation_column, data_column
from nemo_mm_rank.shards import Files

COUNTS = {"text": 60, "code": 30, "image": 5}
FAILED = 3


def _shards(folder: Path, sizes: list[int]) -> Files:
    names = [name for name, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(names))
    vectors = pa.array(np.eye(len(names), 4, dtype=np.float32).tolist(), VECTOR)
    table = pa.table(
        {
            PAIR_ID: [f"pair {row}" for row in order],
            MODALITY: [names[row] for row in order],
            ANNOTATION: [f"annotation {row}" for row in order],
            ERROR: pa.array([None] * (len(names) - FAILED) + ["experts: PairError: no"] * FAILED, pa.string()),
            annotation_column("text"): vectors,
            data_column("words"): vectors,
        }
    )
    parts, start = [], 0
    folder.mkdir()
    for number, size in enumerate(sizes):
        write_table(folder / f"{number}.parquet", table.slice(start, size))
        parts.append((folder / f"{number}.parquet",))
        start += size
    assert start == len(names)
    return Files(tuple(parts))


def _config(max_pairs: int) -> Config:
    return Config.model_validate(
        {
            "pools": "pool.jsonl",
            "queries": "a dog",
            "budget": 10,
            "output": "run",
            "models": {"text": {"class": "hashed-text", "dim": 4}},
            "experts": [{"name": "words", "kind": "text-based", "encoder": "text"}],
            "anchor": "text",
            "projection": {"max_pairs": max_pairs},
        }
    )


def test_a_rare_modality_is_there_as_a_whole(tmp_path: Path) -> None:
    found = read_sample(_shards(tmp_path / "one", [95]), _config(29))
    counts = Counter(found.modality)
    assert sum(counts.values()) == 29 == len(found.anchors)
    assert counts["text"] == counts["code"] == 12
    assert counts["image"] == 5


def test_a_pool_within_the_bound_is_read_whole(tmp_path: Path) -> None:
    found = read_sample(_shards(tmp_path / "one", [95]), _config(95))
    assert len(found.annotations) == 95 - FAILED


def test_the_sample_is_the_same_however_the_pool_lies(tmp_path: Path) -> None:
    one = read_sample(_shards(tmp_path / "one", [95]), _config(20))
    many = read_sample(_shards(tmp_path / "many", [1, 40, 4, 50]), _config(20))
    assert list(one.annotations) == list(many.annotations)
    assert one.anchors.equal(many.anchors)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.integers(0, 5000))
def test_shares_are_even(counts: list[int], total: int) -> None:
    shares = even_shares(counts, total)
    assert sum(shares) == min(total, sum(counts))
    assert all(share <= count for share, count in zip(shares, counts, strict=True))
    cut = [share for share, count in zip(shares, counts, strict=True) if share < count]
    if cut:
        assert max(shares) <= min(cut) + 1

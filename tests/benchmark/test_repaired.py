"""Which spoilt pairs count as repaired: rid of the foreign sentence, and hardly anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_mm_rank.benchmark.measures import repaired, repaired_pairs
from nemo_mm_rank.benchmark.planting.donors import with_sentence
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import SPANS
from nemo_mm_rank.text.split import sentence_spans, split_sentences


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (None, False),
        ([[0, 4], [11, 15]], True),
        ([[5, 10]], False),  # the foreign one alone
        ([[0, 4]], False),  # half of the own is gone
        ([[0, 10], [11, 15]], False),
    ],
)
def test_by_hand(spans: list[list[float]] | None, expected: bool) -> None:
    assert repaired("One. Two", "One. Fish. Two.", spans) is expected


words = st.text(st.sampled_from("abc "), min_size=1, max_size=8).filter(str.strip)


@given(st.lists(words, min_size=1, max_size=4), st.integers(0, 9))
def test_what_is_planted_is_found_wherever_it_is(own: list[str], seed: int) -> None:
    text = ". ".join(own)
    spoilt = with_sentence(split_sentences(text), "Fish swim", np.random.default_rng(seed))
    kept = [[float(a), float(b)] for a, b in sentence_spans(spoilt) if spoilt[a:b] != "Fish swim."]
    assert repaired(text, spoilt, kept)
    assert not repaired(text, spoilt, None)


def test_pairs_of_a_trimmed_pool(tmp_path: Path) -> None:
    table = pa.table(
        {
            "pair_id": ["cut", "whole", "clean"],
            "annotation": ["One. Fish.", "One. Fish.", "One. Two."],
            "sns_annotation_spans": pa.array([[[0, 4]], None, [[0, 4]]], SPANS),
        }
    )
    write_table(tmp_path / part_name(0), table)
    assert repaired_pairs({"cut": "One", "whole": "One", "gone": "Two."}, ShardStore((tmp_path,), 1)) == {"cut"}

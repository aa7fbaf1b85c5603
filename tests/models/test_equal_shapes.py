from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models import batching
from nemo_mm_rank.models.batching import EqualShapes, Features


class Model:
    device, dtype = torch.device("cpu"), torch.float64


class Sums:
    """Sums each row; remembers its batches, and has memory for so many rows."""

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, batch: Features) -> list[float]:
        values = batch["values"]
        assert values.dtype == torch.float64
        if len(values) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        self.batches.append(tuple(values.shape))
        sums: list[float] = values.sum(dim=1).tolist()
        return sums


def inputs(lengths: list[int]) -> Iterator[Features]:
    for number, length in enumerate(lengths):
        yield {"values": torch.full((1, length), float(number))}


def expected(lengths: list[int]) -> list[float]:
    return [float(number * length) for number, length in enumerate(lengths)]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 5), st.integers(1, 60))
def test_results_are_in_order_and_batches_of_one_shape(lengths: list[int], rows: int, held: int) -> None:
    run = Sums()
    before, batching.HELD_BYTES = batching.HELD_BYTES, held
    try:
        assert EqualShapes(run, Model(), rows)(inputs(lengths)) == expected(lengths)
    finally:
        batching.HELD_BYTES = before
    assert all(shape[0] == rows for shape in run.batches)
    assert {shape[1] for shape in run.batches} == set(lengths)


def test_batches_are_as_few_as_shapes_allow() -> None:
    run = Sums()
    EqualShapes(run, Model(), 3)(inputs([2, 5, 2, 5, 2, 2, 5, 5]))
    assert run.batches == [(3, 2), (3, 5), (3, 2), (3, 5)]


def test_out_of_memory_halves_the_rows_of_that_shape() -> None:
    run = Sums(most=3)
    batches: EqualShapes[float] = EqualShapes(run, Model(), 8)
    lengths = [2] * 10
    assert batches(inputs(lengths)) == expected(lengths)
    assert run.batches == [(2, 2)] * 5
    assert batches(inputs([2, 2])) == [0.0, 2.0]
    assert run.batches == [(2, 2)] * 6
    with pytest.raises(ModelError, match="cpu has too little memory for one item: out of memory"):
        EqualShapes(Sums(most=0), Model(), 2)(inputs([1]))
    with pytest.raises(ModelError, match="batch_size must be at least 1, not 0"):
        EqualShapes(run, Model(), 0)


def test_grids_are_part_of_a_shape_and_texts_are_not() -> None:
    seen: list[Any] = []

    def run(batch: Features) -> list[int]:
        seen.append(batch["grid"].tolist())
        return [0] * len(batch["grid"])

    def one(grid: list[int], token: int) -> Features:
        return {"grid": torch.tensor([grid]), "input_ids": torch.tensor([[token, 1, 1]])}

    EqualShapes(run, Model(), 2)([one([2, 3], 5), one([3, 2], 5), one([2, 3], 6)])
    assert seen == [[[2, 3], [2, 3]], [[3, 2], [3, 2]]]

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.batching import Features, FixedRows, ahead, by_length, padded_lengths, stacked, text_rows

CPU = torch.device("cpu")


@settings(deadline=None)  # the first call of a process warms torch up
@given(st.integers(1, 40), st.integers(1, 9))
def test_every_pass_has_the_same_rows_and_every_row_its_result(n: int, rows: int) -> None:
    shapes: list[tuple[int, ...]] = []

    def forward(batch: Features) -> torch.Tensor:
        shapes.append(tuple(batch["x"].shape))
        return batch["x"].double()

    values = torch.arange(1, 2 * n + 1, dtype=torch.float32).view(n, 2)
    embedded = FixedRows(CPU)(forward, {"x": values}, rows)
    assert set(shapes) == {(rows, 2)}
    assert len(shapes) == -(-n // rows)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, F.normalize(values, dim=1))


def test_the_model_never_sees_the_callers_memory() -> None:
    values = torch.ones(4, 2)
    FixedRows(CPU)(lambda batch: batch["x"].fill_(7), {"x": values}, 4)
    assert torch.equal(values, torch.ones(4, 2))


def test_running_out_of_memory_halves_the_rows_and_loses_none() -> None:
    rows: list[int] = []

    def forward(batch: Features) -> torch.Tensor:
        rows.append(len(batch["x"]))
        if rows[-1] > 3:
            raise torch.cuda.OutOfMemoryError("no more")
        return batch["x"]

    run = FixedRows(CPU)
    values = torch.arange(1, 21, dtype=torch.float32).view(10, 2)
    torch.testing.assert_close(run(forward, {"x": values}, 12), F.normalize(values, dim=1))
    assert rows == [12, 6, 3, 3, 3, 3]
    run(forward, {"x": values[:2]}, 12)  # what was found holds
    assert rows[6:] == [3]
    with pytest.raises(torch.cuda.OutOfMemoryError):  # of one pass that cannot be parted
        run.whole(forward, {"x": values})


def test_a_row_too_much_for_the_memory_is_said() -> None:
    def forward(batch: Features) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("tried to\nallocate 9 GiB")

    with pytest.raises(ModelError, match=r"^cpu has too little memory for one row: tried to allocate 9 GiB$"):
        FixedRows(CPU)(forward, {"x": torch.ones(4, 2)}, 4)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("limit", [9, 512])
def test_texts_come_by_the_length_that_they_are_padded_to(left: bool, limit: int) -> None:
    counts = [3, 9, 4, 1, 8]
    ids, mask = torch.full((5, 11), 99), torch.zeros((5, 11), dtype=torch.long)
    for row, count in enumerate(counts):
        place = slice(11 - count, 11) if left else slice(0, count)
        ids[row, place] = row + 1
        mask[row, place] = 1
    seen: dict[int, int] = {}
    features = {"input_ids": ids, "attention_mask": mask, "kind": torch.arange(5)[:, None]}
    for rows, group in by_length(features, limit, pad_token=99, left=left):
        assert group["kind"].flatten().tolist() == rows.tolist()
        for row, own, attended in zip(rows.tolist(), group["input_ids"], group["attention_mask"], strict=True):
            seen[row] = len(own)
            assert own[attended == 1].tolist() == [row + 1] * counts[row]
            assert set(own[attended == 0].tolist()) <= {99}
            assert attended.tolist() == sorted(attended.tolist(), reverse=not left)
    assert seen == {0: 4, 1: min(12, limit), 2: 4, 3: 4, 4: 8}


@settings(deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1), st.integers(1, 6000))
def test_padded_lengths_are_few_enough_and_long_enough(counts: list[int], limit: int) -> None:
    lengths = torch.tensor([min(count, limit) for count in counts])
    padded = padded_lengths(lengths, limit)
    assert bool((padded >= lengths).all())
    assert bool((padded <= limit).all())
    assert bool((padded - lengths <= torch.clamp(lengths // 8, min=3)).all())


def test_padded_lengths_by_hand() -> None:
    lengths = torch.tensor([1, 4, 5, 31, 33, 64, 65, 129, 250, 513])
    assert padded_lengths(lengths, 512).tolist() == [4, 4, 8, 32, 36, 64, 72, 144, 256, 512]
    assert len(set(padded_lengths(torch.arange(1, 513), 512).tolist())) == 40


def test_texts_of_a_pass() -> None:
    gpu = torch.device("cuda")
    assert [text_rows(length, CPU) for length in (4, 32, 36, 77, 512, 5000)] == [32, 8, 7, 3, 1, 1]
    assert [text_rows(length, gpu) for length in (4, 77, 512, 50_000)] == [8192, 425, 64, 1]
    assert (text_rows(64, CPU, 512), text_rows(64, gpu, 512)) == (8, 8)


def test_what_comes_next_is_made_ahead_in_order_and_no_further() -> None:
    asked: list[int] = []
    lock = threading.Lock()

    def make(number: int) -> int:
        with lock:
            asked.append(number)
        return number * number

    made = ahead(make, range(100), threads=3, most=4)
    assert next(made) == 0
    assert max(asked) <= 4
    assert list(made) == [number * number for number in range(1, 100)]


def test_an_error_ahead_is_the_consumers_and_the_threads_end() -> None:
    def make(number: int) -> float:
        return 1 / (5 - number)

    before = threading.active_count()
    made = ahead(make, range(100), threads=2, most=3)
    with pytest.raises(ZeroDivisionError):
        list(made)
    assert threading.active_count() == before


def test_rows_are_put_together() -> None:
    def rows() -> Iterator[Features]:
        for row in range(5):
            yield {"a": torch.full((1, 2), row), "b": torch.full((1,), -row)}

    batches = list(stacked(rows(), 2))
    assert [batch["b"].tolist() for batch in batches] == [[0, -1], [-2, -3], [-4]]
    assert [tuple(batch["a"].shape) for batch in batches] == [(2, 2), (2, 2), (1, 2)]


def test_nothing_ahead_is_made_in_the_same_thread() -> None:
    made = ahead(lambda number: (number, threading.get_ident()), range(3), threads=1, most=0)
    assert list(made) == [(number, threading.get_ident()) for number in range(3)]

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, MissingColumnError, PairError, TakenColumnError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.schema import ERROR, VECTOR
from nemo_mm_rank.steps import Added, Step, by_value, columns_added, reason


class Halve(Step):
    """Halves even numbers into a vector and a text; odd ones fail."""

    name = "halve"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        return {"number": pa.int64()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        return {"half": VECTOR, "text": pa.string()}

    def process(self, rows: Frame) -> Added:
        numbers = torch.tensor(rows["number"].tolist())
        even = numbers % 2 == 0
        errors: dict[int, PairError] = {
            row: EmbeddingError(f"{numbers[row]} is odd") for row in torch.nonzero(~even).flatten().tolist()
        }
        texts = [str(int(n) // 2) if ok else None for n, ok in zip(numbers, even, strict=True)]
        return Added({"half": Vectors((numbers / 2).unsqueeze(1), even), "text": pa.array(texts)}, errors)


def run(numbers: list[int], **columns: Any) -> pd.DataFrame:
    out: pd.DataFrame = Halve()(pd.DataFrame({"number": numbers, **columns}))
    return out


def test_columns_are_added_and_failures_keep_their_row() -> None:
    out = run([2, 3, 4])
    assert frames.strings(out, "text") == ["1", None, "2"]
    assert frames.vectors(out, "half").valid.tolist() == [True, False, True]
    assert frames.strings(out, ERROR) == [None, "halve: EmbeddingError: 3 is odd", None]


class Breaks(Halve):
    """Halves, but raises for numbers below zero, and for what is more than memory holds."""

    def process(self, rows: Frame) -> Added:
        for number in rows["number"].tolist():
            if number < 0:
                raise ValueError(f"{number} is less\nthan nothing")
            if number > 100:
                raise MemoryError
        return super().process(rows)


def test_what_is_raised_for_one_row_is_that_rows() -> None:
    out = Breaks()(pd.DataFrame({"number": [2, 3, -4, 6, 8, 102, 12]}))
    errors = frames.strings(out, ERROR)
    assert errors[:2] == [None, "halve: EmbeddingError: 3 is odd"]
    assert re.fullmatch(
        r"halve: EmbeddingError: ValueError: -4 is less than nothing \(test_steps.py, line \d+\)", str(errors[2])
    )
    assert errors[3:] == [None, None, "halve: TransientError: memory is short", None]
    assert frames.strings(out, "text") == ["1", None, None, "3", "4", None, "6"]
    vectors = frames.vectors(out, "half")
    assert vectors.values[vectors.valid].flatten().tolist() == [1, 3, 4, 6]


@pytest.mark.parametrize("numbers", [[-3, -3], [-3] * 70, [-3] * 40 + [2]])
def test_what_is_raised_for_all_rows_alike_is_raised(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="-3 is less"):
        Breaks()(pd.DataFrame({"number": numbers}))


def test_rows_of_one_modality_that_fail_alike_are_not_at_fault() -> None:
    with pytest.raises(ValueError, match="-3 is less"):
        Breaks()(pd.DataFrame({"number": [2, 4, -3, -3], "modality": ["text", "text", "image", "image"]}))
    out = Breaks()(pd.DataFrame({"number": [2, 4, -3], "modality": ["text", "text", "image"]}))
    assert [error is None for error in frames.strings(out, ERROR)] == [True, True, False]


def test_rows_that_failed_before_are_passed_by() -> None:
    out = run([2, 3, 4], error=["sns: MediaError: gone", None, None])
    assert frames.strings(out, ERROR) == ["sns: MediaError: gone", "halve: EmbeddingError: 3 is odd", None]
    assert frames.strings(out, "text") == [None, None, "2"]
    assert frames.vectors(out, "half").valid.tolist() == [False, False, True]
    assert frames.vectors(out, "half").values[2].tolist() == [2]


def test_a_frame_without_live_rows_gets_empty_columns() -> None:
    out = run([2], error=["x: PairError: y"])
    assert frames.strings(out, "text") == [None]
    empty = run([])
    assert list(empty.columns) == ["number", "half", "text", "error"]
    assert len(empty) == 0


def test_meta_has_the_columns_and_types_of_the_result() -> None:
    out = run([2, 4])
    meta = Halve().meta(pd.DataFrame({"number": [1]}))
    assert len(meta) == 0
    assert meta.dtypes.to_dict() == out.dtypes.to_dict()


TAKEN = "halve: 'half', 'text' are present already and would be overwritten; rename your own columns, and leave out "


def test_no_column_is_replaced_at_any_door() -> None:
    frame = pd.DataFrame({"number": [2, 4], "text": ["mine", "mine, too"], "half": [1.0, 2.0]})
    dask = pytest.importorskip("dask.dataframe")
    doors: list[Callable[[], Any]] = [
        lambda: Halve()(frame),
        lambda: Halve()(frame.iloc[:0]),
        lambda: Halve()(frame.assign(error="sns: MediaError: gone")),
        lambda: Halve().meta(frame),
        lambda: columns_added(Halve(), pa.Table.from_pandas(frame)),
        lambda: Halve().meta(dask.from_pandas(frame, npartitions=1)._meta),
        lambda: dask.from_pandas(frame, npartitions=1).map_partitions(Halve(), meta=frame.iloc[:0]).compute(),
        lambda: Halve()(Halve()(frame[["number"]])),  # nor one of ours: nobody can tell whose it is
    ]
    for door in doors:
        with pytest.raises(TakenColumnError, match=f"^{TAKEN}"):
            door()
    assert frame["text"].tolist() == ["mine", "mine, too"]
    with pytest.raises(TakenColumnError, match="halve: 'text' is present already and would be overwritten"):
        Halve()(frame[["number", "text"]])


@pytest.mark.parametrize("value", ["timeout", "HTTP 500: none", "", 3, 0.5, ["sns: A: b"]])
def test_a_column_of_errors_that_is_not_ours_is_refused(value: Any) -> None:
    with pytest.raises(
        TakenColumnError,
        match=r"column 'error' holds .*, not 'step: Class: message'; if the column is yours, rename "
        r"it",
    ):
        run([2, 4], error=[value, None])


def test_a_column_of_no_errors_is_anybodys() -> None:
    for nothing in (None, float("nan"), pd.NA):
        assert frames.strings(run([2, 4], error=[nothing, nothing]), ERROR) == [None, None]


def test_missing_columns_are_found_before_anything_loads() -> None:
    class NeverLoads(Halve):
        def setup(self, device: str | None = None) -> None:
            raise AssertionError("must not be reached")

    with pytest.raises(MissingColumnError, match="halve: the frame has no column 'number'"):
        NeverLoads()(pd.DataFrame({"n": [1]}))


def test_steps_pickle() -> None:
    assert pickle.loads(pickle.dumps(Halve())).provides == Halve().provides


def test_reason_is_one_line() -> None:
    assert reason("sns", PairError("two\n lines")) == "sns: PairError: two lines"
    assert reason("sns", PairError()) == "sns: PairError: no message"


def test_by_value_keeps_order() -> None:
    assert by_value(["b", "a", "b"]) == {"b": [0, 2], "a": [1]}

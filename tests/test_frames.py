from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank import frames
from nemo_mm_rank.errors import EmbeddingError, MissingColumnError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.files import read_note, read_table, write_table

VALUES = torch.arange(6, dtype=torch.float32).view(3, 2)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"name": ["a", None, "c"], "number": [1, 2, 3]}, index=[7, 8, 9])


def test_a_full_column_is_shared_not_copied(frame: pd.DataFrame) -> None:
    out = frames.attach(frame, {"v": Vectors.full(VALUES)})
    back = frames.vectors(out, "v")
    assert back.values.data_ptr() == VALUES.data_ptr()
    assert back.valid.tolist() == [True, True, True]


def test_the_callers_frame_is_unchanged_and_the_index_stays(frame: pd.DataFrame) -> None:
    before = frame.copy()
    out = frames.attach(frame, {"v": Vectors.full(VALUES), "t": pa.array(["x", None, "z"])})
    pd.testing.assert_frame_equal(frame, before)
    assert out.index.tolist() == [7, 8, 9]
    assert frames.strings(out, "t") == ["x", None, "z"]


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 5))
@settings(deadline=None)
def test_vectors_survive_nulls_slices_and_parquet(valid: list[bool], dim: int) -> None:
    values = torch.randn(len(valid), dim)
    mask = torch.tensor(valid, dtype=torch.bool)
    frame = pd.DataFrame({"row": range(len(valid))})
    out = frames.attach(frame, {"v": Vectors(values, mask)})
    for part, expected in ((out, slice(None)), (out.iloc[1:], slice(1, None)), (out.iloc[::-1], None)):
        back = frames.vectors(part, "v")
        wanted_mask = mask.flip(0) if expected is None else mask[expected]
        wanted = values.flip(0) if expected is None else values[expected]
        assert torch.equal(back.valid, wanted_mask)
        assert back.values.shape == (len(wanted), dim if wanted_mask.any() else 0)
        assert torch.equal(back.values[back.valid], wanted[wanted_mask][:, : back.values.shape[1]])


def test_every_reader_opens_the_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    import dask.dataframe as dd

    out = frames.attach(frame, {"v": Vectors(VALUES, torch.tensor([True, False, True]))})
    path = tmp_path / "x.parquet"
    write_table(path, frames.to_table(out), {"key": "k"})
    assert read_note(path) == {"key": "k"}
    assert pd.read_parquet(path)["v"].tolist()[0].tolist() == [0, 1]
    assert pd.read_parquet(path)["v"].tolist()[1] is None
    assert dd.read_parquet(path).compute()["name"].tolist()[0] == "a"
    again = frames.from_table(read_table(path))
    assert frames.vectors(again, "v").values.tolist() == [[0, 1], [0, 0], [4, 5]]


def test_vectors_of_different_lengths_are_refused() -> None:
    frame = frames.attach(pd.DataFrame({"row": [0, 1]}), {"v": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))})
    with pytest.raises(EmbeddingError, match="different lengths"):
        frames.vectors(frame, "v")


def test_a_fixed_size_list_column_is_read_as_well() -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    frame = frames.attach(pd.DataFrame({"row": [0, 1]}), {"v": column})
    assert frames.vectors(frame, "v").values.tolist() == [[1, 2], [3, 4]]


def test_a_column_of_objects_that_are_all_missing_has_no_vector() -> None:
    back = frames.vectors(pd.DataFrame({"v": pd.Series([None, None], dtype=object)}), "v")
    assert back.values.shape == (2, 0)
    assert back.valid.tolist() == [False, False]


def test_missing_columns_are_named_with_the_step() -> None:
    with pytest.raises(MissingColumnError, match=r"experts: the frame has no column 'data'; it has 'row'"):
        frames.check_columns(pd.DataFrame({"row": [0]}), {"row": None, "data": None}, "experts")

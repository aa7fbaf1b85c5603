"""A run of the main job to hold the modules against, and datasets made from its pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from nemo_curator.datasets import DocumentDataset

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import PAIR_ID


def parts(run: Path) -> list[Path]:
    """Return the files of a run's pool."""
    return sorted(run.glob("pool/part-*.parquet"))


def pairs(run: Path) -> pd.DataFrame:
    """Return a run's pool in one frame, in Arrow types."""
    frame: pd.DataFrame = frames.from_table(pa.concat_tables(map(read_table, parts(run))))
    return frame


def shards_of(run: Path) -> ShardStore:
    """Return everything that the run made of its pairs with the plain steps."""
    folder = RunFolder.at(run)
    return State.load(folder).scored(folder)


def made_by(run: Path) -> pa.Table:
    """Return the same as one table, by ``pair_id``."""
    shards = shards_of(run)
    return pa.concat_tables(shards.read(part) for part in range(shards.count)).sort_by(PAIR_ID)


def in_thirds(frame: pd.DataFrame) -> DocumentDataset:
    """Return a dataset of three partitions."""
    return DocumentDataset.from_pandas(frame, npartitions=3, sort=False)


def computed(dataset: DocumentDataset) -> pa.Table:
    """Compute a dataset, by ``pair_id``."""
    return frames.to_table(dataset.df.compute()).sort_by(PAIR_ID)


def assert_same(found: pa.Table, expected: pa.Table, columns: Sequence[str] | None = None) -> None:
    """Check that rows are equal, numbers and embeddings to 1e-5, everything else exactly."""
    for name in expected.column_names if columns is None else columns:
        mine, theirs = found[name].combine_chunks(), expected[name].combine_chunks()
        kind = theirs.type
        if (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)) or pa.types.is_floating(kind):
            assert mine.is_valid().equals(theirs.is_valid()), name
            if pa.types.is_list(kind):
                assert mine.value_lengths().to_pylist() == theirs.value_lengths().to_pylist(), name
                mine, theirs = mine.flatten(), theirs.flatten()
            mine, theirs = (array.drop_null().to_numpy(zero_copy_only=False) for array in (mine, theirs))
            np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=0, err_msg=name)
        else:
            assert mine.to_pylist() == theirs.to_pylist(), name


def config_of(run: Path) -> Config:
    """Return a run's configuration."""
    return RunFolder.at(run).load_config()

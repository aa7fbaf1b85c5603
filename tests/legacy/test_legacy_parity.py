"""The script that the parity test calls, as it calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("nemo_curator.datasets", reason="needs nemo-curator 0.9: make test-curator09")

from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.schema import PAIR_ID
from tests.legacy import parity_run
from tests.legacy.pools import assert_same, made_by


def test_from_outside(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, parity_run.__file__, str(run), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    found = pa.concat_tables(map(read_table, sorted((tmp_path / "out").glob("*.parquet")))).sort_by(PAIR_ID)
    assert_same(found, made_by(run))

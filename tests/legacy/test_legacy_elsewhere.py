"""What a user of another Curator is told."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

THERE = find_spec("nemo_curator") is not None and find_spec("nemo_curator.datasets") is not None


@pytest.mark.skipif(THERE, reason="Curator 0.9 is installed")
@pytest.mark.parametrize("name", ["legacy", "legacy_filters"])
def test_without_curator_09(name: str) -> None:
    with pytest.raises(ImportError, match=r"for nemo-curator 0\.9; .* nemo_mm_rank\.curator"):
        import_module(f"nemo_mm_rank.dask.{name}")

"""The examples in the protocols that users fulfil run as they stand."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from nemo_mm_rank import engine
from nemo_mm_rank.quality.operators import media
from nemo_mm_rank.ranking import conditions


@pytest.mark.parametrize("module", [conditions, engine, media])
def test_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 2
    assert not done.failed

"""The examples in docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import nemo_mm_rank

ROOT = Path(nemo_mm_rank.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
MODULES = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    if name.startswith("nemo_mm_rank.curator"):
        pytest.importorskip("nemo_curator", reason="needs the extra [curator]")
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted
    assert not done.failed


def test_there_are_enough_of_them() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    ours = [name for name in MODULES if not name.startswith("nemo_mm_rank.curator")]
    assert sum(bool(one.examples) for name in ours for one in finder.find(importlib.import_module(name))) >= 20

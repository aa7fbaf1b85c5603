"""The parts of a benchmark that are worked by hand: verdicts, tables, costs, files of blends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_mm_rank.benchmark.blends import Blend, Cost, measured
from nemo_mm_rank.benchmark.measures import SCHEMA
from nemo_mm_rank.benchmark.tables import Comparison, Results, cost, verdict
from nemo_mm_rank.measures.statistics import Difference
from nemo_mm_rank.tables import Row, Table, markdown


@pytest.mark.parametrize(
    ("low", "high", "adjusted", "lower", "says"),
    [
        (-2.0, -1.0, 0.01, True, "better"),
        (-2.0, -1.0, 0.01, False, "worse"),
        (1.0, 2.0, 0.01, True, "worse"),
        (1.0, 2.0, 0.20, False, "better, not after Holm"),
        (-1.0, 1.0, 0.01, True, "not separable"),
    ],
)
def test_verdicts(low: float, high: float, adjusted: float, lower: bool, says: str) -> None:
    assert verdict(Difference((low + high) / 2, low, high, 5, 0.01), adjusted, lower) == says


def test_one_seed_says_nothing() -> None:
    assert verdict(Difference(1.0, np.nan, np.nan, 1, np.nan), np.nan, True) == "not known from one seed"


def test_markdown() -> None:
    table = Table("T", ["a", "b"], [Row(["1", "x|y"])], note="A note.")
    text = "## T\n\n| a | b |\n| --- | --- |\n| 1 | x\\|y |\n\nA note.\n"
    assert markdown([table]) == text
    assert markdown([table], "Title", ["One.", "Two."]) == f"# Title\n\nOne.\n\nTwo.\n\n{text}"


def test_costs_are_those_of_what_is_done_inside() -> None:
    with measured(cold=False) as cost:
        block = np.ones(40 * 2**20, dtype=np.uint8)
    with measured(cold=False) as after:
        del block
    assert cost.seconds > 0
    assert cost.model_items == 0
    if cost.peak_bytes is not None:  # Linux says
        assert cost.peak_bytes > 40 * 2**20
        assert after.peak_bytes is not None
    with measured(cold=False, here=False) as elsewhere:
        pass
    assert elsewhere.peak_bytes is None
    assert elsewhere.model_items is None


KILLED = """
import os, signal, sys, time
from pathlib import Path
from nemo_mm_rank.benchmark.blends import measured
from nemo_mm_rank.models import loader
loader.computed = lambda: 592 * (time.monotonic() > began)
began = time.monotonic() + 0.01
with measured(cold=False, file=Path(sys.argv[1]), key=sys.argv[2]):
    time.sleep(1.3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_interrupted_starts_have_cost_counts(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, file, "k"], check=False).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="stopped"), measured(cold=False, file=file, key="k"):
        raise ValueError("stopped")
    with measured(cold=False, file=file, key="k") as spent:
        pass
    assert spent.model_items == 2 * 592
    assert 1.0 < spent.seconds < 4.0
    assert spent.interrupted == 3
    with measured(cold=False, file=file, key="other") as fresh:
        pass
    assert (fresh.model_items, fresh.interrupted) == (0, 0)


def test_interrupted_starts_are_told() -> None:
    facts = {"config": {"cold": True, "strategies": [], "seeds": [0]}, "interrupted": {"ranked-0": 2}}
    [shown] = cost(Comparison(Results(SCHEMA.empty_table(), [0]), facts))
    assert str(shown.note).endswith(" Interrupted and continued, all parts added: ranked-0 (2 x).")


def test_blends_are_found_by_what_they_are_made_from(tmp_path: Path) -> None:
    blend = Blend.of("random", 3, ["b", "a"], Cost(1.5, None, 7))
    blend.save(tmp_path, "key")
    assert Blend.load(tmp_path, "random", 3, "key") == blend
    assert Blend.load(tmp_path, "random", 3, "another") is None
    assert Blend.load(tmp_path, "random", 4, "key") is None
    assert Blend.of("ranked", 0, ["b", "a"], Cost()).digest == blend.digest
    assert Blend.of("ranked", 0, ["a", "b"], Cost()).digest != blend.digest

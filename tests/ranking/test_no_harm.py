"""Where agreement cannot be told nobody is pushed out: solutions of maths problems whose last sentence is anyone's."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from benchmarks import real_pool
from nemo_mm_rank import curate, rank
from nemo_mm_rank.measures import average_precision
from nemo_mm_rank.run.curation import Result

pytestmark = pytest.mark.slow

MONEY = "a problem about money, prices and cost"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A clean pool of maths problems and shell commands, ranked by the defaults."""
    if reason := real_pool.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("no-harm")
    rows = [json.loads(line) for line in real_pool.MIXED.read_text(encoding="utf-8").splitlines()]
    maths, shell = ([row for row in rows if row["pool"] == name] for name in ("maths", "shell"))
    lines = [json.dumps(row) + "\n" for row in (*maths[:160], *shell[:120])]
    (folder / "pool.jsonl").write_text("".join(lines), encoding="utf-8")
    pool: dict[str, Any] = {"pools": str(folder / "pool.jsonl"), "projection": {"max_epochs": 5}, "budget": "100%"}
    return curate(config=real_pool.settings(folder / "run", MONEY, **pool), progress=False)


def precision(result: Result) -> float:
    """Average precision of a whole ranking against the maths problems that speak of dollars."""
    frame = result.blend
    spoken = (frame["data"] + " " + frame["annotation"]).str.contains(r"\$|\bdollars?\b", flags=re.IGNORECASE)
    wanted = ((frame["pool"] == "maths") & spoken).to_numpy()
    assert 20 < wanted.sum() < 100
    return average_precision(-np.arange(len(frame), dtype=np.float64), wanted)


def test_a_clean_pool_is_ranked_as_well_as_without_the_condition(run: Result) -> None:
    result = Result(run.folder, run.manifest)
    default = precision(result)
    plain = precision(rank(run.folder, MONEY, ranking={"conditions": {}}, trust_run=True))
    assert default >= plain - 0.02
    assert default > 0.95


def test_no_clean_pair_is_taken_for_wrong(run: Result) -> None:
    chances = run.pairs(["pool", "match_probability"]).groupby("pool")["match_probability"]
    assert chances.apply(lambda values: float((values < 0.9).mean())).max() <= 0.02
    ways = run.manifest["matching"]["text"]
    assert ways["swapped"]["told"] > 0.95  # the whole solution is told from another's
    assert all(way["wrong"] == 0 for way in ways.values())

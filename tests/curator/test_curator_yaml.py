"""`configs/curator_pipeline.yaml` by Curator's own YAML runner, which starts a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from nemo_mm_rank.run.curation import Result

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_alone")
def test_the_yaml_runner(pool: Path, run: Result, tmp_path: Path) -> None:
    config = ["--config-dir", str(ROOT / "configs"), "--config-name", "curator_pipeline"]
    told = [f"pools=[{pool}]", f"run={run.folder}", "output_path=scored"]
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32, "PYTHONPATH": str(ROOT)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "nemo_curator.config.run", *config, *told],
        cwd=tmp_path,
        env={**os.environ, **ray, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pairs = pd.read_parquet(tmp_path / "scored/pairs")
    failed = pd.read_parquet(tmp_path / "scored/failed")
    assert {"words", "agreement_score", "score"} < {*pairs.columns}
    assert pairs["score"].notna().all()
    assert len(pairs) + len(failed) == len(pool.read_text().splitlines())

"""`configs/curator_pipeline.yaml` by Curator's own YAML runner, which starts a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pandas as pd
import psutil
import pytest

from nemo_mm_rank.run.curation import Result

ROOT = Path(__file__).parents[2]
TOKEN = "RAY_AUTH_TOKEN"


@pytest.fixture
def token() -> Iterator[str]:
    """Return a token for a cluster; end what the runner leaves of that."""
    token = uuid4().hex
    yield token
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN) == token:
                process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_alone")
def test_the_yaml_runner(pool: Path, run: Result, tmp_path: Path, token: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as near:  # a path that is short enough for sockets
        # A folder of its own, as what it leaves in the usual one has the next cluster wait for this one.
        client = f"+ray_client={{_target_: nemo_curator.core.client.RayClient, ray_temp_dir: {near}}}"
        config = ["--config-dir", str(ROOT / "configs"), "--config-name", "curator_pipeline", client]
        told = [f"pools=[{pool}]", f"run={run.folder}", "output_path=scored"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [sys.executable, "-m", "nemo_curator.config.run", *config, *told],
            cwd=tmp_path,
            env={**os.environ, "RAY_AUTH_MODE": "token", TOKEN: token, "PYTHONPATH": str(ROOT), "PATH": path},
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

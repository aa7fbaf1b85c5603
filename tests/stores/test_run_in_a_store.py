"""A run in an object store: the same bytes as in a local folder, whatever befalls it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_mm_rank import curate
from tests.integration.runs import OUTCOME, command, many_texts, say, settings
from tests.stores.conftest import BUCKET

URL = f"s3://{BUCKET}/runs/one"
KEY = f"{BUCKET}/runs/one"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = settings(many_texts(tmp_path / "pool" / "pool.jsonl"), tmp_path / "local", shards=12)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def outcome(store: Any, key: str = KEY) -> dict[str, bytes]:
    return {name: store.cat_file(f"{key}/{name}") for name in OUTCOME}


@pytest.fixture
def local(config: Path, tmp_path: Path) -> dict[str, bytes]:
    """What the run leaves in a local folder."""
    curate(config=config, progress=False)
    return {name: (tmp_path / "local" / name).read_bytes() for name in OUTCOME}


def test_the_same_bytes_as_in_a_local_folder(config: Path, local: dict[str, bytes], store: Any) -> None:
    result = curate(config=config, output=URL, progress=False)
    assert outcome(store) == local
    assert result.blend["rank"].tolist() == list(range(1, 13))


def test_a_run_that_was_killed_goes_on(config: Path, local: dict[str, bytes], store: Any) -> None:
    process = subprocess.Popen(
        command("curate", "-c", config, "-o", URL), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not len(store.glob(f"{KEY}/steps/experts-*/part-*")) > 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not store.exists(f"{KEY}/manifest.json")
    done = {name: info["ETag"] for name, info in store.find(f"{KEY}/steps", detail=True).items()}
    again = say("curate", "-c", config, "-o", URL)
    assert again.returncode == 0, again.stderr
    assert outcome(store) == local
    after = store.find(f"{KEY}/steps", detail=True)
    assert done.items() <= {name: info["ETag"] for name, info in after.items()}.items()

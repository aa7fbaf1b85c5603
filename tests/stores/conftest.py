"""An object store on loopback, moto's server in a process of its own, and machines with mirrors of their own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_mm_rank.media.cache import PLACE

BUCKET = "bucket"

KEYS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "hush-hush", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Server:
    """A server that answers as S3 does.

    Attributes:
        address: to reach it at.
        log: the file of its requests.
        files: what it holds, as a file system.
    """

    address: str
    log: Path
    files: Any

    def calls(self, below: str = "") -> Counter[str]:
        """Return how many calls there were by now, by kind: all, or those for keys that have ``below`` in them."""
        lines = re.findall(r'"([A-Z]+) (\S+) HTTP', self.log.read_text(encoding="utf-8"))
        return Counter("LIST" if "list-type" in path else verb for verb, path in lines if below in path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one empty bucket; the environment leads to it."""
    s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    log = tmp_path_factory.mktemp("store") / "requests.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **KEYS},
        )
    with pytest.MonkeyPatch.context() as patch:
        try:
            for _ in range(600):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
                patch.setenv(name, value)
            patch.delenv("AWS_PROFILE", raising=False)
            s3fs.S3FileSystem.clear_instance_cache()
            files = s3fs.S3FileSystem(use_listings_cache=False)
            files.mkdir(BUCKET)
            yield Server(os.environ["AWS_ENDPOINT_URL"], log, files)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to a machine of this name, which has a cache of its own; returns that. The first one is called ``here``."""

    def go(name: str) -> Path:
        monkeypatch.setenv(PLACE, str(tmp_path / name))
        return tmp_path / name

    go("here")
    return go

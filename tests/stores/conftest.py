"""An object store on loopback, moto's server in a process of its own, and folders for mirrors."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_mm_rank.io.mirror import PLACE

BUCKET = "bucket"

KEYS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Server:
    """A server that answers as S3 does.

    Attributes:
        address: to reach it at.
        log: the file of its requests.
    """

    address: str
    log: Path

    def calls(self) -> Counter[str]:
        """Return how many calls there were by now, by kind."""
        lines = re.findall(r'"([A-Z]+) (\S+) HTTP', self.log.read_text(encoding="utf-8"))
        return Counter("LIST" if "list-type" in path else verb for verb, path in lines)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
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
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}", log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system with one empty bucket; this machine's mirrors are in a folder of their own."""
    import s3fs

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.address, PLACE: str(tmp_path / "here")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(use_listings_cache=False)
    system.mkdir(BUCKET)
    yield system
    system.rm(BUCKET, recursive=True)

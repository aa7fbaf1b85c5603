"""The cluster of `--workers`: nobody else on the machine can use it or look into it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nemo_mm_rank.config import EngineSettings
from nemo_mm_rank.errors import UserError

distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")

from nemo_mm_rank.engine.dask import DaskEngine  # noqa: E402 (not where Dask is missing)


def test_a_cluster_of_our_own_is_for_us_alone() -> None:
    before = os.environ.get("PYTHONSAFEPATH")
    engine = DaskEngine.from_settings(EngineSettings(workers=1))
    try:
        address = engine.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert dict(engine.map(abs, [3])) == {3: 3}
        for other, security in (
            (address.replace("tls://", "tcp://"), None),
            (address, None),
            (address, distributed.Security.temporary()),  # somebody else's certificate
        ):
            with pytest.raises((OSError, TypeError)):
                distributed.Client(other, security=security, timeout=2)
        # A plain connection gets no answer, and no pages are served.
        host, port = address.removeprefix("tls://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                plain.recv(100)
        served = engine.client.cluster.scheduler.http_server
        found = [listening.getsockname() for listening in served._sockets.values()]
        ports = engine.client.run(
            lambda dask_worker: [one.getsockname() for one in dask_worker.http_server._sockets.values()]
        )
        found += [place for places in ports.values() for place in places]
        assert len(found) > 1
        assert {where[0] for where in found} <= {"127.0.0.1"}
        for page in ("info/main/workers.html", "status", "json/identity.json", "health"):
            for place in found:
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"http://127.0.0.1:{place[1]}/{page}", timeout=10)
    finally:
        engine.close()
    assert os.environ.get("PYTHONSAFEPATH") == before


def _square(part: int) -> int:
    if part == 999:
        raise UserError("shard 999 is not to be squared")
    return part * part


def test_many_shards_come_in_batches_and_each_comes_back() -> None:
    with distributed.Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
        engine = DaskEngine(client)
        tasks = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
        parts = list(range(0, 990))
        assert dict(engine.map(_square, parts)) == {part: part * part for part in parts}
        tasks = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) - tasks
        assert tasks < 990 * 2  # of several transitions a task
        assert dict(engine.map(_square, [7, 3])) == {7: 49, 3: 9}
        assert dict(engine.map(_square, [])) == {}
        with pytest.raises(UserError, match="shard 999 is not"):
            list(engine.map(_square, range(2000)))


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    rows = [{"modality": "text", "data": f"note {i} on grass", "annotation": f"grass {i}"} for i in range(12)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "script.py").write_text(
        "from nemo_mm_rank import curate\n"
        "settings = {'engine': {'workers': 2}}\n"
        "result = curate('pool.jsonl', 'grass', 3, output='run', config=settings, progress=False)\n"
        "print('chosen', len(result.blend), __file__)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"chosen 3 {tmp_path / 'script.py'}"])
    assert "Traceback" not in done.stderr

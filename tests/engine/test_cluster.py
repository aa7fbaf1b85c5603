"""The cluster of `--workers`: nobody else on the machine can use it or look into it."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request

import pytest

from nemo_mm_rank.config import EngineSettings

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

"""What runs where NeMo Curator 0.9 is installed: ``make test-curator09``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_mm_rank import curate
from nemo_mm_rank.demo import make_demo_pool
from tests.integration.runs import settings


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("pool"), 5)


@pytest.fixture(scope="session")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job on plain steps: what the modules are held against."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return curate(config=settings(pool, folder, shards=3), progress=False).folder


@pytest.fixture(scope="session", params=["two workers", "one thread"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute on a cluster of two workers, or in this thread."""
    import dask
    from nemo_curator.utils.distributed_utils import get_client

    if request.param == "one thread":
        with dask.config.set(scheduler="synchronous"):
            yield
    else:
        with get_client(cluster_type="cpu", n_workers=2, dashboard_address="127.0.0.1:0") as client, client.cluster:
            yield

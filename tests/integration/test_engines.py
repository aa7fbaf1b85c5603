"""What comes out does not depend on where, in how many pieces, or by how many workers it was made: to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import real_pool
from nemo_mm_rank import curate, frames
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.matching import MatchStep
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.ranking.queries import score_step
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ERROR
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step
from tests.integration.faults import make_pools
from tests.integration.runs import digests, settings

PAIRS = 6
"""Of each modality of the real pool: half a second each, once in this process and once on workers."""

distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
dd = pytest.importorskip("dask.dataframe", reason="needs the extra 'dask'")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pools(tmp_path_factory.mktemp("pool") / "pool", 8)[0]


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that all others are held against: one shard, this process."""
    folder = tmp_path_factory.mktemp("whole")
    return curate(config=settings(pool, folder / "run", shards=1, budget=30), progress=False)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A user's own cluster: two processes, two threads each."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("pieces", [{"shards": 7}, {"shards": 50}, {"rows_per_shard": 9}])
def test_in_pieces(pool: Path, whole: Result, tmp_path: Path, pieces: dict[str, int]) -> None:
    result = curate(config=settings(pool, tmp_path / "run", budget=30, **pieces), progress=False)
    parts = len(list((tmp_path / "run" / "pool").glob("part-*.parquet")))
    assert parts == pieces.get("shards", 9)
    assert digests(result.folder) == digests(whole.folder)


@pytest.mark.parametrize(("workers", "shards"), [(1, 7), (2, 50), (3, 7)])
def test_on_workers(pool: Path, whole: Result, tmp_path: Path, workers: int, shards: int) -> None:
    config = settings(pool, tmp_path / "run", budget=30, shards=shards, engine={"workers": workers})
    assert digests(curate(config=config, progress=False).folder) == digests(whole.folder)


def test_on_the_users_own_client(pool: Path, whole: Result, tmp_path: Path, client: Any) -> None:
    result = curate(config=settings(pool, tmp_path / "run", budget=30, shards=7), client=client, progress=False)
    assert digests(result.folder) == digests(whole.folder)
    assert client.submit(sum, [1, 2]).result() == 3  # it is still theirs


def test_on_a_scheduler_at_an_address(
    pool: Path, whole: Result, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where its workers do not stand
    engine = {"scheduler_address": client.scheduler.address}
    config = settings(pool, Path("run"), budget=30, rows_per_shard=4, engine=engine)
    assert digests(curate(config=config, progress=False).folder) == digests(whole.folder)
    assert client.submit(sum, [1, 2]).result() == 3


def steps_of(run: Result) -> list[Step]:
    """The steps of a run, put together by hand."""
    folder = RunFolder(run.folder)
    config = folder.load_config()
    state = State.load(folder)
    models = state.specs(folder)
    fitted = folder.path / state.projection
    return [
        SNSStep(config.sns, config.sns_expert, models, config.media),
        ExpertStep(config.experts, models, config.anchor, config.media),
        ProjectionStep(fitted, list(Projection.load(fitted).sources), config.anchor),
        MatchStep(folder.path / state.matcher, models, config.media),
        score_step(config, models, state.open(folder).columns()),
    ]


def test_steps_by_hand_on_a_collection(whole: Result, client: Any) -> None:
    frame = frames.from_table(read_table(whole.folder / "pool" / "part-00000.parquet"))
    frame.index = pd.Index(range(100, 100 + len(frame)))
    collection = dd.from_pandas(frame, npartitions=5)
    for step in steps_of(whole):
        frame = step(frame)
        collection = collection.map_partitions(step, meta=step.meta(collection._meta))
        assert list(collection.columns) == list(frame.columns)
    computed = client.gather(client.compute(collection))
    assert computed.index.equals(frame.index)
    assert frames.to_table(computed).equals(frames.to_table(frame))
    assert frames.strings(frame, ERROR).count(None) == sum(whole.manifest["counts"]["ranked"].values())
    # The run itself has stored the same.
    folder = RunFolder(whole.folder)
    stored, table = State.load(folder).open(folder).read(0), frames.to_table(frame)
    for name in stored.column_names:
        assert table[name].cast(stored[name].type).equals(stored[name]), name


@pytest.mark.slow
@pytest.mark.skipif(real_pool.missing() is not None, reason=str(real_pool.missing()))
def test_real_pairs_and_models(tmp_path: Path, client: Any) -> None:
    first: dict[str, list[str]] = {}
    for line in real_pool.POOL.read_text(encoding="utf-8").splitlines():
        first.setdefault(json.loads(line)["modality"], []).append(line)
    lines = [line for own in first.values() for line in own[:PAIRS]]
    (tmp_path / "pool.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pools = {"path": str(tmp_path / "pool.jsonl"), "root": str(real_pool.POOL.parent)}
    projection = {"max_epochs": 3, "folds": 2}
    here = real_pool.settings(tmp_path / "here", sns="bidirectional", pools=pools, projection=projection, jsonl=True)
    there = {**here, "output": str(tmp_path / "there"), "shards": 3}
    result = curate(config={**here, "shards": 1}, progress=False)
    assert sum(result.manifest["counts"]["ranked"].values()) == len(lines)
    assert digests(curate(config=there, client=client, progress=False).folder) == digests(result.folder)

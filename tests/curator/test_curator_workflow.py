"""The run's steps on Ray workers: what begins elsewhere, what dies, what the user got wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor

from nemo_mm_rank import curate
from nemo_mm_rank.curator import MultimodalRankWorkflow
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import read_table
from tests.integration.runs import digests, settings
from tests.integration.user_models import expert_of

pytestmark = pytest.mark.usefixtures("ray_alone")

WORD = "Skerra"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and code alone, so that starting workers is all that takes time."""
    pool = make_demo_pool(tmp_path_factory.mktemp("pool"), 12)
    lines = [line for line in pool.read_text(encoding="utf-8").splitlines() if '"text"' in line or '"code"' in line]
    file = pool.with_name("texts.jsonl")
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_run_begun_elsewhere_goes_on_where_a_worker_dies(texts: Path, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    model = {"class": "tests.integration.user_models:KillsItsWorker", "word": WORD, "marker": str(marker)}
    config = settings(texts, tmp_path / "run", shards=4, budget=5, sns={"mode": "off"}, **expert_of(model))
    marker.touch()
    plain = curate(config={**config, "output": str(tmp_path / "plain")}, progress=False)
    curate(config=config, progress=False)
    # As if that had been killed in the middle, and goes on here, where the first worker to see the word dies.
    [experts] = (tmp_path / "run" / "steps").glob("experts-*")
    parts = {part: read_table(tmp_path / "run" / "pool" / f"part-{part:05d}.parquet") for part in range(4)}
    seen = [part for part, rows in parts.items() if any(WORD in text for text in rows["annotation"].to_pylist())]
    kept, *lost = sorted(parts, key=lambda part: (part in seen, part))
    for part in lost:
        (experts / f"part-{part:05d}.parquet").unlink()
    [scores] = (tmp_path / "run" / "steps").glob("rank-*")
    (scores / f"part-{kept:05d}.parquet").unlink()
    before = (experts / f"part-{kept:05d}.parquet").stat().st_mtime_ns
    marker.unlink()

    outcome = MultimodalRankWorkflow(config=config).run(RayActorPoolExecutor(show_progress=False))
    assert marker.exists()
    assert digests(tmp_path / "run") == digests(plain.folder)
    assert (experts / f"part-{kept:05d}.parquet").stat().st_mtime_ns == before
    shards = {name: [task.data for task in tasks] for name, tasks in outcome.pipeline_tasks.items()}
    assert {name: sorted(parts) for name, parts in shards.items()} == {
        "experts": sorted(lost),
        "rank": [kept],
    }


@pytest.mark.slow
def test_a_mistake_of_the_users_is_one_line(texts: Path, tmp_path: Path) -> None:
    model = {"class": "tests.integration.user_models:OutOfMemory", "word": ""}
    config = settings(texts, tmp_path / "run", shards=2, budget=5, sns={"mode": "off"}, **expert_of(model))
    with pytest.raises(UserError, match=r"^OutOfMemory failed with RuntimeError: out of memory"):
        MultimodalRankWorkflow(config=config).run(RayActorPoolExecutor(show_progress=False))
    assert not (tmp_path / "run" / "blend.parquet").exists()


def test_settings_are_checked_before_anything_runs(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quries"):
        MultimodalRankWorkflow(config={"pools": str(texts), "quries": "sea"})
    workflow = MultimodalRankWorkflow(pool=tmp_path / "nowhere.jsonl", query="sea", output=tmp_path / "run")
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        workflow.run()
    assert not (tmp_path / "run").exists()

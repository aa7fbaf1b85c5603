"""cuDF frames through every step equal pandas; a run on LocalCUDACluster equals one in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nemo_mm_rank import curate, frames
from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS, MediaSettings, SNSSettings
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.schema import ERROR, MEDIA_ROOT, SNS_REASON
from nemo_mm_rank.sns.step import SNSStep

if torch.cuda.is_available():
    cudf = pytest.importorskip("cudf", reason="needs RAPIDS: pip install 'nemo-mm-rank[gpu]'")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("demo"), pairs_per_modality=6)


@pytest.fixture(scope="module")
def rows(pool: Path) -> pd.DataFrame:
    frame = pd.read_json(pool, lines=True)
    frame = frame[~frame["pair_id"].duplicated() & (frame["annotation"].str.strip() != "")].reset_index(drop=True)
    return frame.assign(**{MEDIA_ROOT: str(pool.parent)})


def test_vectors_go_in_and_out_on_the_device() -> None:
    values = torch.arange(12, dtype=torch.float32, device="cuda").view(4, 3)
    frame = cudf.DataFrame({"row": range(4)}, index=[3, 2, 1, 0])
    for valid in (torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, False])):
        out = frames.attach(frame, {"v": Vectors(values, valid.cuda())})
        back = frames.vectors(out, "v", "cuda")
        assert back.values.is_cuda
        assert torch.equal(back.valid.cpu(), valid)
        assert torch.equal(back.values.cpu()[valid], values.cpu()[valid])
        assert out.index.to_pandas().tolist() == [3, 2, 1, 0]


def test_arrow_and_cudf_hold_the_same() -> None:
    frame = frames.attach(pd.DataFrame({"a": ["x", None]}), {"v": Vectors.full(torch.eye(2))})
    table = frames.to_table(frame)
    again = frames.to_table(frames.from_table(table, "cudf"))
    assert again.to_pylist() == table.to_pylist()


def test_every_step_on_cudf_equals_pandas(rows: pd.DataFrame) -> None:
    settings = SNSSettings(mode="bidirectional")
    words = CLASSICAL_EXPERTS[0]
    steps: list[Any] = [
        SNSStep(settings, words, CLASSICAL_MODELS, MediaSettings()),
        ExpertStep(CLASSICAL_EXPERTS, CLASSICAL_MODELS, "text"),
    ]
    on_pandas, on_cudf = rows, cudf.DataFrame(rows)
    for step in steps:
        on_pandas, on_cudf = step(on_pandas), step(on_cudf)
    for name in (SNS_REASON, ERROR):
        assert frames.strings(on_cudf, name) == frames.strings(on_pandas, name)
    for name in steps[1].provides:
        ours, theirs = frames.vectors(on_cudf, name), frames.vectors(on_pandas, name)
        assert torch.equal(ours.valid, theirs.valid)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=0)


def test_a_cuda_cluster_gives_the_same_blend(pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_cuda", reason="needs RAPIDS: pip install 'nemo-mm-rank[gpu]'")
    config = {"shards": 3, "projection": {"folds": 2, "max_epochs": 3}, "sns": {"mode": "bidirectional"}}
    query = "natural outdoor scenes"
    here = curate(pool, query, 10, config=config, output=tmp_path / "here", progress=False)
    there = curate(
        pool, query, 10, config={**config, "engine": {"gpus": True}}, output=tmp_path / "there", progress=False
    )
    assert there.blend["pair_id"].tolist() == here.blend["pair_id"].tolist()
    assert (there.blend["score"] - here.blend["score"]).abs().max() < 1e-4
    assert there.quarantine["pair_id"].tolist() == here.quarantine["pair_id"].tolist()

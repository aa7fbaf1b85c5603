"""Models, projection and ranking on the device equal the CPU. Needs no RAPIDS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks import real_pool, weights
from nemo_mm_rank import frames
from nemo_mm_rank.config import ProjectionSettings
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.models.sentence_transformers import SentenceTransformersEncoder
from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.ranking import ScoreStep, Space, top_k
from nemo_mm_rank.sampling import FitSample
from nemo_mm_rank.schema import FUSED, annotation_column, data_column

N, DIM = 600, 32
SETTINGS = ProjectionSettings(hidden=64, max_epochs=5, folds=2, threads=1)


def sample(device: str = "cpu") -> FitSample:
    generator = torch.Generator().manual_seed(0)
    anchors = F.normalize(torch.randn(N, DIM, generator=generator), dim=1)
    image = F.normalize(anchors @ torch.randn(DIM, 48, generator=generator), dim=1)
    text = F.normalize(anchors + 0.3 * torch.randn(N, DIM, generator=generator), dim=1)
    pictures = torch.arange(N) % 2 == 0
    return FitSample(
        sources={
            "emb_data__image": Vectors(image.to(device), pictures.to(device)),
            "emb_data__text": Vectors(text.to(device), (~pictures).to(device)),
        },
        anchors=anchors.to(device),
        modality=["image" if picture else "text" for picture in pictures.tolist()],
        annotations=[f"caption {row}" for row in range(N)],
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projection")
    fit(sample(), SETTINGS, seed=0).save(folder)
    return folder


def test_projection_on_the_device(fitted: Path) -> None:
    here = sample()
    there = {name: Vectors(column.values.cuda(), column.valid.cuda()) for name, column in here.sources.items()}
    on_cpu = Projection.load(fitted).project(here.sources, here.annotations)
    on_gpu = Projection.load(fitted, "cuda").project(there, here.annotations)
    assert on_gpu.values.is_cuda
    torch.testing.assert_close(on_gpu.values.cpu(), on_cpu.values, atol=1e-4, rtol=0)


def test_fit_on_the_device_learns_as_well() -> None:
    on_cpu = fit(sample(), SETTINGS, seed=0).metrics["mean"]["fused"]["recall_at_10"]
    on_gpu = fit(sample(), SETTINGS, seed=0, device="cuda").metrics["mean"]["fused"]["recall_at_10"]
    assert abs(on_cpu - on_gpu) < 0.05


def test_steps_on_the_device(fitted: Path) -> None:
    here = sample()
    frame = frames.attach(
        pd.DataFrame({"annotation": here.annotations}),
        {**here.sources, annotation_column("text"): Vectors.full(here.anchors)},
    )
    queries = F.normalize(torch.randn(2, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    results = {}
    for device in ("cpu", "cuda"):
        project = ProjectionStep(fitted, list(here.sources), "text")
        score = ScoreStep([Space.fused(queries), Space.annotation("text", queries)], [1.0, -0.5])
        project.device = score.device = device
        results[device] = score(project(frame))
    for name in (FUSED,):
        torch.testing.assert_close(
            frames.vectors(results["cuda"], name).values, frames.vectors(results["cpu"], name).values, atol=1e-4, rtol=0
        )
    for name in score.provides:
        np.testing.assert_allclose(results["cuda"][name].to_numpy(), results["cpu"][name].to_numpy(), atol=1e-4)
    assert data_column("image") in results["cuda"].columns


def test_top_k_on_the_device_breaks_ties_alike() -> None:
    scores = torch.randint(0, 50, (10_000,), generator=torch.Generator().manual_seed(0)).float()
    keys = [f"pair-{row:05d}" for row in np.random.default_rng(0).permutation(10_000)]
    assert top_k(scores.cuda(), 700, keys).tolist() == top_k(scores, 700, keys).tolist()


def test_sentence_encoder_on_the_device() -> None:
    if reason := real_pool.missing():
        pytest.skip(reason)
    texts = ["a dog plays in the snow", "def f(x): return x", "x " * 300]
    on_cpu = SentenceTransformersEncoder(weights.minilm()).encode(texts, "text").vectors
    for dtype, close in (("float32", 1e-4), (None, 1e-2)):
        on_gpu = SentenceTransformersEncoder(weights.minilm(), device="cuda", dtype=dtype).encode(texts, "text").vectors
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=close, rtol=0)

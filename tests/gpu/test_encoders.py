"""Encoders on the device: close to the CPU in either type, and within a memory that is too small at first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nemo_mm_rank.models import loader
from nemo_mm_rank.models.batching import Features, FixedRows
from nemo_mm_rank.models.sentence_transformers import SentenceTransformersEncoder
from tests.models import tiny_encoders as tiny

KINDS: dict[str, tuple[Any, str, str, list[Any]]] = {
    "clip": (tiny.clip, "clip", "image", tiny.images()),
    "siglip": (tiny.siglip, "clip", "image", tiny.images()),
    "siglip2": (tiny.siglip2, "clip", "image", tiny.images()),
    "x_clip": (tiny.x_clip, "x-clip", "video", [tiny.video(seed, 4) for seed in range(5)]),
    "clap": (tiny.clap, "clap", "audio", [tiny.sound(seed, seconds) for seed, seconds in enumerate([0.2, 1, 2.5])]),
    "open_clip": (tiny.open_clip, "open-clip", "image", tiny.images()),
}
MIB = 2**20


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    loader.release()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("dtype", "close"), [(None, 1e-2), ("bfloat16", 1e-2), ("float32", 1e-3)])
def test_vectors_are_close_to_the_cpus(kind: str, dtype: str | None, close: float, tmp_path: Path) -> None:
    build, short, modality, items = KINDS[kind]
    path = str(build(tmp_path / kind))
    on_cpu = loader.load("m", short, {"path": path})
    on_gpu = loader.load("m", short, {"path": path, **({"dtype": dtype} if dtype else {})}, "cuda")
    for given, what in ((tiny.TEXTS, "text"), (items, modality)):
        exact, encoded = on_cpu.encode(given, what), on_gpu.encode(given, what)
        assert encoded.vectors.is_cuda
        assert encoded.vectors.dtype == torch.float32
        assert not encoded.errors
        torch.testing.assert_close(encoded.vectors.cpu(), exact.vectors, atol=close, rtol=0)
        alone = torch.cat([on_gpu.encode([one], what).vectors for one in given])
        torch.testing.assert_close(alone, encoded.vectors, atol=close, rtol=0)


def test_a_decoder_is_close_to_the_cpus(tmp_path: Path) -> None:
    path = str(tiny.decoder(tmp_path / "decoder"))
    texts = ["a cat", "dog", "two dogs run in the park", "z" * 60]
    exact = SentenceTransformersEncoder(path).encode(texts, "text").vectors
    for dtype, close in ((None, 1e-2), ("float32", 1e-3)):
        vectors = SentenceTransformersEncoder(path, device="cuda", dtype=dtype).encode(texts, "text").vectors
        torch.testing.assert_close(vectors.cpu(), exact, atol=close, rtol=0)


def wide(batch: Features) -> torch.Tensor:
    """Need 64 MiB for a row on the way to its eight numbers."""
    spread = batch["x"].repeat_interleave(2 * MIB, dim=1)
    return spread.view(len(spread), 8, -1).mean(dim=2)


def asked() -> torch.Tensor:
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(0))


def test_the_probe_finds_what_fits_without_running_out_of_memory() -> None:
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 4096 * MIB, dtype=torch.uint8, device=device)
    before = torch.cuda.memory_stats()["num_ooms"]
    run = FixedRows(device)
    embedded = run(wide, {"x": asked()}, 256)
    assert torch.cuda.memory_stats()["num_ooms"] == before
    assert 8 <= max(run._found.values()) < 64
    del taken
    torch.testing.assert_close(embedded.cpu(), F.normalize(asked(), dim=1), atol=1e-3, rtol=0)


def test_under_a_cap_that_the_probe_does_not_see_the_rows_are_halved() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2048 * MIB) / total)
    try:
        run = FixedRows(device)
        embedded = run(wide, {"x": asked()}, 256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= max(run._found.values()) <= 32
    torch.testing.assert_close(embedded.cpu(), F.normalize(asked(), dim=1), atol=1e-3, rtol=0)

"""The grounder of parts over contrastive models: regions by CLIP, windows by CLAP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nemo_mm_rank.media.segment import Audio, Image
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoder, Grounded
from nemo_mm_rank.models.grounders import PartsGrounder
from tests.models import tiny_encoders as tiny

pytest.importorskip("transformers", reason="needs the extra 'models'")

PHRASES = [["a cat", "a red car"], ["dog"], []]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("build", "short", "media", "items"),
    [
        (tiny.clip, "clip", "image", [tiny.image(1), tiny.image(2, 40, 90), tiny.image(3)]),
        (tiny.clap, "clap", "audio", [tiny.sound(1, 5.0), tiny.sound(2, 1.0), tiny.sound(3, 2.5)]),
    ],
    ids=["clip", "clap"],
)
def test_parts_are_likened_as_the_encoder_does(
    tmp_path: Path, build: Callable[[Path], Path], short: str, media: str, items: list[Image | Audio]
) -> None:
    encoder: Encoder = loader.load(short, short, {"path": str(build(tmp_path / short))})
    grounder = PartsGrounder(encoder, grid=2, window=2.0)
    results = grounder.ground(items, PHRASES, media)
    assert grounder.modalities == encoder.modalities - {"text", "code"}
    for item, own, result in zip(items, PHRASES, results, strict=True):
        assert isinstance(result, Grounded)
        assert not result.found
        parts = encoder.encode([item.part(span) for span in result.spans.tolist()], media).vectors
        assert torch.equal(result.scores, parts @ encoder.encode(own, "text").vectors.T)
        alone = grounder.ground([item], [own], media)[0]
        assert isinstance(alone, Grounded)
        assert torch.equal(alone.scores, result.scores)
    counts = [len(result.spans) for result in results if isinstance(result, Grounded)]
    assert counts == ([5, 5, 5] if media == "image" else [4, 1, 2])

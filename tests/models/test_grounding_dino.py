from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Image
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded, Grounder, fulfil
from nemo_mm_rank.models.grounders import GroundingDinoGrounder
from tests.models import tiny_writers
from tests.models.tiny_detector import LONGEST, grounding_dino

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

RANDOM = np.random.default_rng(0)


def picture(width: int, height: int) -> Image:
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(f"{pixels.sum()}", PILImage.fromarray(pixels))


ITEMS = [picture(96, 64), picture(64, 96), picture(96, 64), picture(80, 64), picture(96, 64)]
PHRASES = [["a cat", "a remote control"], ["dog"], ["car", "a dog"], ["a cat", "dog", "car"], ["remote", "dog"]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grounding_dino(tmp_path_factory.mktemp("dino"))


def grounder(folder: Path, **changes: Any) -> GroundingDinoGrounder:
    loaded: GroundingDinoGrounder = loader.load("boxes", "grounding-dino", {"path": str(folder), **changes})
    return loaded


def ok(result: object) -> Grounded:
    assert isinstance(result, Grounded), result
    return result


def same(one: object, other: object) -> bool:
    a, b = ok(one), ok(other)
    return all(x.numpy().tobytes() == y.numpy().tobytes() for x, y in ((a.spans, b.spans), (a.scores, b.scores)))


def test_boxes_and_scores_are_those_of_the_library(folder: Path) -> None:
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(folder)
    processor = transformers.GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=ITEMS[0].pixels, text="a cat. a remote control.", return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    found = processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold=0.0, target_sizes=[(64, 96)]
    )[0]
    corners = found["boxes"]
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words == ["[CLS]", "a", "cat", ".", "a", "remote", "control", ".", "[SEP]"]
    probability = output.logits[0].sigmoid()
    expected = torch.stack([probability[:, 1:3].amax(dim=1), probability[:, 4:7].amax(dim=1)], dim=1)

    result = ok(grounder(folder, threshold=0.0).ground(ITEMS[:1], PHRASES[:1], "image")[0])
    assert result.found
    assert result.spans.shape == (10, 4)
    assert torch.allclose(result.spans[:, :2], corners[:, :2].double(), atol=1e-3)
    assert torch.allclose(result.spans[:, :2] + result.spans[:, 2:], corners[:, 2:].double(), atol=1e-3)
    assert torch.allclose(result.scores, expected, atol=1e-5)
    assert len({round(float(score), 4) for score in expected.flatten()}) > 10

    least = float(expected.amax(dim=1).median())
    strict = ok(grounder(folder, threshold=least - 1e-6).ground(ITEMS[:1], PHRASES[:1], "image")[0])
    kept = result.scores.amax(dim=1) >= least - 1e-6
    assert 0 < int(kept.sum()) < 10
    assert torch.equal(strict.spans, result.spans[kept])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_boxes_are_the_same_in_any_company(folder: Path, batch_size: int) -> None:
    asked = grounder(folder, threshold=0.0, batch_size=batch_size)
    together = asked.ground(ITEMS, PHRASES, "image")
    assert all(map(same, asked.ground(ITEMS[::-1], PHRASES[::-1], "image")[::-1], together))
    for item, own, result in zip(ITEMS, PHRASES, together, strict=True):
        assert same(asked.ground([item], [own], "image")[0], result)
        assert ok(result).scores.shape == (10, len(own))


def test_pictures_of_one_shape_go_through_together(folder: Path) -> None:
    asked = grounder(folder, batch_size=3)
    shapes: list[tuple[int, ...]] = []
    hook = asked._model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["pixel_values"].shape)), with_kwargs=True
    )
    asked.ground(ITEMS, [["dog"]] * 5, "image")
    hook.remove()
    assert sorted(shape[0] for shape in shapes) == [3, 3, 3]
    assert len(set(shapes)) == 3


def test_more_phrases_than_the_model_reads_take_more_passes(folder: Path) -> None:
    many = ["a cat", "dog", "a remote control", "car"] * 4
    asked = grounder(folder, threshold=0.0)
    result = ok(asked.ground(ITEMS[:1], [many], "image")[0])
    assert LONGEST == 32
    assert result.spans.shape == (20, 4)
    assert result.scores.shape == (20, 16)
    there = ~result.scores.isnan()
    assert there.sum(dim=0).tolist() == [10] * 16
    first = int(there[0].sum())
    assert there[:10, :first].all()
    assert there[10:, first:].all()
    alone = ok(asked.ground(ITEMS[:1], [many[:first]], "image")[0])
    assert torch.equal(alone.scores, result.scores[:10, :first])


def test_a_phrase_is_one_phrase_whatever_it_holds(folder: Path) -> None:
    asked = grounder(folder, threshold=0.0)
    plain = ok(asked.ground(ITEMS[:1], [["a cat dog", "car"]], "image")[0])
    marked = ok(asked.ground(ITEMS[:1], [["A cat. Dog? [SEP]", "car."]], "image")[0])
    assert torch.equal(plain.scores, marked.scores)
    unknown = ok(asked.ground(ITEMS[:1], [["a cat dog", "\N{DOG FACE}", "car"]], "image")[0])
    assert unknown.scores[:, 1].isnan().all()
    assert torch.equal(unknown.scores[:, [0, 2]], plain.scores)
    long = ok(asked.ground(ITEMS[:1], [["cat " * 90, "dog"]], "image")[0])
    assert long.scores.shape == (20, 2)
    for nothing in ([], ["..."], ["\N{DOG FACE}"]):
        empty = ok(asked.ground(ITEMS[:1], [nothing], "image")[0])
        assert empty.spans.shape == (0, 4)
        assert empty.scores.shape == (0, len(nothing))


def test_a_picture_that_cannot_be_shown_fails_alone(folder: Path) -> None:
    asked = grounder(folder, threshold=0.0)
    thin = Image("thin", PILImage.new("RGB", (900, 2)))
    results = asked.ground([ITEMS[0], thin, ITEMS[1]], [PHRASES[0], ["dog"], PHRASES[1]], "image")
    assert isinstance(results[1], EmbeddingError)
    assert same(results[0], asked.ground(ITEMS[:1], PHRASES[:1], "image")[0])
    assert same(results[2], asked.ground(ITEMS[1:2], PHRASES[1:2], "image")[0])


def test_what_cannot_ground_is_refused(folder: Path, tmp_path: Path) -> None:
    fulfil("boxes", grounder(folder), Grounder)
    assert grounder(folder).ground([], [], "image") == []
    with pytest.raises(ModelError, match="takes image, not audio"):
        grounder(folder).ground([], [], "audio")
    with pytest.raises(ModelError, match="batch_size must be at least 1, not 0"):
        grounder(folder, batch_size=0)
    with pytest.raises(ModelError, match="LlavaProcessor is not Grounding DINO's"):
        grounder(tiny_writers.llava(tmp_path / "other"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle"):
        grounder(tmp_path)

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Item, Video
from nemo_mm_rank.models.base import Encoded, Grounded, Grounder, fulfil
from nemo_mm_rank.models.classical.describe import PlainWords
from nemo_mm_rank.models.classical.text import HashedText
from nemo_mm_rank.models.expert import DescribedEncoder
from nemo_mm_rank.models.grounders import PartsGrounder, regions, windows
from tests.models.own_models import LetterCounts

RATE = 8_000
WORDS = DescribedEncoder({m: PlainWords() for m in ("image", "audio", "video")}, HashedText())


class Means:
    """Embeds the words for primary colours, and pictures by their mean colour; black has no direction."""

    name, revision, dim = "means", "1", 3
    modalities: frozenset[str] = frozenset({"text", "image"})

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        self.calls.append((modality, len(items)))
        if modality == "text":
            rows = [[float(item == colour) for colour in ("red", "green", "blue")] for item in items]
        else:
            rows = [np.asarray(item.pixels).mean(axis=(0, 1)).tolist() for item in items]  # type: ignore[union-attr]
        return Encoded(F.normalize(torch.tensor(rows, dtype=torch.float32).reshape(-1, 3), dim=1))


def planted(colour: str, box: tuple[int, int, int, int], background: str = "grey") -> Image:
    picture = PILImage.new("RGB", (90, 60), background)
    picture.paste(PILImage.new("RGB", (box[2], box[3]), colour), (box[0], box[1]))
    return Image(f"{colour} {box} {background}", picture)


def ok(result: object) -> Grounded:
    assert isinstance(result, Grounded), result
    return result


@pytest.mark.parametrize(("encoder", "prefix"), [(Means(), ""), (WORDS, "colourful picture, mostly ")])
def test_a_planted_square_is_found(encoder: Means | DescribedEncoder, prefix: str) -> None:
    phrases = [[prefix + colour for colour in colours] for colours in (["red"], ["blue", "red"], ["red"])]
    items = [planted("red", (60, 40, 30, 20)), planted("blue", (0, 20, 30, 20)), planted("red", (30, 0, 60, 40))]
    results = PartsGrounder(encoder).ground(items, phrases, "image")
    best = [ok(result).spans[ok(result).scores[:, 0].argmax()].tolist() for result in results]
    assert best[:2] == [[60, 40, 30, 20], [0, 20, 30, 20]]
    assert best[2][0] >= 30
    assert best[2][1] + best[2][3] <= 40
    assert ok(results[1]).scores.shape == (14, 2)


def test_a_planted_tone_is_found() -> None:
    time = np.arange(10 * RATE) / RATE
    samples = np.where((time >= 6) & (time < 8), 0.3 * np.sin(2 * np.pi * 3000 * time), 0).astype(np.float32)
    recording = Audio("a", samples, RATE, start=5.0)
    result = ok(PartsGrounder(WORDS).ground([recording], [["high-pitched sound"]], "audio")[0])
    assert result.spans.tolist() == [[5.0 + second, 7.0 + second] for second in range(9)]
    assert result.spans[result.scores[:, 0].argmax()].tolist() == [11.0, 13.0]


def test_a_planted_scene_is_found() -> None:
    frames = np.full((8, 30, 40, 3), 200, dtype=np.uint8)
    frames[6:] = (20, 140, 40)
    video = Video("v", frames, np.arange(0.5, 8.0), 8.0)
    result = ok(PartsGrounder(WORDS).ground([video], [["green grass"]], "video")[0])
    assert result.spans[result.scores[:, 0].argmax()].tolist() == [6.0, 8.0]


def test_all_parts_go_in_one_call_and_each_phrase_once() -> None:
    encoder = Means()
    items = [planted("red", (0, 0, 9, 9))] * 5
    PartsGrounder(encoder, grid=2).ground(items, [["red", "blue"], ["blue"], [], ["red"], ["red", "red"]], "image")
    assert sorted(encoder.calls) == [("image", 25), ("text", 2)]


def test_many_parts_are_cut_into_bounded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [planted("red", (0, 0, 9 + i, 9)) for i in range(4)]
    whole = PartsGrounder(Means()).ground(items, [["red"]] * 4, "image")
    monkeypatch.setattr("nemo_mm_rank.models.grounders.PARTS_AT_ONCE", 10)
    encoder = Means()
    cut = PartsGrounder(encoder).ground(items, [["red"]] * 4, "image")
    assert sorted(encoder.calls) == [("image", 6)] + [("image", 10)] * 5 + [("text", 1)]
    monkeypatch.setattr("nemo_mm_rank.models.grounders.BYTES_AT_ONCE", 1)
    encoder = Means()
    PartsGrounder(encoder).ground(items, [["red"]] * 4, "image")
    assert encoder.calls.count(("image", 1)) == 56
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(ok(one).scores, ok(other).scores)


def test_the_scores_of_an_item_do_not_depend_on_the_others() -> None:
    items = [planted("red", (i, 0, 20, 20)) for i in range(6)]
    phrases = [["red"], ["grey picture", "red"], ["blue"], ["busy"], ["red top"], ["x"]]
    grounder = PartsGrounder(WORDS)
    together = grounder.ground(items, phrases, "image")
    for item, own, result in zip(items, phrases, together, strict=True):
        alone = ok(grounder.ground([item], [own], "image")[0])
        assert alone.scores.numpy().tobytes() == ok(result).scores.numpy().tobytes()


class OddSpace:
    """A space whose vectors cannot all begin at a round address."""

    name, revision, dim = "odd", "1", 257
    modalities: frozenset[str] = frozenset({"text", "image"})

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        rows = torch.empty((len(items), self.dim))
        for row, item in enumerate(items):
            key = item if isinstance(item, str) else item.key
            rows[row] = torch.randn(self.dim, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        return Encoded(F.normalize(rows, dim=1))


def test_nor_on_where_the_others_put_it_in_memory() -> None:
    items = [planted("red", (i, 0, 20, 20)) for i in range(6)]
    phrases = [["red", "green", "blue"][: 1 + i % 3] for i in range(6)]
    together = PartsGrounder(OddSpace()).ground(items, phrases, "image")
    for item, own, result in zip(items, phrases, together, strict=True):
        alone = ok(PartsGrounder(OddSpace()).ground([item], [own], "image")[0])
        assert alone.scores.numpy().tobytes() == ok(result).scores.numpy().tobytes()


def test_a_part_or_phrase_without_an_embedding_has_nan_and_nothing_but_those_fails() -> None:
    items = [planted("red", (0, 0, 45, 60), "black"), planted("black", (0, 0, 1, 1), "black")]
    half, dark = PartsGrounder(Means(), grid=2).ground(items, [["red", "of no colour"], ["red"]], "image")
    scores = ok(half).scores
    assert scores[:, 1].isnan().all()
    assert scores[:, 0].isnan().tolist() == [False, True, False, True, False]
    assert isinstance(dark, EmbeddingError)
    only_unknown = PartsGrounder(Means()).ground(items[:1], [["of no colour"]], "image")[0]
    assert isinstance(only_unknown, EmbeddingError)
    assert ok(PartsGrounder(Means()).ground(items[:1], [[]], "image")[0]).scores.shape == (14, 0)


def test_what_cannot_ground_is_refused() -> None:
    with pytest.raises(ModelError, match="takes no media"):
        PartsGrounder(LetterCounts())
    with pytest.raises(ModelError, match="not audio"):
        PartsGrounder(Means()).ground([], [], "audio")
    with pytest.raises(ModelError, match="not text"):
        PartsGrounder(Means()).ground(["x"], [["red"]], "image")
    assert PartsGrounder(Means()).ground([], [], "image") == []
    fulfil("parts", PartsGrounder(Means()), Grounder)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 6))
def test_regions_lie_inside_and_cover(width: int, height: int, grid: int) -> None:
    boxes = list(regions(width, height, grid))
    assert len(set(boxes)) == len(boxes) <= grid * (grid + 1) * (2 * grid + 1) // 6
    assert (0.0, 0.0, float(width), float(height)) in boxes
    for x, y, w, h in boxes:
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
    if min(width, height) >= grid:
        assert sum(w * h for _, _, w, h in boxes[: grid * grid]) == width * height


@given(st.floats(0, 1e4), st.floats(1e-3, 5e3), st.floats(0.1, 30), st.integers(1, 80))
@example(0.1, 0.3576, 0.3576, 2)  # longer than a window by no more than a rounding error
def test_windows_cover_and_end_with_the_recording(start: float, duration: float, length: float, most: int) -> None:
    end = start + duration
    found = list(windows(start, end, length, most))
    assert 1 <= len(found) <= most
    assert found[0][0] == start
    assert found[-1][1] == end
    sizes = [b - a for a, b in found]
    assert max(sizes) - min(sizes) < 1e-6
    assert sizes[0] >= min(length, duration) - 1e-6
    for (a, b), (c, d) in pairwise(found):
        assert a < c <= (a + b) / 2 + 1e-6
        assert b < d


def test_windows_by_hand() -> None:
    assert list(windows(0, 5, 2, 64)) == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert list(windows(0, 4.5, 2, 64)) == [(0, 2), (1, 3), (2, 4), (2.5, 4.5)]
    assert list(windows(1, 2.5, 2, 64)) == [(1, 2.5)]
    assert len(list(windows(0, 3600, 2, 64))) == 64
    assert math.isclose(next(iter(windows(0, 3600, 2, 64)))[1], 7200 / 65)

"""How many media are held at a time changes nothing of the result, to the bit; and what is cut is embedded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS, SNSSettings
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Encoded, Encoder
from nemo_mm_rank.models.expert import build
from nemo_mm_rank.models.grounders import PartsGrounder
from nemo_mm_rank.sns import trimming
from nemo_mm_rank.sns.sides import Selector, Side
from nemo_mm_rank.sns.trimming import media_side

PAIRS = 9
SETTINGS = SNSSettings(mode="bidirectional", temperature=0.02, nucleus=0.5)
PHRASES = {"image": ["a yellow sun", "the sky"], "audio": ["a loud siren"], "video": ["green grass"]}


class Counting:
    """An encoder, and what it was called with.

    Attributes:
        calls: modality and number of items of each call.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.name, self.revision, self.dim = encoder.name, encoder.revision, encoder.dim
        self.modalities = encoder.modalities
        self.calls: list[tuple[str, int]] = []

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        self.calls.append((modality, len(items)))
        return self._encoder.encode(items, modality)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_pool(tmp_path_factory.mktemp("demo"), PAIRS).parent


def side(demo: Path, modality: str, encoder: Encoder, at_once: int = 1) -> Side:
    opener = Opener()
    suffix = {"image": "jpg", "audio": "wav", "video": "mp4"}[modality]

    def decoded() -> Iterator[Any]:
        for number in range(PAIRS):
            yield opener.open(f"{modality}/{modality}-{number:03d}.{suffix}", modality=modality, root=str(demo))

    phrases, grounder = [PHRASES[modality]] * PAIRS, PartsGrounder(encoder, 2, 1.0)
    return media_side(decoded(), phrases, modality, encoder, grounder, Selector(SETTINGS, 0.35), at_once)


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_the_size_of_chunks_changes_no_span_and_no_vector(
    demo: Path, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build(CLASSICAL_EXPERTS[0], CLASSICAL_MODELS).encoder(modality)
    assert encoder is not None
    usual = side(demo, modality, encoder)
    assert sum(cut.spans is not None for cut in usual.cuts) > 1
    for items, weight, at_once in ((1, 2**30, 1), (4, 2**30, 2), (2**30, 1, 3)):
        monkeypatch.setattr(trimming, "CHUNK_ITEMS", items)
        monkeypatch.setattr(trimming, "CHUNK_BYTES", weight)
        other = side(demo, modality, encoder, at_once)
        assert other.cuts == usual.cuts
        for name in ("whole", "trimmed"):
            np.testing.assert_array_equal(getattr(other, name), getattr(usual, name))
        assert other.errors == usual.errors == {}


def test_what_is_cut_in_several_chunks_is_embedded_in_one_call(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(CLASSICAL_EXPERTS[0], CLASSICAL_MODELS).encoder("image")
    assert encoder is not None
    counting = Counting(encoder)
    cut = sum(one.spans is not None for one in side(demo, "image", counting).cuts)
    assert counting.calls[0] == ("image", PAIRS)
    assert counting.calls[-1] == ("image", cut)
    monkeypatch.setattr(trimming, "in_chunks", _threes)
    counting.calls.clear()
    assert sum(one.spans is not None for one in side(demo, "image", counting).cuts) == cut
    wholes = [call for call in counting.calls if call == ("image", 3)]
    assert len(wholes) == PAIRS // 3
    assert counting.calls[-1] == ("image", cut)


class Patient:
    """An encoder that does not come back from the first call with three pictures before the second has come."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.name, self.revision, self.dim = encoder.name, encoder.revision, encoder.dim
        self.modalities = encoder.modalities
        self._calls, self._second = count(), Event()

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        if modality == "image" and len(items) == 3:
            if next(self._calls):
                self._second.set()
            assert self._second.wait(60)
        return self._encoder.encode(items, modality)


def test_the_next_media_are_looked_at_while_a_model_is_at_work_on_these(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build(CLASSICAL_EXPERTS[0], CLASSICAL_MODELS).encoder("image")
    assert encoder is not None
    usual = side(demo, "image", encoder)
    monkeypatch.setattr(trimming, "in_chunks", _threes)
    other = side(demo, "image", Patient(encoder), at_once=2)
    assert other.cuts == usual.cuts
    np.testing.assert_array_equal(other.trimmed, usual.trimmed)


def _threes(decoded: Any, *_: Any) -> Iterator[tuple[list[int], list[Item]]]:
    pairs = list(decoded)
    for start in range(0, len(pairs), 3):
        rows, items = zip(*pairs[start : start + 3], strict=True)
        yield list(rows), list(items)

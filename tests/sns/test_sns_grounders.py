from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank.config import CLASSICAL_MODELS, Config, ModelSpec, SNSSettings, parse
from nemo_mm_rank.errors import ConfigError, EmbeddingError, ModelError, PairError
from nemo_mm_rank.media.segment import Audio, Image, Item
from nemo_mm_rank.models.base import Grounded
from nemo_mm_rank.sns.step import SNSStep
from tests.sns.test_sns_step import EXPERT, MODELS, trim


class ColourDetector:
    """Finds the box round each colour that a phrase names, if it covers less than all."""

    name = "colours"
    revision = "1"
    modalities = frozenset({"image"})

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        return [self._find(item, own) for item, own in zip(items, phrases, strict=True)]

    def _find(self, item: Item, phrases: Sequence[str]) -> Grounded | PairError:
        assert isinstance(item, Image)
        pixels = np.asarray(item.pixels)
        if "broken" in phrases:
            return EmbeddingError("broken")
        boxes: list[list[float]] = [[0, 0, *item.pixels.size]] if self.whole else []
        for channel, colour in enumerate(("red", "green", "blue")):
            rows, columns = np.nonzero((pixels.argmax(axis=-1) == channel) & (pixels.max(axis=-1) > 200))
            if any(colour in phrase for phrase in phrases) and len(rows):
                x, y = columns.min(), rows.min()
                boxes.append([x, y, columns.max() + 1 - x, rows.max() + 1 - y])
        scores = torch.full((len(boxes), len(phrases)), 0.5)
        return Grounded(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), scores, found=True)


class LoudMoments:
    """Finds the seconds that are loud."""

    name = "loud"
    revision = "1"
    modalities = frozenset({"audio"})

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        results: list[Grounded | PairError] = []
        for item, own in zip(items, phrases, strict=True):
            assert isinstance(item, Audio)
            loud = [s for s in range(int(item.duration)) if np.abs(item.part([s, s + 1]).samples).max() > 0.1]
            spans = torch.tensor([[s, s + 1.0] for s in loud], dtype=torch.float64).reshape(-1, 2)
            results.append(Grounded(spans, torch.ones((len(loud), len(own))), found=True))
        return results


OWN = {
    "boxes": ModelSpec.model_validate({"class": f"{__name__}:ColourDetector"}),
    "whole": ModelSpec.model_validate({"class": f"{__name__}:ColourDetector", "whole": True}),
    "loud": ModelSpec.model_validate({"class": f"{__name__}:LoudMoments"}),
}


def step(grounders: dict[str, str], **settings: Any) -> SNSStep:
    chosen = {"mode": "forward", "padding": 0, "grounders": grounders, **settings}
    return SNSStep(SNSSettings.model_validate(chosen), EXPERT, {**MODELS, **OWN})


def painted(path: Path, *patches: tuple[str, tuple[int, int, int, int]]) -> str:
    picture = PILImage.new("RGB", (90, 60), "black")
    for colour, (x, y, w, h) in patches:
        picture.paste(PILImage.new("RGB", (w, h), colour), (x, y))
    picture.save(path)
    return path.name


def test_boxes_are_kept_as_found(tmp_path: Path) -> None:
    one = painted(tmp_path / "one.png", ("red", (60, 40, 10, 9)))
    two = painted(tmp_path / "two.png", ("red", (60, 40, 10, 9)), ("blue", (50, 30, 8, 7)))
    pairs = [("image", one, "red"), ("image", two, "red"), ("image", two, "red and blue"), ("image", one, "blue")]
    rows = trim(step({"image": "boxes"}), *pairs, root=tmp_path)
    assert [row["sns_data_spans"] for row in rows] == [
        [[60, 40, 10, 9]],
        [[60, 40, 10, 9]],
        [[50, 30, 20, 19]],
        None,
    ]
    assert [row["sns_reason"] for row in rows] == [
        "forward: kept 1 region",
        "forward: kept 1 region",
        "forward: kept 2 regions",
        "untrimmed: no segment is relevant",
    ]
    assert [row["error"] for row in rows] == [None] * 4


def test_what_fills_the_picture_or_fails_cuts_nothing(tmp_path: Path) -> None:
    name = painted(tmp_path / "one.png", ("red", (60, 40, 10, 9)))
    (row,) = trim(step({"image": "whole"}), ("image", name, "red"), root=tmp_path)
    assert (row["sns_data_spans"], row["sns_reason"]) == (None, "untrimmed: every segment is relevant")
    (row,) = trim(step({"image": "boxes"}), ("image", name, "broken, red"), root=tmp_path)
    assert (row["sns_data_spans"], row["sns_reason"]) == (None, "untrimmed: EmbeddingError: broken")
    assert row["error"] is None


def test_moments_are_kept_as_found(tmp_path: Path) -> None:
    import wave

    samples = np.zeros(8 * 16_000, dtype="<i2")
    samples[3 * 16_000 : 5 * 16_000 : 40] = 9_000
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    (row,) = trim(step({"audio": "loud"}), ("audio", "tone.wav", "a tone"), root=tmp_path)
    assert row["sns_data_spans"] == [[3, 5]]
    assert row["sns_reason"] == "forward: kept 2 windows"


def test_a_grounder_is_part_of_the_step(tmp_path: Path) -> None:
    name = painted(tmp_path / "one.png", ("red", (60, 40, 10, 9)))
    with_boxes, without = step({"image": "boxes"}), step({})
    assert with_boxes.identity()["models"].keys() == {"sense", "boxes"}
    assert with_boxes.identity() != without.identity()
    before = trim(with_boxes, ("image", name, "red"), root=tmp_path)
    assert trim(pickle.loads(pickle.dumps(with_boxes)), ("image", name, "red"), root=tmp_path) == before
    other = trim(without, ("image", name, "red"), root=tmp_path)
    assert other[0]["sns_data_spans"] != before[0]["sns_data_spans"] == [[60, 40, 10, 9]]


def test_what_cannot_ground_is_refused(tmp_path: Path) -> None:
    base = {"pools": "p.jsonl", "queries": "q"}
    models = {**CLASSICAL_MODELS, "boxes": {"class": "x:Y"}}
    with pytest.raises(ConfigError, match=r"sns.grounders: there is no model 'boxs'; did you mean 'boxes'"):
        parse(Config, {**base, "models": models, "sns": {"grounders": {"image": "boxs"}}})
    with pytest.raises(ConfigError, match="'text' is divided into its sentences"):
        parse(Config, {**base, "sns": {"grounders": {"text": "text"}}})
    with pytest.raises(ModelError, match="loud takes audio, not image"):
        step({"image": "loud"}).setup()
    with pytest.raises(ModelError, match="cannot be used as grounder: it lacks"):
        step({"image": "sense"}).setup()


def test_grounding_dino_by_configuration(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    from tests.models.tiny_detector import grounding_dino

    name = painted(tmp_path / "one.png", ("red", (60, 40, 10, 9)))
    folder = grounding_dino(tmp_path / "dino")
    spec = ModelSpec.model_validate({"class": "grounding-dino", "path": str(folder), "threshold": 1.0})
    sns = SNSStep(
        SNSSettings.model_validate({"mode": "forward", "grounders": {"image": "dino"}}),
        EXPERT,
        {**MODELS, "dino": spec},
    )
    (row,) = trim(sns, ("image", name, "a red car"), root=tmp_path)
    assert (row["sns_reason"], row["error"]) == ("untrimmed: no segment is relevant", None)
    assert len(sns.identity()["models"]["dino"]["revision"]) == 40

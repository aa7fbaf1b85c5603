"""How pictures look: equal to CleanVision to 1e-10, and what the scores are of pictures that are plain to judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageFilter

from nemo_mm_rank.media.segment import Image, Video
from nemo_mm_rank.quality.operators import ImageScores, column
from nemo_mm_rank.quality.operators.images import dark_and_light, image_scores
from nemo_mm_rank.quality.operators.settings import IMAGE_SCORES, ImageScore
from nemo_mm_rank.schema import Modality

POOL = Path(__file__).parents[4] / "shared" / "data" / "real_pool"
RANDOM = np.random.default_rng(5)


def noise(width: int, height: int) -> PILImage.Image:
    return PILImage.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(width: int, height: int) -> PILImage.Image:
    ramp = np.add.outer(np.arange(height) * 90 // height, np.arange(width) * 160 // width).astype(np.uint8)
    return PILImage.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], axis=2))


MADE = {
    "one pixel": PILImage.new("RGB", (1, 1), (3, 200, 90)),
    "two pixels": noise(2, 1),
    "a line": noise(900, 1),
    "flat": PILImage.new("RGB", (70, 50), (10, 20, 30)),
    "white": PILImage.new("RGB", (65, 64), "white"),
    "black": PILImage.new("RGB", (64, 64)),
    "small": noise(63, 12),
    "square": noise(64, 64),
    "long": noise(31, 650),
    "large": gradient(801, 333),
    "grey": gradient(100, 80).convert("L"),
}


def pictures() -> Iterator[PILImage.Image]:
    yield from MADE.values()
    for path in sorted((POOL / "image").rglob("*.jpg"))[::45]:
        yield PILImage.open(path).convert("RGB")


def test_equal_to_cleanvision() -> None:
    properties = pytest.importorskip("cleanvision.issue_managers.image_property", reason="needs the extra 'dev'")
    import pandas as pd

    parameters: dict[ImageScore, tuple[Any, dict[str, float]]] = {
        "blurry": (properties.BlurrinessProperty(), {"normalizing_factor": 0.01, "color_threshold": 0.18}),
        "dark": (properties.BrightnessProperty("dark"), {}),
        "light": (properties.BrightnessProperty("light"), {}),
        "low_information": (properties.EntropyProperty(), {"normalizing_factor": 0.1}),
        "geometric": (properties.AspectRatioProperty(), {}),
    }
    looked = list(pictures())
    ours = np.array([image_scores(picture, list(parameters)) for picture in looked])
    for place, (name, (judge, arguments)) in enumerate(parameters.items()):
        raw = pd.DataFrame([judge.calculate(picture) for picture in looked])
        theirs = judge.get_scores(raw, "odd_aspect_ratio" if name == "geometric" else name, **arguments).to_numpy()
        np.testing.assert_allclose(ours[:, place], theirs[:, 0], rtol=0, atol=1e-10, err_msg=name)


def test_defaults_are_cleanvisions() -> None:
    manager = pytest.importorskip(
        "cleanvision.issue_managers.image_property_issue_manager", reason="needs the extra 'dev'"
    )
    found = manager.ImagePropertyIssueManager().get_default_params()
    assert found["blurry"]["normalizing_factor"] == 0.01
    assert found["blurry"]["color_threshold"] == 0.18
    assert found["low_information"]["normalizing_factor"] == 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 7), (20, 20), (101, 1), (640, 480)])
def test_percentiles_are_numpys(size: tuple[int, int]) -> None:
    picture = noise(*size)
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.float64), 2, 0)
    brightness = np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) / 255
    dark, light = np.percentile(brightness, [99, 5])
    assert dark_and_light(picture) == pytest.approx((dark, 1 - light), abs=1e-14)


def test_better_pictures_score_higher() -> None:
    sharp = noise(8, 8).resize((400, 400), PILImage.Resampling.NEAREST)
    softened, dim = sharp.filter(ImageFilter.GaussianBlur(10)), sharp.point(lambda value: value // 8)
    scores = {
        name: dict(zip(IMAGE_SCORES, image_scores(one, IMAGE_SCORES), strict=True))
        for name, one in {"sharp": sharp, "soft": softened, "dim": dim, "long": noise(900, 90)}.items()
    }
    assert scores["sharp"]["blurry"] > scores["soft"]["blurry"]
    assert scores["sharp"]["dark"] > scores["dim"]["dark"]
    assert scores["dim"]["light"] > scores["sharp"]["light"]
    assert scores["sharp"]["low_information"] > scores["dim"]["low_information"]
    assert scores["long"]["geometric"] == 0.1
    assert scores["long"]["resolution"] == 90


def test_a_video_has_the_mean_over_its_frames_and_no_resolution() -> None:
    frames = np.stack([np.asarray(noise(48, 32)), np.asarray(gradient(48, 32)), np.zeros((32, 48, 3), np.uint8)])
    video = Video("v", frames, np.arange(3.0), 3.0)
    judged = ImageScores(IMAGE_SCORES).judge([video], ["a film"], Modality.VIDEO).columns
    means = np.mean([image_scores(PILImage.fromarray(frame), IMAGE_SCORES) for frame in frames], axis=0)
    for name, mean in zip(IMAGE_SCORES, means, strict=True):
        expected = None if name == "resolution" else float(np.float32(mean))
        assert judged[column(name)].to_pylist() == [expected], name


def test_scores_come_in_the_order_of_the_items_from_any_number_of_threads() -> None:
    items = [Image(str(row), noise(10 + row, 30)) for row in range(20)]
    one, four = (
        ImageScores(["resolution", "blurry"], threads).judge(items, [""] * 20, Modality.IMAGE).columns
        for threads in (1, 4)
    )
    assert one[column("resolution")].to_pylist() == [float(10 + row) for row in range(20)]
    assert one[column("blurry")].equals(four[column("blurry")])

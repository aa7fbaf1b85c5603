from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models.classical.describe import EXAMPLES, NAMES, PlainWords, lab, name_colours

RATE = 16_000
RNG = np.random.default_rng(0)


def landscape() -> PILImage.Image:
    picture = PILImage.new("RGB", (120, 90), (80, 130, 220))
    picture.paste((60, 130, 45), (0, 50, 120, 90))
    return picture


def words(item: Image | Audio | Video, modality: str) -> str:
    text = PlainWords().describe([item], modality).texts[0]
    assert text is not None
    return text


def audio(samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Audio:
    return Audio("a", samples.astype(np.float32), RATE)


TIME = np.arange(2 * RATE) / RATE


def test_colours_have_their_names() -> None:
    for name, shades in EXAMPLES.items():
        pixels = np.array([list(bytes.fromhex(shade)) for shade in shades], np.uint8)
        assert {NAMES[i] for i in name_colours(pixels)} == {name}


def test_lab_of_known_colours() -> None:
    # White, and the sRGB red of published tables.
    assert np.allclose(lab(np.array([1.0, 1.0, 1.0])), [100, 0, 0], atol=0.02)
    assert np.allclose(lab(np.array([1.0, 0.0, 0.0])), [53.24, 80.09, 67.20], atol=0.05)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (
            landscape(),
            "A low-contrast, colourful and plain picture, mostly blue, much green; "
            "blue top like sky, green bottom like grass.",
        ),
        (
            PILImage.new("RGB", (50, 50), (0, 0, 0)),
            "A dark, low-contrast, colourless and plain picture, mostly black; black top like night.",
        ),
        (
            PILImage.new("RGB", (2, 900), (200, 20, 20)),
            "A dim, low-contrast, colourful and plain picture, mostly red.",
        ),
    ],
)
def test_pictures_in_words(picture: PILImage.Image, said: str) -> None:
    assert words(Image("x", picture), "image") == said


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        (audio(np.zeros(RATE)), "Silence."),
        (audio(np.sin(2 * np.pi * 200 * TIME)), "A loud, low-pitched, steady and tonal sound like an engine."),
        (
            audio(0.02 * RNG.standard_normal(2 * RATE)),
            "A quiet, high-pitched, steady and noisy sound like rain or wind.",
        ),
        (
            audio(0.3 * np.sin(2 * np.pi * 3000 * TIME) * (TIME % 0.5 < 0.1)),
            "A high-pitched, bursty and tonal sound like chirping birds or clicking.",
        ),
    ],
)
def test_sounds_in_words(sound: Audio, said: str) -> None:
    assert words(sound, "audio") == said


def video(frames: list[PILImage.Image]) -> Video:
    stacked = np.stack([np.asarray(frame) for frame in frames])
    return Video("v", stacked, np.arange(len(frames), dtype=np.float64), float(len(frames)))


def test_videos_in_words() -> None:
    still, turned = landscape(), landscape().transpose(PILImage.Transpose.FLIP_TOP_BOTTOM)
    assert words(video([still] * 3), "video") == "A still video, a " + words(Image("x", still), "image")[2:]
    assert words(video([still, turned, still]), "video").startswith("A fast moving video, a ")


def test_words_do_not_depend_on_the_batch() -> None:
    pictures = [Image(str(i), PILImage.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8))) for i in range(300)]
    together = PlainWords().describe(pictures, "image").texts
    assert together[:3] + together[298:] == [words(pictures[i], "image") for i in (0, 1, 2, 298, 299)]
    assert len(set(together)) > 50


def test_what_cannot_be_described() -> None:
    described = PlainWords().describe([audio(np.full(9, np.nan)), audio(np.ones(9))], "audio")
    assert list(described.errors) == [0]
    assert described.texts[0] is None
    assert described.texts[1]
    with pytest.raises(ModelError, match="plain-words takes audio, image, video, not text"):
        PlainWords().describe(["x"], "text")

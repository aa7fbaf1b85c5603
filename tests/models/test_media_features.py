from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from scipy.fft import dctn
from scipy.signal.windows import hann

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Item, Video
from nemo_mm_rank.media.spectrogram import BANDS, WINDOW, _window, frequencies, levels, log_mel, power_frames
from nemo_mm_rank.models.classical import image as image_module
from nemo_mm_rank.models.classical.audio import MIDDLE, AudioFeatures, mel_statistics
from nemo_mm_rank.models.classical.image import ImageFeatures, image_features, luma, squares
from nemo_mm_rank.models.classical.video import VideoFeatures, motion

RATE = 16_000


@pytest.mark.parametrize("rate", [40, 100, 8000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_the_window_is_scipys(rate: int) -> None:
    window = hann(round(WINDOW * rate), sym=False)
    assert np.array_equal(_window(rate), window * (2 / window.sum()))


def noise_picture(seed: int, width: int = 90, height: int = 60) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return Image(str(seed), PILImage.fromarray(pixels).resize((width, height)))


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> Audio:
    time = np.arange(int(seconds * rate)) / rate
    return Audio(f"{hertz} {seconds}", (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate)


def noise_video(seed: int, n: int = 4) -> Video:
    frames = np.random.default_rng(seed).integers(0, 256, (n, 24, 32, 3), dtype=np.uint8)
    return Video(str(seed), frames, np.arange(n, dtype=np.float64), float(n))


MODELS: list[tuple[Any, str, list[Item]]] = [
    (ImageFeatures(), "image", [noise_picture(seed, 40 + 7 * seed) for seed in range(40)]),
    (AudioFeatures(), "audio", [tone(100 * 1.3**i, 0.1 + 0.07 * i) for i in range(15)]),
    (VideoFeatures(), "video", [noise_video(seed, 1 + seed) for seed in range(9)]),
]


@pytest.mark.parametrize(("model", "modality", "items"), MODELS)
def test_vectors_are_unit_float32_of_the_promised_width(model: Any, modality: str, items: list[Item]) -> None:
    encoded = model.encode(items, modality)
    assert not encoded.errors
    assert encoded.vectors.shape == (len(items), model.dim)
    assert encoded.vectors.dtype == torch.float32
    assert torch.allclose(encoded.vectors.norm(dim=1), torch.ones(len(items)), atol=1e-6)
    assert model.encode([], modality).vectors.shape == (0, model.dim)


@pytest.mark.parametrize(("model", "modality", "items"), MODELS)
def test_a_vector_is_the_same_bytes_in_every_batch(model: Any, modality: str, items: list[Item]) -> None:
    together = model.encode(items, modality).vectors.numpy()
    for step in (1, 2, 3, 7):
        split = [model.encode(items[at : at + step], modality).vectors.numpy() for at in range(0, len(items), step)]
        assert np.concatenate(split).tobytes() == together.tobytes()
    turned = model.encode(items[::-1], modality).vectors.numpy()[::-1]
    assert np.ascontiguousarray(turned).tobytes() == together.tobytes()


@pytest.mark.parametrize(("model", "modality", "items"), MODELS)
def test_other_media_are_refused(model: Any, modality: str, items: list[Item]) -> None:
    with pytest.raises(ModelError, match=r"expected, not"):
        model.encode(["text"], modality)
    with pytest.raises(ModelError, match="not code"):
        model.encode(items, "code")


def test_low_frequencies_are_the_cosine_transform_of_a_thumbnail() -> None:
    pixels = squares([noise_picture(3).pixels], image_module.SIDE)
    thumb = pixels.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    grey = thumb @ [0.299, 0.587, 0.114] - 127.5
    own = image_module._frequencies(pixels)[0, :64].reshape(8, 8)
    assert np.allclose(own / (1000 * 16), dctn(grey, norm="ortho")[:8, :8])


def test_gradients_point_where_edges_do() -> None:
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, 64:] = 255
    upright = image_module._orientations(stripes[None]).reshape(4, 4, 8)
    lying = image_module._orientations(stripes.transpose(1, 0, 2)[None]).reshape(4, 4, 8)
    assert np.flatnonzero(upright.sum(axis=(0, 1))).tolist() == [0]
    assert np.flatnonzero(lying.sum(axis=(0, 1))).tolist() == [4]
    assert np.flatnonzero(upright.sum(axis=(0, 2))).tolist() == [1, 2]


def test_moments_are_mean_and_deviation_of_cells() -> None:
    pixels = squares([noise_picture(5).pixels], image_module.SIDE)
    cell = pixels[0, 42:85, 85:].astype(float)
    own = image_module._moments(pixels)[0].reshape(2, 3, 3, 3)[:, 1, 2]
    assert np.allclose(own[0], cell.mean(axis=(0, 1)) - 127.5)
    assert np.allclose(own[1], cell.std(axis=(0, 1)))


def test_luma_of_primaries() -> None:
    assert luma(np.array([[255, 255, 255], [255, 0, 0], [0, 1, 0]], np.uint8)).tolist() == [255_000, 76_245, 587]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 127)])
def test_plain_and_odd_pictures_have_vectors(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    encoded = ImageFeatures().encode([Image("x", PILImage.new("RGB", size, colour))], "image")
    assert encoded.vectors.isfinite().all()


def test_like_pictures_are_near() -> None:
    one, other = noise_picture(1, 300, 200), noise_picture(2, 300, 200)
    smaller = Image("s", one.pixels.resize((150, 100)))
    v = ImageFeatures().encode([one, smaller, other], "image").vectors
    assert v[0] @ v[1] > 0.95 > v[0] @ v[2] + 0.1


def test_blocks_weigh_the_same() -> None:
    features = image_features(squares([noise_picture(4).pixels], image_module.SIDE))[0]
    assert np.sum(features[:64] ** 2) == pytest.approx(1)
    assert np.sum(features**2) == pytest.approx(4)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
def test_a_full_scale_sine_is_zero_decibel_at_its_frequency(rate: int) -> None:
    mel = np.concatenate(list(log_mel(tone(1000, 1.0, rate, level=1.0))))
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (50, rate / 2))
    corners = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    centre = corners[1:-1][mel.mean(axis=0).argmax()]
    assert abs(centre - 1000) < 0.1 * 1000
    assert abs(mel.max()) < 0.7
    assert frequencies(rate)[-1] == rate / 2


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_levels_of_a_sine_and_of_noise_of_the_same_power(rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(4 * rate).astype(np.float32) * 0.5**0.5
    for audio in (tone(1000, 1.0, rate, level=1.0), Audio("n", noise, rate)):
        power = np.concatenate(list(power_frames(audio)))
        assert 10 * np.log10((10 ** (levels(power, rate) / 10)).mean()) == pytest.approx(0, abs=0.1)
    assert levels(np.zeros((1, 3)), rate) == [-100]


def test_statistics_do_not_depend_on_how_frames_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = Audio("n", np.random.default_rng(0).standard_normal(RATE).astype(np.float32), RATE)
    mel = np.concatenate(list(log_mel(audio)))
    monkeypatch.setattr("nemo_mm_rank.media.spectrogram.FRAMES_AT_ONCE", 7)
    mean, spread, change = mel_statistics(audio)
    assert np.allclose(mean, (mel.mean(axis=0) - MIDDLE) / 2)
    assert np.allclose(spread, mel.std(axis=0))
    assert np.allclose(change, np.abs(np.diff(mel, axis=0)).mean(axis=0))


def test_silence_and_shortest_sounds_have_vectors_and_nan_has_none() -> None:
    items: list[Item] = [
        Audio("silence", np.zeros(RATE, np.float32), RATE),
        Audio("short", np.ones(3, np.float32), RATE),
        Audio("nan", np.full(RATE, np.nan, np.float32), RATE),
    ]
    encoded = AudioFeatures().encode(items, "audio")
    assert list(encoded.errors) == [2]
    assert isinstance(encoded.errors[2], EmbeddingError)
    assert encoded.vectors[:2].isfinite().all()
    assert encoded.vectors[2].isnan().all()


def test_pitches_differ() -> None:
    v = AudioFeatures().encode([tone(300), tone(303), tone(3000)], "audio").vectors
    assert v[0] @ v[1] > 0.9 > 0.6 > v[0] @ v[2]


def test_motion_is_the_mean_change_of_luma_in_each_cell() -> None:
    frames = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    frames[1, :8, :8] = 10
    assert motion(frames, 2).tolist() == [10.0, 0.0, 0.0, 0.0]
    assert motion(frames[:1], 2).tolist() == [0.0] * 4
    assert motion(frames[[0, 2]], 2).tolist() == [0.0] * 4

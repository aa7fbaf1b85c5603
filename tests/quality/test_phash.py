"""Perceptual hashes: a picture's equal to imagededup's to the bit, all of them blind to what coding does."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.media.fingerprint import audio_hash, phash, phashes, video_hash
from nemo_mm_rank.media.segment import Audio
from nemo_mm_rank.quality.duplicates import distances

POOL = Path(__file__).parents[3] / "shared" / "data" / "real_pool"
RANDOM = np.random.default_rng(11)


def scene(width: int, height: int, seed: int = 0) -> PILImage.Image:
    """Blobs of colour, smooth as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return PILImage.fromarray(coarse).resize((width, height), PILImage.Resampling.BICUBIC)


def pictures() -> Iterator[PILImage.Image]:
    for width, height in ((1, 1), (32, 32), (31, 65), (640, 10), (500, 400)):
        yield PILImage.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
        yield PILImage.new("RGB", (width, height), (7, 130, 99))
    yield from (scene(300, 200, seed) for seed in range(5))
    yield scene(300, 200).convert("L")
    for path in sorted((POOL / "image").rglob("*.jpg"))[::30]:
        yield PILImage.open(path).convert("RGB")


def test_equal_to_imagededup_to_the_bit() -> None:
    methods = pytest.importorskip("imagededup.methods", reason="needs the extra 'dev'")
    hasher = methods.PHash(verbose=False)
    looked = list(pictures())
    expected = [int(hasher.encode_image(image_array=np.asarray(picture)), 16) for picture in looked]
    assert phashes(looked).tolist() == expected
    assert [int(phash(picture)) for picture in looked] == expected
    assert [int(phash(np.asarray(picture))) for picture in looked] == expected


def test_a_hash_is_64_bits_without_a_sign() -> None:
    assert phashes([]).shape == (0,)
    assert phashes([]).dtype == np.uint64
    assert isinstance(phash(scene(50, 50)), np.uint64)


def test_coding_and_size_change_few_bits_and_another_picture_many() -> None:
    original = scene(640, 480, seed=3)
    file = BytesIO()
    original.save(file, "JPEG", quality=30)
    variants = [PILImage.open(file), original.resize((320, 240)), original.point(lambda value: value * 9 // 10)]
    others = [scene(640, 480, seed) for seed in range(4, 24)]
    own = np.repeat(phash(original), 3)
    assert (distances(own, phashes(variants)) <= 2).all()
    assert (distances(np.repeat(phash(original), 20), phashes(others)) > 16).all()


def test_a_film_is_known_by_its_frames_and_their_order() -> None:
    frames = np.stack([np.asarray(scene(64, 48, seed)) for seed in range(8)])
    noisy = np.clip(frames.astype(np.int16) + RANDOM.integers(-3, 4, frames.shape), 0, 255).astype(np.uint8)
    own = video_hash(frames)
    assert distance(own, video_hash(noisy)) <= 3
    assert distance(own, video_hash(frames[::-1])) > 8
    assert distance(own, video_hash(frames[:, :, ::-1])) > 8


def test_a_film_that_stands_still_or_is_short_has_a_hash_all_the_same() -> None:
    frame = np.asarray(scene(64, 48))
    still = video_hash(np.stack([frame] * 8))
    assert still == video_hash(np.stack([frame] * 5))  # no noise of arithmetic in the bits that say nothing
    assert still == video_hash(frame[None])


def test_a_sound_is_known_by_its_spectrum_over_time() -> None:
    rate = 16_000
    times = np.arange(3 * rate) / rate
    chirp = (0.5 * np.sin(2 * np.pi * (200 + 400 * times) * times)).astype(np.float32)
    hiss = (chirp + 0.0005 * RANDOM.standard_normal(len(chirp))).astype(np.float32)
    own = audio_hash(Audio("a", chirp, rate))
    assert distance(own, audio_hash(Audio("b", chirp * np.float32(0.8), rate))) <= 3
    assert distance(own, audio_hash(Audio("c", hiss, rate))) <= 3
    assert distance(own, audio_hash(Audio("d", chirp[::-1].copy(), rate))) > 10


@pytest.mark.parametrize("length", [1, 400, 4_000])
def test_a_short_sound_has_a_hash(length: int) -> None:
    samples = RANDOM.standard_normal(length).astype(np.float32).clip(-1, 1)
    assert audio_hash(Audio("a", samples, 16_000)) == audio_hash(Audio("b", samples.copy(), 16_000))


def distance(one: np.uint64, other: np.uint64) -> int:
    return int(distances(np.array([one]), np.array([other]))[0])

"""Which copies a fingerprint knows again: photographs, videos and sounds of the real pool, coded anew.

    python -m benchmarks.duplicates [--images 300]

Each row is a way to copy, with the share of copies whose fingerprint lies within the radius of its original's. The last
row of a modality are different data: pairs of them that lie within the radius, of all pairs there are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as PILImage
from rich.console import Console
from rich.table import Table

from benchmarks import real_pool
from nemo_mm_rank.arrays import UInt64s
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.fingerprint import audio_hash, phashes, video_hash
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import iter_data
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.quality.duplicates import distances

RADII = (0, 2, 4, 8, 12)
Change = Callable[[PILImage.Image], PILImage.Image]


def jpeg(quality: int) -> Change:
    def copy(image: PILImage.Image) -> PILImage.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return PILImage.open(file).convert("RGB")

    return copy


def half(image: PILImage.Image) -> PILImage.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def cropped(image: PILImage.Image) -> PILImage.Image:
    """Leave out a fiftieth on each side."""
    x, y = image.width // 50, image.height // 50
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Change] = {
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 40": jpeg(40),
    "half the size": half,
    "a tenth darker": lambda image: image.point(lambda value: value * 9 // 10),
    "cropped by 2 %": cropped,
}


def of_video(video: Video, copy: Change) -> np.uint64:
    return video_hash(np.stack([np.asarray(copy(PILImage.fromarray(frame))) for frame in video.frames]))


def of_sounds(rng: np.random.Generator) -> dict[str, Callable[[Audio], Audio]]:
    def noisy(sound: Audio) -> Audio:
        power = float(np.sqrt(np.mean(sound.samples**2)))
        noise = rng.standard_normal(len(sound.samples)).astype(np.float32)
        return Audio("noisy", sound.samples + np.float32(0.03 * power) * noise, sound.rate)

    def quiet(sound: Audio) -> Audio:
        return Audio("quiet", sound.samples * np.float32(0.7), sound.rate)

    def coarse(sound: Audio) -> Audio:
        return Audio("coarse", (np.round(sound.samples * 2047) / 2047).astype(np.float32), sound.rate)

    return {"12 bits": coarse, "softer": quiet, "noise, 30 dB below": noisy}


def shares(own: UInt64s, copies: UInt64s) -> list[str]:
    apart = distances(own, copies)
    return [f"{(apart <= radius).mean():.2f}" for radius in RADII]


def mistaken(keys: UInt64s) -> list[str]:
    """Return how many pairs of different data lie within each radius."""
    pairs = np.array(list(combinations(range(len(keys)), 2)))
    apart = distances(keys[pairs[:, 0]], keys[pairs[:, 1]])
    return [f"{(apart <= radius).sum():,}" for radius in RADII]


def items(modality: str, most: int | None = None) -> list[Any]:
    pool = pd.read_json(real_pool.POOL, lines=True)
    rows = pool[pool["modality"] == modality].iloc[:most]
    found = list(iter_data(rows, Opener(root=str(real_pool.POOL.parent))))
    return [item for item in found if not isinstance(item, PairError)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    table = Table(title="copies within a radius of their original")
    table.add_column("")
    for radius in RADII:
        table.add_column(f"{radius} bits", justify="right")

    def add(name: str, values: Sequence[str]) -> None:
        table.add_row(name, *values)

    images: list[Image] = items("image", options.images)
    own = phashes([item.pixels for item in images])
    for name, copy in COPIES.items():
        add(f"{len(own)} images: {name}", shares(own, phashes([copy(item.pixels) for item in images])))
    add("pairs of different images", mistaken(own))
    videos: list[Video] = items("video")
    own = np.array([video_hash(video.frames) for video in videos])
    for name, copy in COPIES.items():
        add(f"{len(own)} videos: {name}", shares(own, np.array([of_video(video, copy) for video in videos])))
    add("pairs of different videos", mistaken(own))
    sounds: list[Audio] = items("audio")
    own = np.array([audio_hash(sound) for sound in sounds])
    for name, change in of_sounds(np.random.default_rng(0)).items():
        add(f"{len(own)} sounds: {name}", shares(own, np.array([audio_hash(change(sound)) for sound in sounds])))
    add("pairs of different sounds", mistaken(own))
    Console().print(table)


if __name__ == "__main__":
    main()

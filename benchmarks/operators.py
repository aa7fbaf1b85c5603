"""How images look: ours beside CleanVision's own properties, on the same images and in turns; and near codes.

    python -m benchmarks.operators [--images 300] [--runs 5]

CleanVision's scores are computed by its ``ImageProperty`` classes, as its ``find_issues`` does for each image, from
the image as it is decoded; the two ways get the same decoded image, and all of it is done in one thread. Then both
with decoding: CleanVision opens the file, ours through the media reader with all its checks, as steps do, with two
threads. Images are photographs of the real pool, or made ones where it is not there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image as PILImage
from rich.console import Console
from rich.table import Table

from benchmarks import real_pool
from benchmarks.encoder_overhead import write_images
from benchmarks.ranking_topk import Peak
from nemo_mm_rank import frames
from nemo_mm_rank.quality.duplicates import near
from nemo_mm_rank.quality.operators import ImageScores, MediaStep, column
from nemo_mm_rank.quality.operators.images import image_scores
from nemo_mm_rank.quality.operators.settings import ImageScore

NAMES: tuple[ImageScore, ...] = ("blurry", "dark", "light", "low_information", "geometric")
Scores = npt.NDArray[np.float64]
Way = Callable[[], Scores]


def cleanvision() -> Callable[[PILImage.Image], list[float]]:
    """Return CleanVision's way from an image to its five scores."""
    from cleanvision.issue_managers import image_property as own

    blur, bright = own.BlurrinessProperty(), own.BrightnessProperty("dark")
    entropy, aspect = own.EntropyProperty(), own.AspectRatioProperty()

    def judge(image: PILImage.Image) -> list[float]:
        raw: dict[str, Any] = {}
        for one in (blur, bright, entropy, aspect):  # of light, what dark has computed is used
            raw |= one.calculate(image)
        sharp = 1 - np.exp(-0.01 * raw["blurriness"])
        uneven = 1 - np.exp(-0.01 * raw["blurriness_grayscale_std"])
        blurry = min(sharp + (uneven if uneven > 0.18 else 0), 1)
        light = 1 - raw["brightness_perc_5"]
        return [blurry, raw["brightness_perc_99"], light, min(0.1 * raw["entropy"], 1), raw["aspect_ratio"]]

    return judge


def measure(ways: dict[str, Way], runs: int) -> tuple[list[float], list[float]]:
    """Return the median of seconds, and the peak of memory in MiB, of each way, in turns; the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Scores] = {}
    for run in range(runs + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            with Peak() as peak:
                found[name] = way()
            if run:
                seconds[name].append(time.perf_counter() - started)
                memory[name].append(peak.mib)
    first, *others = found.values()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-6)  # a step's columns are float32
    return [statistics.median(own) for own in seconds.values()], [max(own) for own in memory.values()]


def of_files(paths: Sequence[Path]) -> dict[str, Way]:
    """Return both ways with decoding."""
    judge = cleanvision()
    rows = pd.DataFrame({"pair_id": [path.name for path in paths], "data": [str(path.name) for path in paths]})
    rows = rows.assign(pool="p", modality="image", annotation="an image", media_root=[str(p.parent) for p in paths])
    step = MediaStep([ImageScores(NAMES)])

    def theirs() -> Scores:
        return np.array([judge(_opened(path)) for path in paths])

    def ours() -> Scores:
        out = step(rows)
        columns = [frames.array(out, column(name)).to_numpy() for name in NAMES]
        return np.stack(columns, axis=1).astype(np.float64)

    return {"CleanVision": theirs, "step": ours}


def _opened(path: Path) -> PILImage.Image:
    with PILImage.open(path) as image:
        return image.convert("RGB")


def of_codes(n: int, radius: int) -> float:
    """Return the seconds that ``n`` codes take, half of them two bits from another."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, n // 2, dtype=np.uint64)
    codes = np.concatenate([codes, codes ^ np.uint64(0b101)])
    started = time.perf_counter()
    groups = near(codes, np.zeros(n, dtype=np.uint64), radius)
    seconds = time.perf_counter() - started
    assert len(np.unique(groups)) == n // 2
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pool = real_pool.POOL.parent / "image"
        there = sorted(pool.rglob("*.jpg")) if pool.exists() else write_images(Path(temporary), options.images)
        paths = there[: options.images]
        decoded = [_opened(path) for path in paths]
        judge = cleanvision()
        looks: dict[str, Way] = {
            "CleanVision": lambda: np.array([judge(image) for image in decoded]),
            "ours": lambda: np.array([image_scores(image, NAMES) for image in decoded]),
        }
        table = Table(title=f"{len(paths)} images: ms an image (median of {options.runs}), peak MiB above the start")
        for name in ("", "CleanVision", "ours", "ratio", "CleanVision MiB", "our MiB"):
            table.add_column(name, justify="right" if name else "left")
        for what, ways in (("scores alone", looks), ("decoding too", of_files(paths))):
            seconds, memory = measure(ways, options.runs)
            theirs, ours = (1000 * own / len(paths) for own in seconds)
            ratio = f"{theirs / ours:.1f}"
            table.add_row(what, f"{theirs:.2f}", f"{ours:.2f}", ratio, *(f"{own:.0f}" for own in memory))
        Console().print(table)
    table = Table(title="near codes: seconds")
    table.add_column("codes")
    for radius in (2, 4, 8):
        table.add_column(f"radius {radius}", justify="right")
    for n in (10_000, 100_000, 1_000_000):
        table.add_row(f"{n:,}", *(f"{of_codes(n, radius):.2f}" if n * radius <= 4e6 else "-" for radius in (2, 4, 8)))
    Console().print(table)


if __name__ == "__main__":
    main()

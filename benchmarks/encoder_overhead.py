"""What our encode path costs beside a bare batched loop over the same model, and saves beside one call per record.

    python -m benchmarks.encoder_overhead [--images 512] [--sentences 5000] [--runs 5]

All ways run in one process, in turns, with the same loaded model, so that they meet the same load of the machine.
Images are JPEG files of 640 x 480 pixels and are decoded by every way, ours through the media reader with all its
checks; the model is OpenCLIP's ViT-B-32 with random weights. Sentences have 3 to 60 words; the model is MiniLM, and the
bare loop its library's own ``encode``, which sorts by length. Memory is the peak above what the process held before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image as PILImage
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks import real_pool, weights
from benchmarks.ranking_topk import Peak
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import in_chunks, iter_data
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.open_clip import SETTINGS, WEIGHTS
from nemo_mm_rank.steps import PairStep

Way = Callable[[], torch.Tensor]
ALONE = 0.25
"""Of the records, how many are embedded one call each; the time is scaled up."""


def write_model(folder: Path, name: str = "ViT-B-32") -> Path:
    """Save a model of OpenCLIP with random weights as its authors publish them."""
    library: Any = import_module("open_clip")
    torch.manual_seed(0)
    state = library.create_model(name).state_dict()
    settings = {"model_cfg": library.get_model_config(name), "preprocess_cfg": {}}
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / WEIGHTS[0])
    return folder


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEGs that decode at the cost of photographs: soft colours under some grain."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        soft = PILImage.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
        grain = np.asarray(soft, dtype=np.int16) + rng.integers(-12, 13, (480, 640, 1), dtype=np.int16)
        paths.append(folder / f"{number:05d}.jpg")
        PILImage.fromarray(grain.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = np.array(re.findall(r"\w+", measure.__doc__ or ""))
    return [" ".join(rng.choice(words, rng.integers(3, 61))) for _ in range(count)]


def of_pictures(folder: Path, paths: list[Path]) -> dict[str, Way]:
    encoder = loader.load("clip", "open-clip", {"path": str(write_model(folder))})
    model, transform = encoder._model, encoder._transform

    def opened(path: Path) -> torch.Tensor:
        with PILImage.open(path) as image:
            pixels: torch.Tensor = transform(image.convert("RGB"))
        return pixels

    def bare(rows: int) -> torch.Tensor:
        with torch.inference_mode():
            batches = (paths[start : start + rows] for start in range(0, len(paths), rows))
            return torch.cat(
                [model.encode_image(torch.stack([*map(opened, batch)]), normalize=True) for batch in batches]
            )

    def alone() -> torch.Tensor:
        with torch.inference_mode():
            some = paths[: int(ALONE * len(paths))]
            return torch.cat([model.encode_image(opened(path)[None], normalize=True) for path in some])

    table = pd.DataFrame({"data": [path.name for path in paths], "modality": "image"})

    def ours() -> torch.Tensor:
        errors: dict[int, PairError] = {}
        items = enumerate(iter_data(table, Opener(MediaSettings(), str(paths[0].parent))))
        chunks = in_chunks(items, errors, *PairStep.chunk)
        vectors = torch.cat([encoder.encode(chunk, "image").vectors for _, chunk in chunks])
        assert not errors
        return vectors

    own = encoder._batch_rows
    return {
        f"bare loop, batches of {own}": lambda: bare(own),
        "bare loop, batches of 32": lambda: bare(32),
        "ours": ours,
    } | {"one call per record": alone}


def of_sentences(texts: list[str]) -> dict[str, Way]:
    encoder = loader.load("minilm", "sentence-transformers", {"path": weights.minilm()})
    settings = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}

    def alone() -> torch.Tensor:
        return torch.stack([encoder._model.encode(text, **settings) for text in texts[: int(ALONE * len(texts))]])

    return {
        "bare loop, batches of 32": lambda: encoder._model.encode(texts, batch_size=32, **settings),
        "ours": lambda: encoder.encode(texts, "text").vectors,
        "one call per record": alone,
    }


def measure(title: str, ways: Mapping[str, Way], runs: int) -> Table:
    """Run every way ``runs`` times in turns; ratios are taken within a turn, and their median shown."""
    peaks: dict[str, float] = {}
    vectors: dict[str, torch.Tensor] = {}
    for name, way in ways.items():  # the first turn warms everything up, and is watched for memory
        with Peak() as peak:
            vectors[name] = way()
        peaks[name] = peak.mib
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) / (ALONE if name == "one call per record" else 1))
    best = min((name for name in ways if name.startswith("bare")), key=lambda name: statistics.median(times[name]))
    table = Table(title=title)
    for column in ("way", "median", "least", "most", "ratio to the best bare loop", "memory", "largest difference"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=column == "way")
    for name, took in times.items():
        ratios = [mine / theirs for mine, theirs in zip(took, times[best], strict=True)]
        apart = (vectors[name] - vectors[best][: len(vectors[name])]).abs().max()
        table.add_row(
            name,
            *(f"{value:.2f} s" for value in (statistics.median(took), min(took), max(took))),
            f"{statistics.median(ratios):.3f}",
            f"{peaks[name]:.0f} MiB",
            f"{apart:.0e}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--sentences", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    console = Console(width=130)
    console.print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_images(folder, options.images)
        title = f"ViT-B-32, {options.images} images from files, {options.runs} runs"
        console.print(measure(title, of_pictures(folder, paths), options.runs))
    title = f"MiniLM, {options.sentences:,} sentences, {options.runs} runs"
    console.print(measure(title, of_sentences(sentences(options.sentences)), options.runs))
    console.print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()

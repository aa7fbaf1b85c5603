"""Sixteen concepts as pictures and words, and a model that is small enough to learn them in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from nemo_mm_rank import curate
from nemo_mm_rank.models.chat_encoder import Sight
from nemo_mm_rank.models.chat_models import TOKEN, UniteEncoder
from tests.models import tiny_writers

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 60, 220),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "yellow": (240, 220, 40),
    "pink": (250, 160, 200),
    "brown": (110, 60, 20),
    "grey": (128, 128, 128),
    "cyan": (40, 220, 230),
    "violet": (130, 40, 180),
    "orange": (250, 130, 20),
    "lime": (170, 250, 60),
    "navy": (10, 20, 90),
    "olive": (110, 110, 20),
    "maroon": (90, 10, 20),
}


class SmallUnite(UniteEncoder):
    """Sees pictures of four tokens, where UNITE's have 256."""

    _sight = Sight(image=(4 * TOKEN, 4 * TOKEN))


def picture(colour: str) -> PILImage.Image:
    """A picture of 56 x 56 pixels, all of one colour."""
    return PILImage.new("RGB", (56, 56), COLOURS[colour])


def pool(folder: Path) -> list[dict[str, Any]]:
    """Write the sixteen pictures; return their pairs."""
    rows = []
    for colour in COLOURS:
        picture(colour).save(folder / f"{colour}.png")
        rows.append({"pair_id": colour, "modality": "image", "data": f"{colour}.png", "annotation": f"it is {colour}"})
    return rows


def base(folder: Path) -> Path:
    """Write the tiny model, its weights as small as those that training starts from."""
    tiny_writers.qwen2_vl(folder)
    file = folder / "model.safetensors"
    weights = {name: value * 0.2 if value.ndim > 1 else value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Curate all of ``rows``, whose media lie in ``folder``, by the models that need no download."""
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    curate(
        config={
            "pools": str(folder / "pool.jsonl"),
            "queries": "it is red",
            "budget": "100%",
            "output": str(folder / "run"),
            "projection": {"max_epochs": 1, "folds": 2, "threads": 1},
        },
        progress=False,
    )
    return folder / "run"

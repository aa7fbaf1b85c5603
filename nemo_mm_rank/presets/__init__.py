"""Configurations by name: what each is for, what it needs, and which one suits this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nemo_mm_rank.config import read_yaml
from nemo_mm_rank.errors import ConfigError, nearest

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Weights:
    """A model that a preset loads, as its publisher has it.

    Attributes:
        model: its name on the hub.
        licence: under which its weights are published; None where we do not know: see the model's page.
        download_gb: about how much is downloaded, from its number of parameters and their published type.
    """

    model: str
    licence: str | None
    download_gb: float


@dataclass(frozen=True)
class Preset:
    """What is to be known of a preset before it is run.

    Attributes:
        summary: what it is for.
        gpu_gb: memory of a GPU that is enough, by estimate; None: it runs on a CPU.
        weights: the models it loads.
        besides: what else it needs, in words; empty: nothing.
        extra: the extra of this package with the libraries.
    """

    summary: str
    gpu_gb: int | None
    weights: tuple[Weights, ...]
    besides: str = ""
    extra: str = "models"

    @property
    def download_gb(self) -> float:
        """About how much is downloaded, in GB."""
        return sum(weights.download_gb for weights in self.weights)


MINILM = Weights("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", 0.1)
CLIP_L = Weights("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "MIT", 1.7)
CLAP = Weights("laion/clap-htsat-unfused", "Apache-2.0", 0.6)

PRESETS: dict[str, Preset] = {
    "cpu_small": Preset(
        "sentences and images on a CPU; audio by classical features",
        gpu_gb=None,
        weights=(MINILM, Weights("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "MIT", 0.6)),
    ),
    "openclip_clap": Preset(
        "images and videos by CLIP, audio by CLAP, texts by a sentence encoder",
        gpu_gb=16,
        weights=(MINILM, CLIP_L, CLAP),
    ),
    "unite": Preset(
        "one end-to-end model for text, images and videos; audio by CLAP",
        gpu_gb=24,
        weights=(Weights("friedrichor/Unite-Instruct-Qwen2-VL-2B", None, 4.5), MINILM, CLAP),
    ),
    "omni_fuse": Preset(
        "all three kinds of experts, and Grounding DINO to trim images",
        gpu_gb=40,
        weights=(
            Weights("nvidia/llama-nemotron-embed-1b-v2", "NVIDIA Open Model License, Llama 3.2 Community", 2.5),
            CLIP_L,
            CLAP,
            Weights("nvidia/omni-embed-nemotron-3b", "NVIDIA OneWay Noncommercial License, Qwen Research License", 9.5),
            Weights("IDEA-Research/grounding-dino-base", "Apache-2.0", 0.9),
        ),
        besides="a server for nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16 (NVIDIA Open Model License), "
        "and permission to run the code that comes with llama-nemotron-embed",
    ),
}
"""From the smallest to the largest. Sizes and memory are estimates from numbers of parameters, not measurements."""


def read(name: str) -> dict[str, Any]:
    """Return a preset's configuration as plain values: models, experts and trimming, but no pool and no query.

    Raises:
        ConfigError: there is none of that name (the nearest is named).
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r} (the presets are {', '.join(PRESETS)}){nearest(name, PRESETS)}")
    return read_yaml(FOLDER / f"{name}.yaml")


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration ``below`` overruled by ``above``: a section's keys one by one, anything else whole."""
    sections = {
        key: {**below[key], **value}
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **sections}


def recommended(gpu_bytes: int | None) -> str:
    """Return the largest preset for a GPU of so much memory in bytes (None: no GPU).

    A GPU has a little less than the GB it is sold with, so a tenth may lack.
    """
    fitting = [
        name
        for name, preset in PRESETS.items()
        if preset.gpu_gb is None or (gpu_bytes is not None and gpu_bytes >= 0.9 * preset.gpu_gb * 2**30)
    ]
    return fitting[-1]


LIBRARIES = ("transformers", "sentence_transformers", "open_clip")
"""What presets import of the extra ``models``."""


def print_presets(console: Console) -> None:
    """Print every preset, with what it needs, and which one suits this machine."""
    table = Table(title="Presets")
    for column in ("name", "what for", "needs", "licences"):
        table.add_column(column, overflow="fold")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.summary, _needs(preset), _licences(preset))
    console.print(table)
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    has = "no GPU" if gpu is None else f"a GPU of {gpu / 2**30:.0f} GiB"
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(f"recommended for this machine ({has}): {recommended(gpu)}")
    if missing := [library for library in LIBRARIES if find_spec(library) is None]:
        say(f"not installed: {', '.join(missing)}; first: pip install 'nemo-mm-rank[models]'")


def _needs(preset: Preset) -> str:
    place = "a CPU" if preset.gpu_gb is None else f"a GPU of about {preset.gpu_gb} GB"
    needs = f"{place}; a download of about {preset.download_gb:.1f} GB"
    return f"{needs}; {preset.besides}" if preset.besides else needs


def _licences(preset: Preset) -> str:
    return "\n".join(
        f"{weights.model.split('/')[-1]}: {weights.licence or 'see the page of the model'}"
        for weights in preset.weights
    )

"""The table of presets that the command line prints."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table

from nemo_mm_rank.presets import PRESETS, Preset, recommended

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
        f"{weights.model.split('/')[-1]}: {weights.licence or 'see its page'}" for weights in preset.weights
    )

"""Every model of a configuration, loaded and tried on one sample of each modality that it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nemo_mm_rank import media
from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.demo import audio, images, words
from nemo_mm_rank.demo.images import Landscape
from nemo_mm_rank.errors import ModelError, PairError, UserError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.modality import names
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Describer, Encoder, Grounder, answering, told, usable
from nemo_mm_rank.schema import Modality


@dataclass(frozen=True)
class Checked:
    """A model that works.

    Attributes:
        name: what the configuration calls it.
        class_: of the loaded object.
        revision: of its weights.
        modalities: on which it was tried.
        device: where its weights are.
        dtype: of its weights; None where it has none.
        dim: of its vectors; None for a model that gives none.
        memory: bytes: on a GPU the most that PyTorch held for it, on a CPU by how much the process has grown (a model
            that finds memory free from one before it grows it less); None where the system does not say.
        rate: items a second, one by one. An encoder is tried twice and the second time counts.
    """

    name: str
    class_: str
    revision: str
    modalities: tuple[str, ...]
    device: str
    dtype: str | None
    dim: int | None
    memory: int | None
    rate: float


@dataclass(frozen=True)
class Refused:
    """A model that does not work, and why in one line."""

    name: str
    reason: str


def check(models: Mapping[str, ModelSpec], device: str | None, settings: MediaSettings) -> Iterator[Checked | Refused]:
    """Load the models one after the other, try each, and let go of it again.

    Args:
        models: by name.
        device: where they run; None: CUDA where there is one.
        settings: how the samples are decoded.
    """
    samples, place = _samples(settings), loader.pick_device(device)
    for name, spec in models.items():
        try:
            yield _tried(name, spec, place, samples)
        except UserError as error:
            yield Refused(name, " ".join(str(error).split()))
        finally:
            loader.release({name: spec})
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _tried(name: str, spec: ModelSpec, device: str, samples: Mapping[str, Item]) -> Checked:
    before = _memory(device, start=True)
    model = _fulfilled(name, loader.load(name, spec.class_, spec.arguments, device))
    taken = [modality for modality in names() if modality in model.modalities and modality in samples]
    if isinstance(model, Encoder):  # what a first call sets up is no part of its pace
        for modality in taken:
            _try(name, model, samples[modality], modality)
    began = time.perf_counter()
    for modality in taken:
        _try(name, model, samples[modality], modality)
    seconds = time.perf_counter() - began
    after = _memory(device)
    weights = _weights(model)
    return Checked(
        name,
        type(model).__name__,
        str(model.revision),
        tuple(taken),
        str(weights.device) if weights is not None else "cpu",
        str(weights.dtype).removeprefix("torch.") if weights is not None else None,
        model.dim if isinstance(model, Encoder) else None,
        max(0, after - before) if after is not None and before is not None else None,
        len(taken) / seconds if seconds > 0 else float("inf"),
    )


def _fulfilled(name: str, model: Any) -> Encoder | Describer | Grounder:
    """Return the model as what its method makes it; `ModelError` names what it lacks for that."""
    if hasattr(model, "encode"):
        return loader.as_encoder(name, model)
    return loader.as_describer(name, model) if hasattr(model, "describe") else loader.as_grounder(name, model)


def _try(name: str, model: Encoder | Describer | Grounder, item: Item, modality: str) -> None:
    """Embed, describe or ground one sample; that a describer finds no words for it is no fault of its."""
    errors: Mapping[int, PairError]
    with answering(name):
        if isinstance(model, Encoder):
            errors = usable(model.encode([item], modality), model, 1).errors
        elif isinstance(model, Describer):
            described = model.describe([item], modality)
            told(described, name, 1)
            errors = described.errors
        else:
            found = model.ground([item], [["the sky", "the grass"]], modality)[0]
            errors = {0: found} if isinstance(found, PairError) else {}
    if errors:
        raise ModelError(f"{name} fails on the sample of {modality}: {type(errors[0]).__name__}: {errors[0]}")


def _samples(settings: MediaSettings) -> dict[str, Item]:
    """Return one item of each modality: a landscape, a video of it, the sound of waves, a passage, a function."""
    random = Random(0)  # noqa: S311 (nothing secret)
    scene = Landscape.at_random(random)
    files = {
        Modality.IMAGE: ("sample.jpg", images.jpeg(scene.draw())),
        Modality.VIDEO: ("sample.mp4", images.video(scene)),
        Modality.AUDIO: ("sample.wav", audio.audio_clip(random, True, 0)[0]),
    }
    made: dict[str, Item] = {
        Modality.TEXT: words.text(random, True, 0)[0],
        Modality.CODE: words.code(random, 0)[0],
    }
    with TemporaryDirectory() as folder:
        for modality, (file, content) in files.items():
            (Path(folder) / file).write_bytes(content)
            made[modality] = media.open(file, modality=modality, root=folder, settings=settings)
    return made


def _weights(model: Any) -> torch.Tensor | None:
    """Return one of the weights, from the networks that the model holds."""
    for value in vars(model).values():
        if isinstance(value, torch.nn.Module):
            for parameter in value.parameters():
                return parameter
    return None


def _memory(device: str, start: bool = False) -> int | None:
    """Return the bytes in use: on a GPU the most since ``start``, otherwise those of the process now."""
    if torch.device(device).type == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats(device)
            return int(torch.cuda.memory_allocated(device))
        return int(torch.cuda.max_memory_allocated(device))
    try:
        resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # another system than Linux
        return None
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


COLUMNS = ("name", "class", "revision", "modalities", "device", "dtype", "dim", "memory", "items/s")


def print_checks(checks: Iterable[Checked | Refused], console: Console) -> bool:
    """Print the models that work as a table and each that does not as one line; return whether all of them work."""
    done = list(checks)
    table = Table(title="Models")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for model in done:
        if isinstance(model, Checked):
            table.add_row(*_row(model))
    if table.row_count:
        console.print(table, highlight=False, markup=False)
    refused = [model for model in done if isinstance(model, Refused)]
    for model in refused:
        console.print(f"failed   {model.name}: {model.reason}", highlight=False, markup=False, soft_wrap=True)
    return not refused


def _row(one: Checked) -> tuple[str, ...]:
    return (
        one.name,
        one.class_,
        one.revision[:12],
        " ".join(one.modalities),
        one.device,
        one.dtype or "-",
        "-" if one.dim is None else str(one.dim),
        "-" if one.memory is None else f"{one.memory / 2**20:.0f} MiB",
        f"{one.rate:,.1f}",
    )

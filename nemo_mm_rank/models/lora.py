"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) as peft keeps them: attached, written, loaded, merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file

from nemo_mm_rank.config import Settings
from nemo_mm_rank.errors import ModelError, nearest, require
from nemo_mm_rank.io.files import write_json, write_tensors
from nemo_mm_rank.models.weights import folder_revision, opening, resolve

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Weights = Mapping[str, torch.Tensor]


def adapter_revision(path: str) -> str:
    """Return a digest of an adapter's files, without loading it.

    Raises:
        ModelError: no such adapter.
    """
    return folder_revision(resolve(path))


def merge_adapter(model: Any, path: str) -> None:
    """Add an adapter to the weights of ``model``, which is what it was before but for their values.

    Args:
        model: of transformers; changed in place.
        path: a local folder, or a name on the Hugging Face hub, with `CONFIG` and `WEIGHTS`.

    Raises:
        ModelError: no such adapter, a pickle, another kind than LoRA, or one of another model.
    """
    folder = resolve(path)
    settings = read_config(folder, path)
    with opening(path):
        weights = load_file(folder / WEIGHTS)
        adapted = attach(model, settings)
    put_weights(adapted, weights, path)
    adapted.merge_and_unload()


def read_config(folder: Path, path: str) -> dict[str, Any]:
    """Return an adapter's settings: those that change what it adds.

    Raises:
        ModelError: no adapter, or none that is no more than products of small matrices.
    """
    file = folder / CONFIG
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{path}: not an adapter folder: it lacks {CONFIG if not file.is_file() else WEIGHTS}")
    with opening(path):
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if values.get("peft_type") != "LORA":
        raise ModelError(f"{path}: an adapter of type {values.get('peft_type')}, and only LORA can be loaded")
    # What peft would import or run by these settings stays where it is: only what says which products are added.
    return {key: values[key] for key in _MEANT if values.get(key)}


_MEANT = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


def adapter_settings(model: Any, rank: int, alpha: int, dropout: float) -> dict[str, Any]:
    """Return settings of ``peft.LoraConfig`` for all linear layers of the language model in ``model``, its head not.

    The layers are given by their full names, because the vision towers of some models have layers of the same last
    names.
    """
    linear = (torch.nn.Linear, require("transformers", "models").pytorch_utils.Conv1D)
    inside = {id(module) for module in model.get_decoder().modules() if isinstance(module, linear)}
    layers = [name for name, module in model.named_modules() if id(module) in inside]
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": layers}


def attach(model: Any, settings: Mapping[str, Any], seed: int = 0) -> Any:
    """Put a new adapter into ``model``, in place; return peft's view of both. It changes nothing before it has learnt.

    Args:
        model: of transformers.
        settings: of ``peft.LoraConfig``.
        seed: of the adapter's weights.
    """
    peft = require("peft", "models")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.PeftModel(model, peft.LoraConfig(**settings, bias="none"))


def get_weights(adapted: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's weights on the host, by the names that they have in a file."""
    state = require("peft", "models").get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def put_weights(adapted: Any, weights: Weights, path: str) -> None:
    """Give the adapter its weights.

    Raises:
        ModelError: weights that are missing, or are none of this model's.
    """
    there = get_weights(adapted)
    strange = sorted(
        {name for name in weights if name not in there or weights[name].shape != there[name].shape}
        | (there.keys() - weights.keys())
    )
    if strange:
        raise ModelError(
            f"{path}: not an adapter of this model: {len(strange)} of its {len(there)} weights differ in name or "
            f"shape, {strange[0]} among them{nearest(strange[0], there.keys() - weights.keys())}"
        )
    require("peft", "models").set_peft_model_state_dict(adapted, dict(weights))


def write_adapter(folder: Path, weights: Weights, settings: Mapping[str, Any], base: str) -> None:
    """Write an adapter as peft reads it, its weights before what says that they are there.

    Args:
        folder: made where it is missing.
        weights: from `get_weights`.
        settings: of ``peft.LoraConfig``.
        base: what the model is called that it belongs to.
    """
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    write_json(
        folder / CONFIG, {"peft_type": "LORA", "base_model_name_or_path": base, "bias": "none", **dict(settings)}
    )


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights and the settings of an adapter that `write_adapter` wrote.

    Raises:
        ModelError: it is none.
    """
    settings = read_config(folder, str(folder))
    return load_file(folder / WEIGHTS), settings


def joined(adapters: list[tuple[dict[str, torch.Tensor], dict[str, Any]]]) -> tuple[Weights, dict[str, Any]]:
    """Return one adapter that adds what several add one after the other.

    ``s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]``, with ``s = alpha / r`` of each: its rank is the sum of theirs,
    and it counts once.

    Args:
        adapters: weights and settings, of the same layers.
    """
    settings = dict(adapters[0][1])
    rank = sum(int(one["r"]) for _, one in adapters)
    weights = {}
    for name in adapters[0][0]:
        if ".lora_A." in name:
            weights[name] = torch.cat([one[name] for one, _ in adapters])
        else:
            weights[name] = torch.cat([one[name] * (own["lora_alpha"] / own["r"]) for one, own in adapters], dim=1)
    return weights, {**settings, "r": rank, "lora_alpha": rank}


def adapted(model: Any, settings: AdapterSettings, seed: int) -> Any:
    """Return ``model``, frozen, with a new adapter on its language model.

    Args:
        model: of transformers, with a decoder.
        settings: rank, scale and dropout.
        seed: of the adapter's weights.
    """
    model.requires_grad_(False)
    return attach(model, adapter_settings(model, settings.rank, settings.alpha, settings.dropout), seed)


class AdapterSettings(Settings):
    """Settings of a model that is fine-tuned with a LoRA adapter."""

    revision: str | None = Field(
        None, description="Commit of the model on the hub, which is required for a model that comes from there."
    )
    dtype: str | None = Field(
        None, description="Number type of the frozen weights. Default: float32 on a CPU, bfloat16 otherwise."
    )
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    learning_rate: float = Field(
        1e-4,
        gt=0,
        description="Highest learning rate: it rises over the first tenth of the steps and then falls to zero.",
    )
    weight_decay: float = Field(0.0, ge=0)
    longest_data: int = Field(8192, ge=16, description="Most characters of texts and code; longer ones are cut.")
    device: str | None = Field(
        None, description="Device of the model: cpu leaves the GPUs alone. Default: the GPUs, where there are any."
    )

    @property
    def weights(self) -> str:
        """The folder or the name on the hub."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        if self.revision is None and not Path(self.weights).is_dir():
            raise ValueError(f"{self.weights} is not a folder, and a model from the hub needs a revision (a commit)")
        return self

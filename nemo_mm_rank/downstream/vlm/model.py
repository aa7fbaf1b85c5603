"""A stock model of transformers with a LoRA adapter in its language model, everything else frozen."""

from __future__ import annotations

from typing import Any

import torch

from nemo_mm_rank.downstream.settings import VLMSettings
from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.models.weights import load_pretrained, loading_arguments, opening, pick_dtype, resolve

_THINKERS = ("qwen2_5_omni", "qwen2_5_omni_thinker")
"""Of Qwen2.5-Omni only the thinker is loaded: it reads and writes, the rest speaks."""


def load(settings: VLMSettings, device: str, seed: int) -> tuple[Any, Any]:
    """Return the model with a new adapter, on ``device``, and its processor.

    The adapter (Hu et al. 2021, arXiv 2106.09685) is on all linear layers of the language model, not its head; its
    weights are drawn by ``seed``, and it changes nothing before it has learnt.

    Raises:
        ModelError: no such model, weights that are pickles or incomplete, or a model without a chat template.
    """
    library = require("transformers", "models")
    folder = resolve(settings.model, settings.revision)
    arguments = loading_arguments()
    arguments.pop("use_safetensors")
    with opening(settings.model):
        kind = library.AutoConfig.from_pretrained(str(folder), **arguments).model_type
        processor = library.AutoProcessor.from_pretrained(str(folder), **arguments)
    if getattr(processor, "tokenizer", None) is None or not getattr(processor, "chat_template", None):
        raise ModelError(f"{settings.model}: {type(processor).__name__} has no chat template, so it cannot be asked")
    stock = (
        library.Qwen2_5OmniThinkerForConditionalGeneration if kind in _THINKERS else library.AutoModelForMultimodalLM
    )
    model = load_pretrained(stock, folder, settings.model, device, pick_dtype(settings.dtype, device))
    model.requires_grad_(False)
    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft = require("peft", "models")
    adapter = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_language_layers(model),
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, adapter)
    return adapted, processor


def _language_layers(model: Any) -> list[str]:
    inside = {id(module) for module in model.get_decoder().modules()}
    return [
        name for name, module in model.named_modules() if id(module) in inside and isinstance(module, torch.nn.Linear)
    ]

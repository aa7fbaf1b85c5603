"""A stock model of transformers with a LoRA adapter in its language model, everything else frozen."""

from __future__ import annotations

from typing import Any

from nemo_mm_rank.downstream.lora import adapted
from nemo_mm_rank.downstream.settings import VLMSettings
from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.models.weights import load_pretrained, loading_arguments, opening, pick_dtype, resolve

_THINKERS = ("qwen2_5_omni", "qwen2_5_omni_thinker")
"""Of Qwen2.5-Omni only the thinker is loaded: it reads and writes, the rest speaks."""


def load(settings: VLMSettings, device: str, seed: int) -> tuple[Any, Any]:
    """Return the model with a new adapter, on ``device``, and its processor.

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
    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return adapted(model, settings, seed), processor

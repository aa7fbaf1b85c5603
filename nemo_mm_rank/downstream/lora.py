"""A LoRA adapter in a language model (Hu et al. 2021, arXiv 2106.09685), everything else frozen."""

from __future__ import annotations

from typing import Any

import torch

from nemo_mm_rank.downstream.settings import AdapterSettings
from nemo_mm_rank.errors import require


def adapted(model: Any, settings: AdapterSettings, seed: int) -> Any:
    """Return ``model`` with an adapter on all linear layers of its language model, not on its head.

    The adapter's weights are drawn by ``seed``; it changes nothing before it has learnt.

    Args:
        model: of transformers, with a decoder.
        settings: rank, scale and dropout.
        seed: of the adapter's weights.
    """
    model.requires_grad_(False)
    peft, layers = require("peft", "models"), require("transformers", "models").pytorch_utils.Conv1D
    inside = {id(module) for module in model.get_decoder().modules()}
    adapter = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[
            name
            for name, module in model.named_modules()
            if id(module) in inside and isinstance(module, (torch.nn.Linear, layers))
        ],
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, adapter)

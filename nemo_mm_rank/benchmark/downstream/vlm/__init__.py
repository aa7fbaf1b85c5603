"""LoRA fine-tuning of a multimodal language model on a blend, by transformers, peft and accelerate."""

from __future__ import annotations

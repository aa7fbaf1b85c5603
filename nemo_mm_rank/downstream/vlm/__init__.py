"""LoRA fine-tuning of a multimodal language model on a blend, by transformers, peft and accelerate."""

"""Adapting an end-to-end encoder to a blend: LoRA in two stages, as UNITE (arXiv 2505.19650) was trained."""

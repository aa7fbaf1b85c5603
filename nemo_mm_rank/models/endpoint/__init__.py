"""Describers that run elsewhere, behind an interface like OpenAI's: NVIDIA's hosted models, vLLM, and many more."""

from nemo_mm_rank.models.endpoint.describer import EndpointDescriber

__all__ = ["EndpointDescriber"]

"""Expert Embedding Engine: both sides of a pair, embedded by several experts."""

from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.models.expert import Expert, build

__all__ = ["Expert", "ExpertStep", "build"]

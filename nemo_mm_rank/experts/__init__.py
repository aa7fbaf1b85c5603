"""Expert Embedding Engine: both sides of a pair, embedded by several experts."""

from nemo_mm_rank.experts.expert import Expert, build
from nemo_mm_rank.experts.step import ExpertStep

__all__ = ["Expert", "ExpertStep", "build"]

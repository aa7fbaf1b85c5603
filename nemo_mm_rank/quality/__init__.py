"""Other ways to choose a blend, which the ranking is compared with."""

from nemo_mm_rank.quality.settings import TraditionalSettings
from nemo_mm_rank.quality.step import TraditionalStep
from nemo_mm_rank.quality.traditional import Choice, choose, curator_stages

__all__ = ["Choice", "TraditionalSettings", "TraditionalStep", "choose", "curator_stages"]

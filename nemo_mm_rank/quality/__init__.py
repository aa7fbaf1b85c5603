"""Other ways to choose a blend, which the ranking is compared with: text filters alone, and EcoDatum's ensemble."""

from nemo_mm_rank.media.fingerprint import phash
from nemo_mm_rank.quality.ensemble.model import LabelModel, lf_summary
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction, label_votes
from nemo_mm_rank.quality.text_filters import TraditionalSettings, TraditionalStep
from nemo_mm_rank.quality.traditional import Choice, choose, curator_stages

__all__ = [
    "Choice",
    "LabelModel",
    "LabelingFunction",
    "TraditionalSettings",
    "TraditionalStep",
    "choose",
    "curator_stages",
    "label_votes",
    "lf_summary",
    "phash",
]

"""Other ways to choose a blend, which the ranking is compared with.

By text filters alone: `text_filters.TraditionalStep`, `traditional.choose`. By EcoDatum's ensemble of operators:
`operators.steps`, and by hand the names below.
"""

from nemo_mm_rank.quality.ensemble.model import LabelModel, lf_summary
from nemo_mm_rank.quality.ensemble.votes import LabelingFunction, label_votes

__all__ = [
    "LabelModel",
    "LabelingFunction",
    "label_votes",
    "lf_summary",
]

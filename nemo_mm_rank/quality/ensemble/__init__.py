"""EcoDatum's ensemble: labeling functions vote or veto, a label model weighs the votes, and a pair has one quality.

By hand: `label_votes`, `LabelModel`, `lf_summary`. For a pool of shards: `fit` gives an `Ensemble`, `EnsembleStep`
applies it, `choose` takes the best.
"""

from nemo_mm_rank.quality.ensemble.choose import choose
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, Ensemble, Fitted, fit
from nemo_mm_rank.quality.ensemble.model import Fault, LabelModel, Rates, Summary, idle, inverted, lf_summary, summarise
from nemo_mm_rank.quality.ensemble.settings import (
    EnsembleSettings,
    FunctionSettings,
    LabelModelSettings,
    default_functions,
)
from nemo_mm_rank.quality.ensemble.step import QUALITY, VOTES, EnsembleStep
from nemo_mm_rank.quality.ensemble.votes import (
    ABSTAIN,
    REJECT,
    SELECT,
    VETO,
    LabelingFunction,
    PatternCounts,
    label_votes,
)

__all__ = [
    "ABSTAIN",
    "DUPLICATE_OF",
    "QUALITY",
    "REJECT",
    "SELECT",
    "VETO",
    "VOTES",
    "Ensemble",
    "EnsembleSettings",
    "EnsembleStep",
    "Fault",
    "Fitted",
    "FunctionSettings",
    "LabelModel",
    "LabelModelSettings",
    "LabelingFunction",
    "PatternCounts",
    "Rates",
    "Summary",
    "choose",
    "default_functions",
    "fit",
    "idle",
    "inverted",
    "label_votes",
    "lf_summary",
    "summarise",
]

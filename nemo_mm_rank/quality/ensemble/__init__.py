"""EcoDatum's ensemble: labeling functions vote, a label model weighs the votes, and a pair has one quality."""

from nemo_mm_rank.quality.ensemble.guards import Fault, idle, inverted
from nemo_mm_rank.quality.ensemble.model import LabelModel
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.summary import Rates, Summary, lf_summary, summarise
from nemo_mm_rank.quality.ensemble.votes import ABSTAIN, REJECT, SELECT, LabelingFunction, label_votes

__all__ = [
    "ABSTAIN",
    "REJECT",
    "SELECT",
    "Fault",
    "LabelModel",
    "LabelingFunction",
    "PatternCounts",
    "Rates",
    "Summary",
    "idle",
    "inverted",
    "label_votes",
    "lf_summary",
    "summarise",
]

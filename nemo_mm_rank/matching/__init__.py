"""How likely a pair's annotation is its data's own: judged against annotations that were spoilt on purpose."""

from nemo_mm_rank.matching.features import Pairs, Space
from nemo_mm_rank.matching.judge import Judge
from nemo_mm_rank.matching.matcher import Matcher, Sample
from nemo_mm_rank.matching.step import MatchStep

__all__ = ["Judge", "MatchStep", "Matcher", "Pairs", "Sample", "Space"]

"""From embeddings and queries to scores, and from scores to the blend.

``ScoreStep`` scores pairs shard by shard; ``rank`` fits a `scoring.Scoring` on those scores and chooses by it;
``attach_rows`` brings the chosen pairs' own columns back; ``explain`` says why.
"""

from nemo_mm_rank.ranking.blend import Ranking, choose, rank
from nemo_mm_rank.ranking.conditions import Condition
from nemo_mm_rank.ranking.explain import explain
from nemo_mm_rank.ranking.query_scores import ScoreStep, Space
from nemo_mm_rank.ranking.select import quota_counts
from nemo_mm_rank.shards import Files, attach_rows
from nemo_mm_rank.topk import TopK, top_k
from nemo_mm_rank.vectors import cosines

__all__ = [
    "Condition",
    "Files",
    "Ranking",
    "ScoreStep",
    "Space",
    "TopK",
    "attach_rows",
    "choose",
    "cosines",
    "explain",
    "quota_counts",
    "rank",
    "top_k",
]

"""From embeddings and queries to scores, and from scores to the blend.

``ScoreStep`` scores pairs shard by shard; ``rank`` streams over those scores and chooses; ``attach_rows`` brings the
chosen pairs' own columns back; ``explain`` says why.
"""

from nemo_mm_rank.ranking.blend import Ranking, rank
from nemo_mm_rank.ranking.explain import explain
from nemo_mm_rank.ranking.query_scores import ScoreStep, Space, score_shard
from nemo_mm_rank.ranking.select import quota_counts
from nemo_mm_rank.shards import Files, attach_rows
from nemo_mm_rank.topk import TopK, top_k
from nemo_mm_rank.vectors import cosines

__all__ = [
    "Files",
    "Ranking",
    "ScoreStep",
    "Space",
    "TopK",
    "attach_rows",
    "cosines",
    "explain",
    "quota_counts",
    "rank",
    "score_shard",
    "top_k",
]

"""Curator's semantic deduplication over pairs that we have embedded: of pairs that say the same, the best stays."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline

from nemo_mm_rank import curate
from nemo_mm_rank.curator import BlendWriter, MultimodalRankStage, PoolReader
from nemo_mm_rank.demo import make_demo_pool

QUERY = "natural outdoor scenes with sky, sea, grass or sun"
COLUMNS = ["pair_id", "modality", "annotation", "score", "emb_fused"]


def deduplicate(shards: str, duplicates: str) -> set[str]:
    """Return the pairs that a better one makes superfluous, by Curator's workflow; needs a GPU."""
    from nemo_curator.stages.deduplication.semantic.ranking import RankingStrategy
    from nemo_curator.stages.deduplication.semantic.workflow import SemanticDeduplicationWorkflow

    SemanticDeduplicationWorkflow(
        input_path=shards,
        output_path=duplicates,
        n_clusters=4,  # a thousand or more, for millions of pairs
        id_field="pair_id",
        embedding_field="emb_fused",
        metadata_fields=["score"],
        ranking_strategy=RankingStrategy(["score"], ascending=False),  # the first of a group stays: the best
        eps=0.05,  # a cosine of .95 or more is the same
    ).run(RayActorPoolExecutor(show_progress=False))
    return set(pd.read_parquet(Path(duplicates) / "duplicates")["id"])


def main() -> None:
    # 1. As in 02: a finished run, and new pairs scored as it scored its own. What fails is taken out: it has no vector.
    first = make_demo_pool(Path("first"), pairs_per_modality=12)
    run = curate(first, QUERY, "20%", output="run", progress=False)
    new = make_demo_pool(Path("new"), pairs_per_modality=8, seed=1)
    stages = [
        PoolReader(pools=new, rows_per_batch=16),
        MultimodalRankStage(run=run.folder, quarantine="failed"),
        BlendWriter("shards", fields=COLUMNS),
    ]
    Pipeline("embed", stages=stages).run(RayActorPoolExecutor(show_progress=False))

    # 2. What Curator asks of its input: an id that no other row has, and vectors of one width.
    pairs = pd.read_parquet("shards")
    vectors = np.stack(list(pairs["emb_fused"]))
    assert pairs["pair_id"].is_unique
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    print(f"{len(pairs)} pairs in {len(list(Path('shards').glob('*.parquet')))} files, {vectors.shape[1]} numbers each")

    # 3. Its clustering is RAPIDS', so it wants a GPU and the extra nemo-curator[deduplication-cuda12].
    if importlib.util.find_spec("cudf") is None:
        print("no RAPIDS here: shards/ is what SemanticDeduplicationWorkflow reads")
        return
    gone = deduplicate("shards", "duplicates")
    print(f"{len(gone)} pairs say what a better one says:")
    print(pairs[pairs["pair_id"].isin(gone)].drop(columns="emb_fused").to_string())


if __name__ == "__main__":
    main()

"""Our stages in a Curator pipeline: new pairs, scored as a finished run scored its own."""

from pathlib import Path

import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.string import WordCountFilter
from nemo_curator.stages.text.io.writer import ParquetWriter

from nemo_mm_rank import curate
from nemo_mm_rank.curator import MultimodalRankStage, PoolReader, QuarantineStage
from nemo_mm_rank.demo import make_demo_pool

QUERY = "natural outdoor scenes with sky, sea, grass or sun"


def main() -> None:
    # 1. Once, on a pool that stands for what will come: fit statistics, projection and scores.
    first = make_demo_pool(Path("first"), pairs_per_modality=12)
    run = curate(first, QUERY, "20%", output="run", config={"sns": {"mode": "bidirectional"}}, progress=False)

    # 2. Curator's own pipeline: reader, filter, writer. Ours stand among them.
    new = make_demo_pool(Path("new"), pairs_per_modality=8, seed=1)
    pipeline = Pipeline(
        "pairs",
        stages=[
            PoolReader(pools=new, rows_per_batch=32),  # JsonlReader, for pairs: bad rows and media paths are minded
            QuarantineStage("failed"),
            ScoreFilter(WordCountFilter(min_words=3), text_field="annotation", score_field="words"),
            MultimodalRankStage(run=run.folder, quarantine="failed"),
            ParquetWriter("scored", fields=["pair_id", "modality", "annotation", "words", "agreement_score", "score"]),
        ],
    )
    pipeline.run(RayActorPoolExecutor(show_progress=False))

    # 3. Every row is in one of the two folders, or was turned away by Curator's filter.
    scored, failed = pd.read_parquet("scored"), pd.read_parquet("failed")
    rows = len(new.read_text(encoding="utf-8").splitlines())
    print(f"{rows} rows in: {len(scored)} scored, {len(failed)} failed, {rows - len(scored) - len(failed)} filtered")
    print(failed[["pair_id", "step", "error", "message"]].to_string())
    print(scored.sort_values("score", ascending=False).head(5).to_string())


if __name__ == "__main__":
    main()

"""The whole main job as a Curator workflow, in the same run folder as the command line's."""

from pathlib import Path

import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor

from nemo_mm_rank import rank
from nemo_mm_rank.curator import MultimodalRankWorkflow
from nemo_mm_rank.demo import make_demo_pool


def main() -> None:
    pool = make_demo_pool(Path("pool"), pairs_per_modality=12)
    workflow = MultimodalRankWorkflow(
        pool=pool,
        query="natural outdoor scenes with sky, sea, grass or sun",
        budget="20%",
        output="run",
        config={"sns": {"mode": "bidirectional"}, "rows_per_shard": 32},
        # resources={"experts": Resources(cpus=4, gpus=1)},   # by step; also sns, projection, rank
    )
    result = workflow.run(RayActorPoolExecutor(show_progress=False))

    for pipeline, tasks in result.pipeline_tasks.items():
        seconds = sum(stage.process_time for task in tasks for stage in task._stage_perf)
        print(f"{pipeline:<20} {len(tasks)} shards, {seconds:.1f} s of work")
    blend = pd.read_parquet(result.get_metadata("blend"))
    print(blend[["rank", "score", "modality", "pair_id"]].head().to_string())

    # The folder is the command line's: rank it again, explain a pair, or finish there what was begun here.
    print(rank(result.get_metadata("run"), query="a red circle", budget=3).blend[["rank", "pair_id", "reason"]])


if __name__ == "__main__":
    main()

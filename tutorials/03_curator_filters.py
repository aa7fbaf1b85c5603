"""Our filters and modifiers in a Curator script that is made of ScoreFilter and Modify."""

from pathlib import Path

import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.io.reader import JsonlReader
from nemo_curator.stages.text.io.writer import JsonlWriter
from nemo_curator.stages.text.modifiers import Modify

from nemo_mm_rank import curate
from nemo_mm_rank.curator import AnnotationSentenceModifier, BlendMembershipFilter
from nemo_mm_rank.demo import make_demo_pool

QUERY = "natural outdoor scenes with sky, sea, grass or sun"


def main() -> None:
    # 1. A blend, made before.
    pool = make_demo_pool(Path("pool"), pairs_per_modality=12)
    run = curate(pool, QUERY, "20%", output="run", progress=False)

    # 2. A script as Curator users have it: it goes on with the pairs of the blend, and with the sentences of their
    #    annotations that fit the objective.
    objective = AnnotationSentenceModifier(objective=QUERY, sns={"select": "nucleus", "nucleus": 0.7})
    pipeline = Pipeline(
        "script",
        stages=[
            JsonlReader(str(pool), fields=["pair_id", "modality", "annotation"]),
            ScoreFilter(BlendMembershipFilter(run.folder), text_field="pair_id", score_field="reciprocal_rank"),
            Modify(objective, input_fields="annotation", output_fields="trimmed"),
            JsonlWriter("out"),
        ],
    )
    pipeline.run(RayActorPoolExecutor(show_progress=False))

    kept = pd.concat(pd.read_json(file, lines=True) for file in Path("out").glob("*.jsonl"))
    kept = kept.sort_values("reciprocal_rank", ascending=False)
    kept = kept.drop_duplicates("pair_id")  # the demo pool has an id twice, which PoolReader would have refused
    assert kept["pair_id"].tolist() == run.blend["pair_id"].tolist()
    shorter = kept[kept["trimmed"] != kept["annotation"]]
    print(f"{len(kept)} pairs of the blend, {len(shorter)} of them with a shorter annotation:")
    print(shorter[["pair_id", "annotation", "trimmed"]].head(5).to_string())


if __name__ == "__main__":
    main()

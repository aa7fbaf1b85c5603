"""From a pool to a blend, step by step. The page beside this script tells what it prints."""

from pathlib import Path

import dask.dataframe as dd

from nemo_mm_rank import curate, rank
from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.run.curation import explain


def main() -> None:
    # 1. A pool. This one is made by code; yours is a manifest like it.
    pool = make_demo_pool(Path("pool"), pairs_per_modality=12)

    # 2. Curate it: trim, embed, fuse, rank.
    result = curate(
        pool,
        query="natural outdoor scenes with sky, sea, grass or sun",
        budget="20%",
        output="run",
        config={"sns": {"mode": "bidirectional"}},
    )
    print(result.blend[["rank", "score", "modality", "pair_id", "annotation"]].head())

    # 3. Nothing is lost: what is not ranked is quarantined, with the reason.
    print(result.quarantine[["pair_id", "step", "error", "message"]])
    counts = result.manifest["counts"]
    ranked = sum(counts["ranked"].values())
    print(f"{counts['pool']['rows']} rows in = {ranked} ranked + {counts['quarantined']} quarantined")

    # 4. Another objective over the same embeddings takes no time.
    red = rank("run", query="a red circle", budget=5)
    print(red.blend[["rank", "pair_id", "reason"]])

    # 5. Why was this pair chosen, and that one not?
    print(explain("run", str(red.blend["pair_id"].iloc[0])))
    print(explain("run", "bad-corrupt"))

    # 6. A step by hand, on a Dask collection of your own.
    pairs = dd.read_json(str(pool), lines=True).query("modality == 'text'")
    step = ExpertStep(CLASSICAL_EXPERTS, CLASSICAL_MODELS, anchor="text")
    embedded = pairs.map_partitions(step, meta=step.meta(pairs._meta))
    print(embedded[["pair_id", "emb_data__words"]].head(2))


if __name__ == "__main__":
    main()

"""The pairs of the best quality, whatever they are about: EcoDatum on the demo pool, and what its votes are worth."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from nemo_mm_rank.benchmark.planting import plant
from nemo_mm_rank.config import parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.quality import LabelModel, label_votes, lf_summary
from nemo_mm_rank.quality.ensemble.votes import VETO
from nemo_mm_rank.run.ecodatum import EcoDatumConfig, curate

CONSOLE = Console(width=110)


def main() -> None:
    # 1. A pool with noise of known truth: 40 % of the pairs have another pair's annotation, or a medium cut short ...
    pool = plant(str(make_demo_pool(Path("demo"), pairs_per_modality=24)), Path("planted")).pool

    # 2. The job with everything as it is: operators that need no model, duplicates gone, the best 40 % stay.
    result = curate(parse(EcoDatumConfig, {"pools": pool.model_dump(exclude_none=True), "output": "run"}))
    result.print(CONSOLE)
    print(result.blend[["pair_id", "score", "reason"]].head(5).to_string())

    truth = pd.read_parquet("planted/truth.parquet").set_index("pair_id")["clean"]
    quality = result.quality.set_index("pair_id")
    in_blend, in_pool = truth[result.blend["pair_id"]].mean(), truth[quality.index].mean()
    print(f"\nclean: {in_blend:.0%} of the blend, {in_pool:.0%} of the pool")

    # 3. The votes of every pair are in quality.parquet. Which functions are right, and does the label model know? It
    #    has seen no truth, and a veto has no weight in it.
    votes = np.stack(quality["votes"].tolist())
    clean = truth[quality.index].to_numpy()[:, None]
    with np.errstate(invalid="ignore"):
        right = ((votes == clean) & (votes >= 0)).sum(axis=0) / (votes >= 0).sum(axis=0)
    functions = pd.DataFrame(result.manifest["ensemble"]["functions"]).T
    table = functions[["coverage", "conflict", "weight"]].assign(right=right)
    print(table.astype(float).round(2).to_string())

    # 4. The same by hand: any frame with columns of scores makes votes, and the votes of a pool make a model.
    scores = pd.DataFrame({"clip": [0.31, 0.28, 0.18, 0.22], "blurry": [0.7, 0.2, 0.6, np.nan]})
    thresholds = [
        ("clip", 0.19, 0.23, (0, 1)),  # column, reject at or below, select at or above, votes that it may cast
        ("blurry", 0.28, np.inf, (0,)),  # rejects only; without a score no vote
    ]
    print(pd.DataFrame(label_votes(scores, thresholds), columns=["clip", "blurry"]).to_string())
    veto, gone = functions["veto"].to_numpy(dtype=bool), quality["duplicate_of"].notna()
    model = LabelModel().fit(votes[~gone][:, ~veto])
    vetoes = (votes[:, veto] == 0).sum(axis=1) + gone  # that a better pair stays in its place is a veto too
    assert np.allclose(model.predict_proba(votes[:, ~veto]) * VETO**vetoes, quality["quality"])
    data = lf_summary(votes).data
    print(f"coverage {data.coverage:.2f}, overlap {data.overlap:.2f}, conflict {data.conflict:.2f}")


if __name__ == "__main__":
    main()

"""Curator's quickstart with our workflow behind it, and its blend beside the one of text filters alone."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.filters.heuristic.string import NonAlphaNumericFilter, WordCountFilter
from nemo_curator.stages.text.io.reader import JsonlReader
from nemo_curator.stages.text.io.writer import JsonlWriter

from nemo_mm_rank.config import parse
from nemo_mm_rank.curator import MultimodalRankWorkflow
from nemo_mm_rank.demo import QUERY, make_demo_pool
from nemo_mm_rank.run import traditional
from nemo_mm_rank.run.curation import Result

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the adapters of the small real models, which live beside the tests

from benchmarks import real_pool  # noqa: E402

SHOWN = 20


def pool_and_models() -> tuple[Path, dict[str, Any]]:
    """Return the real pool and models where this checkout has them, the demo pool and the default models elsewhere."""
    if missing := real_pool.missing():
        print(f"On the demo pool: {missing}.")
        return make_demo_pool(Path("pool"), pairs_per_modality=40).absolute(), {"queries": QUERY}
    return real_pool.POOL, real_pool.settings("run")


def main() -> None:
    pool, settings = pool_and_models()

    # 1. Curator's quickstart, as it stands in many a script: reader, text filters, writer.
    quickstart = Pipeline(
        "quickstart",
        stages=[
            JsonlReader(str(pool)),
            ScoreFilter(WordCountFilter(min_words=3), text_field="annotation"),
            ScoreFilter(NonAlphaNumericFilter(), text_field="annotation"),
            JsonlWriter("filtered"),
        ],
    )
    quickstart.run(RayActorPoolExecutor(show_progress=False))

    # 2. Our lines: what it has written is ranked, with the media that lie beside the first manifest.
    source = {"path": "filtered", "root": str(pool.parent)}
    workflow = MultimodalRankWorkflow(config={**settings, "pools": source, "budget": "20%", "output": "run"})
    outcome = workflow.run(RayActorPoolExecutor(show_progress=False))
    run = Result(Path(outcome.get_metadata("run")), outcome.get_metadata("manifest"))
    blend = run.blend.set_index("pair_id")

    # 3. The text-only baseline fills the same budget: Curator's own filters at Curator's thresholds, all of which are
    #    in configs/traditional.yaml.
    config = {"run": str(run.folder), "budget": len(blend), "output": "text-only"}
    text_only = traditional.curate(parse(traditional.TraditionalConfig, config))
    theirs = text_only.blend.set_index("pair_id")
    text_only.print()

    pairs = run.pairs(["pair_id", "modality", "annotation", "agreement_score", "error"])
    pairs = pairs[pairs["error"].isna()].set_index("pair_id")
    both = blend.index.intersection(theirs.index)
    print(f"\n{len(blend)} pairs each, of {len(pairs)}; {len(both)} in both blends")
    print("\nwhat they hold, and the mean agreement of data and annotation (out of sample):")
    columns = {"pool": pairs.index, "ours": blend.index, "text only": theirs.index.intersection(pairs.index)}
    mix = {name: pairs.loc[index, "modality"].value_counts() for name, index in columns.items()}
    table = pd.DataFrame(mix).fillna(0).astype(int)
    table.loc["agreement_score"] = {
        name: f"{pairs.loc[index, 'agreement_score'].mean():.3f}" for name, index in columns.items()
    }
    print(table.to_string())
    for name, chosen, other in (("ours", blend, theirs), ("text only", theirs, blend)):
        alone = chosen.loc[chosen.index.difference(other.index, sort=False)]
        print(f"\nchosen by {name} alone: {len(alone)}; the first {min(SHOWN, len(alone))}:")
        print(alone[["modality", "annotation"]].head(SHOWN).to_string(max_colwidth=90))


if __name__ == "__main__":
    main()

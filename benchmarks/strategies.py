"""Every strategy on the real pool with planted noise: ``python -m benchmarks.strategies --kinds all --query scenes``.

Two objectives: natural scenes, for which relevance is the modality (image, audio and video are on topic), and a dog
playing outdoors, for which it is the caption (a dog is in it) of whatever modality. The words' expert and the features'
are the small real models of `real_pool`; the trained model's features come from neither.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import real_models, real_pool
from nemo_mm_rank.benchmark.job import benchmark
from nemo_mm_rank.benchmark.settings import BenchmarkConfig
from nemo_mm_rank.config import parse

OBJECTIVES: dict[str, dict[str, Any]] = {
    "scenes": {
        "queries": real_pool.SCENES,
        "budget": "10%",
        "relevant": {"column": "modality", "values": ["image", "audio", "video"]},
        "validation": {"pairs": 100},
    },
    "dog": {
        # Some 160 pairs are on topic, so a tenth of the pool would be wrong for the most part, whoever chooses.
        "queries": real_pool.DOG,
        "budget": "2%",
        "relevant": {"column": "annotation", "pattern": r"\b(dogs?|pupp(y|ies)|barking)\b"},
        "validation": {"pairs": 20},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", choices=OBJECTIVES, default="scenes")
    parser.add_argument("--kinds", choices=["all", "swaps"], default="all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of training; 0: none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--static", action="store_true", help="texts by WordLlama, a hundred times as fast as MiniLM")
    parser.add_argument("--select", choices=["nucleus", "pool"], default="nucleus", help="how SNS chooses what to keep")
    parser.add_argument("--shared", action="store_true", help="models stay loaded: faster, but costs say less")
    parser.add_argument("--strategies", nargs="*", help="default: all")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    values = real_pool.settings(options.output, **(real_models.static("labels") if options.static else {}))
    values["sns"] = {"select": options.select}
    values.update(OBJECTIVES[options.query])
    values.update(
        plant={"total": 0.4, "kinds": options.kinds},
        seeds=options.seeds,
        downstream="off" if options.steps == 0 else {"steps": options.steps} if options.steps else {},
        engine={"workers": options.workers},
        rows_per_shard=512,
        cold=not options.shared,
        # Near-duplicates are among what is planted, and whoever expects them would say so.
        ranking={"collapse_duplicates": True},
    )
    if options.strategies:
        values["strategies"] = options.strategies
    console = Console(width=200)
    benchmark(parse(BenchmarkConfig, values), console).print(console)


if __name__ == "__main__":
    main()

"""Run every benchmark, one after the other: ``python -m benchmarks``."""

import runpy

for name in (
    "ranking_topk",
    "quality",
    "gaps",
    "mamcl",
    "traditional",
    "label_model",
    "ecodatum",
    "operators",
    "duplicates",
    "selection",
    "downstream",
    "strategies",
    "downstream",
    "main_job",
    "sns_effect",
    "repair",
    "encoder_overhead",
    "curator_overhead",
):
    print(f"\n## {name}\n", flush=True)
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")

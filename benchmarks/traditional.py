"""The text-only baseline on the real pool: who passes Curator's filters, and what its blend is worth for the scenes.

    python -m benchmarks.traditional [--budget 20%]

Precision is the share of the blend that the objective asks for (image, audio, video); average precision is that of the
whole pool in the baseline's order. Beside them stands what a random order gives on average: the share in the pool.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks import real_pool
from benchmarks.quality import precision, relevant
from nemo_mm_rank.config import parse
from nemo_mm_rank.run.traditional import TraditionalConfig, TraditionalResult, curate


def run(folder: Path, budget: str, language: bool) -> tuple[TraditionalResult, float]:
    """Return the baseline's result on the real pool, and the seconds that it took."""
    settings = {"language": {"model": str(real_pool.MODELS / "lid.176.ftz"), "lang": "en"}} if language else {}
    config = {"pools": str(real_pool.POOL), "budget": budget, "output": str(folder), "traditional": settings}
    started = time.perf_counter()
    result = curate(parse(TraditionalConfig, config))
    return result, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="20%")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    print("| | pairs in blend | precision | AP | random | seconds |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, language in (("traditional", False), ("traditional, English only", True)):
            whole, seconds = run(Path(temporary) / name / "whole", "100%", language)
            blend, _ = run(Path(temporary) / name / "blend", options.budget, language)
            found = relevant(blend.blend, real_pool.SCENES)
            everything = relevant(whole.blend, real_pool.SCENES)
            average = precision(whole.blend, real_pool.SCENES)
            figures = f"{found.mean():.3f} | {average:.3f} | {everything.mean():.3f} | {seconds:.1f}"
            print(f"| {name} | {len(found):,} | {figures} |")
        print("\nBlend by modality:", blend.manifest["counts"]["blend"])
    blend.print(Console(width=100))


if __name__ == "__main__":
    main()

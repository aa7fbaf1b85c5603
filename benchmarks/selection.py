"""How many of a blend's pairs are on topic and clean, on the real pool with planted noise of 40 %.

    python -m benchmarks.selection [--kinds swaps all] [--seeds 0 1 2 3 4] [--folder FOLDER]

Noise: annotations swapped within their modality (the hardest kind), or the mix of all kinds. Objectives: natural scenes
(relevant: images, sounds and videos; a tenth of the pool), a dog outdoors and people in a street (relevant: pairs whose
own annotation says so; a fiftieth). Every seed has a planting and a fit of its own; what was planted enters neither.
Ours, alone and with EcoDatum's quality as one more condition, its parts, older ways of ours, and the baselines, all
from the same embeddings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import real_pool
from nemo_mm_rank import curate, rank
from nemo_mm_rank.benchmark.planting import PlantSettings, plant
from nemo_mm_rank.config import RankingSettings, parse
from nemo_mm_rank.measures.selection import Labels, selection
from nemo_mm_rank.measures.statistics import Interval, mean_interval, paired_difference
from nemo_mm_rank.ranking import Ranking
from nemo_mm_rank.run import ecodatum, traditional
from nemo_mm_rank.run.ecodatum import EcoDatumConfig
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.traditional import TraditionalConfig

MEDIA = ("image", "audio", "video")
STREET = "people in a city street"
OBJECTIVES: dict[str, tuple[str, float, str | None]] = {
    "scenes": (real_pool.SCENES, 0.1, None),
    "dog": (real_pool.DOG, 0.02, r"\bdogs?\b"),
    "street": (STREET, 0.02, r"\b(streets?|sidewalks?)\b"),
}
"""Name -> query, share of the pool, and what a relevant pair's annotation says (None: any medium is relevant)."""

OURS, QUALITY = "ranking (default)", "with EcoDatum's quality (strategy ranked-quality)"
PLAIN: dict[str, Any] = {"conditions": {}}
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "near-duplicates collapsed": {"collapse_duplicates": True},
    "without the weights for broad objectives": {"broad": None},
    "without the condition": PLAIN,
    "strength of match 1": {"conditions": {"match": 1.0}},
    "strength of match 2": {"conditions": {"match": 2.0}},
}
BASELINES: dict[str, dict[str, Any]] = {
    "annotation's query alone": {**PLAIN, "weights": {"annotation": 1.0}},
    "best single expert (words)": {**PLAIN, "weights": {"words": 1.0}},
}

FIRST = "on topic first (twice the budget), then match"
Precisions = dict[str, list[float]]
"""Strategy -> one figure per seed."""


def relevance(objective: str) -> dict[str, bool]:
    """Return which pairs of the pool, as it is before anything is planted, an objective asks for."""
    pattern = OBJECTIVES[objective][2]
    rows = map(json.loads, real_pool.POOL.read_text(encoding="utf-8").splitlines())
    if pattern is None:
        return {row["pair_id"]: row["modality"] in MEDIA for row in rows}
    return {row["pair_id"]: bool(re.search(pattern, row["annotation"], re.IGNORECASE)) for row in rows}


def blends(run: Path, quality: Path, query: str, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the blends of all that rank by the run's own embeddings; ``quality`` is the folder of EcoDatum's job."""
    with_quality = {**ecodatum.as_condition(RankingSettings(), quality), "collapse_duplicates": True}
    for name, changes in {**VARIANTS, QUALITY: with_quality, **BASELINES}.items():
        yield name, rank(run, query, budget=count, ranking=changes, trust_run=True).blend["pair_id"].tolist()
    # A condition of next to no weight: the order is the topic's alone, and the chances stand beside it.
    rank(run, query, budget=2 * count, ranking={"conditions": {"match": 1e-9}}, trust_run=True)
    chosen = Ranking.load(RunFolder.at(run).ranking).chosen
    order = np.argsort(-chosen["chance_match"].fill_null(0.5).to_numpy(), kind="stable")
    yield FIRST, chosen["pair_id"].take(order[:count]).to_pylist()


def measure(folder: Path, kinds: str, seeds: list[int]) -> dict[str, Precisions]:
    """Return objective -> strategy -> precision of every seed; what seeds have in common is embedded once."""
    found: dict[str, Precisions] = {name: defaultdict(list) for name in OBJECTIVES}
    for seed in seeds:
        here = folder / f"{kinds}-{seed}"
        planted = plant(real_pool.POOL, here / "pool", parse(PlantSettings, {"kinds": kinds}), seed)
        pools = [planted.pool.model_dump(mode="json")]
        run = curate(config={**real_pool.settings(here / "run", seed=seed), "pools": pools}, progress=False).folder
        ids = planted.truth["pair_id"].to_pylist()
        largest = int(max(share for _, share, _ in OBJECTIVES.values()) * len(ids))
        job = {"run": str(run), "output": str(here / "ecodatum"), "trust_run": True}
        judged = ecodatum.curate(parse(EcoDatumConfig, job))
        filters = parse(TraditionalConfig, {"pools": pools, "budget": largest, "output": str(here / "traditional")})
        others = {
            "random": np.random.default_rng([seed, 7]).permutation(ids).tolist(),
            "traditional": traditional.curate(filters).blend["pair_id"].tolist(),
        }
        for objective, (query, share, _) in OBJECTIVES.items():
            on_topic = relevance(objective)
            labels = Labels.of(planted.truth, np.array([on_topic[pair_id] for pair_id in ids]))
            count = int(share * len(ids))
            for name, blend in (*blends(run, judged.folder, query, count), *others.items()):
                found[objective][name].append(selection(blend[:count], labels)["precision"])
        scenes = " / ".join(f"{found['scenes'][name][-1]:.3f}" for name in (OURS, QUALITY))
        print(f"{kinds}, seed {seed}: scenes {scenes}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Precisions]) -> Iterator[str]:
    """Yield a markdown table: mean precision with its 95 % interval, and what ours is above the best baseline."""
    baselines = [*BASELINES, "random", "traditional"]
    yield "| | " + " | ".join(found) + " |"
    yield "|---" * (len(found) + 1) + "|"
    for name in [*VARIANTS, QUALITY, FIRST, *baselines]:
        cells = [_cell(mean_interval(precisions[name])) for precisions in found.values()]
        yield f"| {name} | {' | '.join(cells)} |"
    for ours in (OURS, QUALITY):
        cells = []
        for precisions in found.values():
            best = max(baselines, key=lambda name: float(np.mean(precisions[name])))
            cells.append(f"{_cell(paired_difference(precisions[ours], precisions[best]))} ({best.split(' (')[0]})")
        yield f"| {ours.split(' (')[0]}: above the best baseline | {' | '.join(cells)} |"


def _cell(interval: Interval) -> str:
    return f"{interval.value:.3f} +- {interval.high - interval.value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=["swaps", "all"], default=["swaps", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        for kinds in options.kinds:
            found = measure(options.folder or Path(temporary), kinds, options.seeds)
            print(f"\n{kinds}: precision (on topic and clean), n = {len(options.seeds)}, mean +- 95 % by Student's t\n")
            print("\n".join(table(found)), flush=True)


if __name__ == "__main__":
    main()

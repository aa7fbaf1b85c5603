"""What MAMCL as the projection's objective does to recall, within a modality and across: on the real pool, held out.

    python -m benchmarks.mamcl [--seeds 0 1 2] [--folder FOLDER]

Annotations search the data of their fold, embedded by the network that saw none of them. *Same*: among the data of the
own modality; *mixed*: among all; *calibrated*: among all, scores standardised per query and modality. AP is that of the
whole ranking, with the calibration that the run chooses by itself and with none.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import real_pool
from benchmarks.quality import precision
from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.projection import AGREEMENT, folds_of
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ANNOTATION, FUSED, MODALITY, annotation_column

OBJECTIVES: dict[str, dict[str, float]] = {
    "contrastive": {"contrastive_weight": 1, "alignment_weight": 0, "residual_bias_weight": 0},
    "contrastive, alignment, residual (default)": {},
    "MAMCL": {"mamcl_weight": 1, "contrastive_weight": 0, "alignment_weight": 0, "residual_bias_weight": 0},
    "MAMCL, residual": {"mamcl_weight": 1, "contrastive_weight": 0, "alignment_weight": 0},
    "MAMCL, alignment, residual": {"mamcl_weight": 1, "contrastive_weight": 0},
    "MAMCL, contrastive": {"mamcl_weight": 1, "alignment_weight": 0, "residual_bias_weight": 0},
    "MAMCL, default": {"mamcl_weight": 1},
}
COLUMNS = ("same R@1", "same R@10", "mixed R@1", "mixed R@10", "calibrated R@1", "calibrated R@10", "wrong modality")


def standardised(scores: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
    """Return ``(q, n)`` scores standardised for each query over the items of each modality."""
    out = torch.zeros_like(scores)
    for code in modality.unique():
        own = modality == code
        part = scores[:, own]
        spread = part.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        out[:, own] = (part - part.mean(1, keepdim=True)) / spread
    return out


def ranks(scores: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    """Return how many items stand before each query's own one, those in ``among`` only; ties count half."""
    own = scores.diagonal()[:, None]
    before = (scores > own).double() + 0.5 * ((scores == own) & ~torch.eye(len(scores), dtype=torch.bool)).double()
    return (before if among is None else before * among).sum(1)


def recalls(data: torch.Tensor, annotations: torch.Tensor, modality: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return for every query of one fold whether it found its own data, by column."""
    scores = F.normalize(annotations, dim=1) @ F.normalize(data, dim=1).T
    same = modality[:, None] == modality
    places = {"same": ranks(scores, same), "mixed": ranks(scores), "calibrated": ranks(standardised(scores, modality))}
    found = {f"{name} R@{k}": (place < k).double() for name, place in places.items() for k in (1, 10)}
    return found | {"wrong modality": (modality[scores.argmax(1)] != modality).double()}


def measure(result: Result, seed: int, folds: int) -> dict[str, float]:
    """Return the mean over all pairs, each searched for in its own fold."""
    frame = result.pairs([ANNOTATION, MODALITY, FUSED, annotation_column("minilm"), AGREEMENT])
    frame = frame[frame[AGREEMENT].notna()]
    texts, modality = frame[ANNOTATION].to_list(), torch.from_numpy(np.unique(frame[MODALITY], return_inverse=True)[1])
    data, annotations = (frames.vectors(frame, name).values for name in (FUSED, annotation_column("minilm")))
    fold = torch.from_numpy(folds_of(texts, folds, seed))
    parts = [recalls(data[fold == k], annotations[fold == k], modality[fold == k]) for k in range(folds)]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in COLUMNS}


def one(folder: Path, seed: int, changes: Mapping[str, float]) -> dict[str, float]:
    """Fit with one objective and seed, and measure."""
    result = curate(config=real_pool.settings(folder, seed=seed, budget="100%", projection=changes), progress=False)
    found = measure(result, seed, folds=4)
    chosen = result.manifest["ranking"]["settings"]["calibration"]
    for query, name in ((real_pool.SCENES, "scenes"), (real_pool.DOG, "dog")):
        off = precision(rank(folder, query, ranking={"calibration": "off"}).blend, query)
        found[f"AP {name}, off"] = off
        found[f"AP {name}"] = off if chosen == "off" else precision(rank(folder, query).blend, query)
        fused = {"weights": {"fused": 1.0}, "calibration": "off"}
        found[f"AP {name}, fused alone"] = precision(rank(folder, query, ranking=fused).blend, query)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep the run here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, changes in OBJECTIVES.items():
            for seed in options.seeds:
                for column, value in one(folder, seed, changes).items():
                    found[name][column].append(value)
    columns = list(next(iter(found.values())))
    print(f"mean of seeds {options.seeds}, in brackets the standard deviation")
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, values in found.items():
        cells = []
        for column in columns:
            got = values[column]
            spread = f" ({statistics.stdev(got):.3f})" if len(got) > 1 else ""
            cells.append(f"{statistics.mean(got):.3f}{spread}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What MAMCL as the projection's objective does to recall, within a modality and across: on the real pool, held out.

    python -m benchmarks.mamcl [--seeds 0 1 2] [--folder FOLDER]

Annotations search the data of their fold, embedded by the network that saw none of them: among the data of the own
modality (*same*), or among all (*mixed*), as they are or with the scores of each modality calibrated, per query, to
those of its annotations (*matched*, the own one left out) or to mean 0 and deviation 1 (*zscore*). AP by the fused
cosine alone under the same three, and by the whole ranking.
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
from benchmarks.quality import precision, relevant
from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.measures import average_precision
from nemo_mm_rank.models.base import encode_queries
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.projection import AGREEMENT, folds_of
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ANNOTATION, FUSED, MODALITY, annotation_column

OBJECTIVES: dict[str, dict[str, float]] = {
    "contrastive": {"contrastive_weight": 1, "alignment_weight": 0, "residual_bias_weight": 0},
    "contrastive, alignment, residual (default)": {},
    "MAMCL": {"mamcl_weight": 1, "contrastive_weight": 0, "alignment_weight": 0, "residual_bias_weight": 0},
    "MAMCL, alignment, residual": {"mamcl_weight": 1, "contrastive_weight": 0},
    "MAMCL, contrastive": {"mamcl_weight": 1, "alignment_weight": 0, "residual_bias_weight": 0},
    "MAMCL, default": {"mamcl_weight": 1},
}
HOW = ("off", "matched", "zscore")
QUERIES = {"scenes": real_pool.SCENES, "dog": real_pool.DOG}


def calibrated(
    scores: torch.Tensor, modality: torch.Tensor, how: str, annotations: torch.Tensor, own: bool = False
) -> torch.Tensor:
    """Return ``(q, n)`` scores, calibrated for each query over the items of each modality.

    Args:
        scores: ``(q, n)``.
        modality: ``(n,)`` codes.
        how: see `HOW`.
        annotations: ``(q, n)`` scores of the items' annotations.
        own: query i is the annotation of item i, which must not tell of what modality its item is.
    """
    if how == "off":
        return scores
    out = torch.zeros_like(scores)
    for code in torch.unique(modality):
        mine = modality == code
        part, reference = scores[:, mine], annotations[:, mine]
        if own:
            reference = reference.masked_fill(torch.eye(len(scores), dtype=torch.bool)[:, mine], float("nan"))
        mean, spread = part.mean(1, keepdim=True), part.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        out[:, mine] = (part - mean) / spread
        if how == "matched":
            there = reference.nanmean(1, keepdim=True)
            out[:, mine] = out[:, mine] * (reference - there).square().nanmean(1, keepdim=True).sqrt() + there
    return out


def found(scores: torch.Tensor, among: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
    """Return k -> for each query whether its own item is among the best k (of those in ``among``); ties count half."""
    own = scores.diagonal()[:, None]
    before = (scores > own).double() + 0.5 * ((scores == own) & ~torch.eye(len(scores), dtype=torch.bool)).double()
    place = (before if among is None else before * among).sum(1)
    return {k: (place < k).double() for k in (1, 10)}


def recalls(data: torch.Tensor, annotations: torch.Tensor, modality: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return for every query of one fold whether it found its own data, by column."""
    scores, texts = annotations @ data.T, annotations @ annotations.T
    columns = {f"same R@{k}": hit for k, hit in found(scores, modality[:, None] == modality).items()}
    for how in HOW:
        hits = found(calibrated(scores, modality, how, texts, own=True))
        columns |= {f"mixed R@{k}{'' if how == 'off' else ', ' + how}": hit for k, hit in hits.items()}
    return columns | {"wrong modality": (modality[scores.argmax(1)] != modality).double()}


def measure(result: Result, seed: int, folds: int, queries: torch.Tensor) -> dict[str, float]:
    """Return recall, each pair searched for in its own fold, and the AP of the fused cosine with ``queries``."""
    anchor = annotation_column("minilm")
    frame = result.pairs([ANNOTATION, MODALITY, FUSED, anchor, AGREEMENT])
    frame = frame[frame[AGREEMENT].notna()].reset_index(drop=True)
    modality = torch.from_numpy(np.unique(frame[MODALITY], return_inverse=True)[1])
    data, annotations = (F.normalize(frames.vectors(frame, name).values, dim=1) for name in (FUSED, anchor))
    fold = torch.from_numpy(folds_of(frame[ANNOTATION].to_list(), folds, seed))
    parts = [recalls(data[fold == k], annotations[fold == k], modality[fold == k]) for k in range(folds)]
    means = {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}
    for how in HOW:
        scores = calibrated(queries @ data.T, modality, how, queries @ annotations.T)
        for row, (name, text) in enumerate(QUERIES.items()):
            means[f"AP {name}, fused, {how}"] = average_precision(scores[row].numpy(), relevant(frame, text))
    return means


def one(folder: Path, seed: int, changes: Mapping[str, float]) -> dict[str, float]:
    """Fit with one objective and seed, and measure."""
    config = parse(Config, real_pool.settings(folder, seed=seed, budget="100%", projection=changes))
    result = curate(config=config, progress=False)
    vectors = encode_queries(load_encoder("minilm", config.models), list(QUERIES.values())).vectors.cpu()
    means = measure(result, seed, config.projection.folds, F.normalize(vectors, dim=1))
    for how in HOW if config.projection.only_mamcl else HOW[:1]:
        for name, text in QUERIES.items():
            blend = rank(folder, text, ranking={"calibration": how}, trust_run=True).blend
            means[f"AP {name}, ranking, {how}"] = precision(blend, text)
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep the run here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for seed in options.seeds:
            for name, changes in OBJECTIVES.items():
                measured = one(folder, seed, changes)
                print(f"seed {seed}, {name}: {measured}", file=sys.stderr, flush=True)
                for column, value in measured.items():
                    table[name][column].append(value)
    columns = list(dict.fromkeys(column for values in table.values() for column in values))
    print(f"mean of seeds {options.seeds}, in brackets the standard deviation")
    print(f"| | {' | '.join(table)} |")
    print("|---" * (len(table) + 1) + "|")
    for column in columns:
        cells = []
        for values in table.values():
            got = values.get(column)
            spread = f" ({statistics.stdev(got):.3f})" if got and len(got) > 1 else ""
            cells.append(f"{statistics.mean(got):.3f}{spread}" if got else "-")
        print(f"| {column} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

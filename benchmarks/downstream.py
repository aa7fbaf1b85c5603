"""Whether the small downstream model can tell good data from bad: ``python -m benchmarks.downstream``.

On the real pool, with a validation set of clean natural scenes. Blends of one size, the same seeds, start, steps and
tokens: natural scenes as they are; the same pairs with their annotations exchanged within each modality, so that only
what the data says differs; and pairs of the whole pool at random. Besides, how much of the first figure rests on the
data: the same training, judged with every validation pair's features exchanged for another's of its modality, and
training and judging without any features.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from benchmarks import real_pool
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.downstream import Features, SmallSettings, features, train
from nemo_mm_rank.downstream.schedule import evaluation_steps
from nemo_mm_rank.downstream.small import learn, perplexity
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.run.engine import SerialEngine
from nemo_mm_rank.run.store import Shards

MEDIA = ("image", "audio", "video")
Rows = npt.NDArray[np.int64]

CLEAN = "natural scenes"
TEXTS = {modality: {"class": "hashed-text"} for modality in ("text", "code")}


def corpus(folder: Path, models: bool) -> tuple[Features, npt.NDArray[np.str_]]:
    """Return the pool's features, classical or by small real models, and the rows' modalities."""
    values = real_pool.settings(folder / "unused")
    chosen: dict[str, object] = {}
    if models:
        own = values["models"]
        chosen = {"features": {**dict.fromkeys(("image", "video"), own["mobilenet"]), "audio": own["yamnet"], **TEXTS}}
        values["experts"] = [{"name": "minilm", "kind": "end-to-end", "encoder": "minilm"}]
    config = parse(Config, values)
    report = ingest(config.pools, folder / "pool")
    shards = Shards((folder / "pool",), report.shards)
    made = features({"pool": shards}, parse(SmallSettings, chosen), config, folder / "features", SerialEngine())
    assert isinstance(made, Features)
    modality = [shards.read(part, ["modality"])["modality"].to_pylist() for part in range(shards.count)]
    return made, np.array([value for part in modality for value in part])


def exchanged(rows: Rows, modality: npt.NDArray[np.str_], random: np.random.Generator) -> Rows:
    """Return for every row of ``rows`` another one of its modality, each once."""
    out = rows.copy()
    for value in np.unique(modality[rows]):
        own = random.permutation(np.flatnonzero(modality[rows] == value))
        out[own] = rows[np.roll(own, 1)]
    return out


def with_features_of(made: Features, rows: Rows, others: Rows) -> Features:
    """Give ``rows`` the features of ``others``."""
    source = np.arange(len(made.modality))
    source[rows] = others
    where = torch.from_numpy(source)
    columns = tuple(Vectors(column.values[where], column.valid[where]) for column in made.columns)
    return dataclasses.replace(made, columns=columns)


def without_features(made: Features) -> Features:
    """Leave of the features no more than which modality a row has."""
    return dataclasses.replace(
        made, columns=tuple(Vectors(torch.zeros_like(column.values), column.valid) for column in made.columns)
    )


def judged_twice(made: Features, misread: Features, rows: Rows, validation: Rows, seed: int) -> tuple[float, float]:
    """Return the best perplexity of one training, judged by the pairs' own features and by others'."""
    settings = SmallSettings()
    tokens = made.vocabulary.encode([text or "" for text in made.annotations], settings.longest)
    judged_at = evaluation_steps(settings.steps, settings.evaluations)
    values = [
        [perplexity(network, told, tokens, torch.from_numpy(validation)) for told in (made, misread)]
        for step, network in learn(made, tokens, torch.from_numpy(rows), settings, seed)
        if step in judged_at
    ]
    own, others = zip(*values, strict=True)
    return min(own), min(others)


def measure(
    made: Features, modality: npt.NDArray[np.str_], seeds: int, budget: int, judged: int, few: bool
) -> dict[str, list[float]]:
    """Return arm -> the best perplexity of every seed."""
    settings = SmallSettings()
    media = np.flatnonzero(np.isin(modality, MEDIA))
    validation = np.random.default_rng(0).permutation(media)[:judged]
    texts = {made.annotations[row] for row in validation}
    # No pair to learn from says what one that is judged says.
    free = np.array([row for row in range(len(modality)) if made.annotations[row] not in texts])
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        random = np.random.default_rng(1000 + seed)
        scenes = random.permutation(np.intersect1d(media, free))[:budget]
        anything = random.permutation(free)[:budget]
        swapped = list(made.annotations)
        for row, other in zip(scenes, exchanged(scenes, modality, random), strict=True):
            swapped[row] = made.annotations[other]
        misread = with_features_of(made, validation, exchanged(validation, modality, random))
        own, others = judged_twice(made, misread, scenes, validation, seed)
        found.setdefault(CLEAN, []).append(own)
        found.setdefault("the same, judged by others' features", []).append(others)
        arms = [("annotations exchanged within modality", made, swapped, scenes)]
        if not few:
            arms.append(("no features", without_features(made), made.annotations, scenes))
            arms.append(("the whole pool at random", made, made.annotations, anything))
        for name, told, learnt, rows in arms:
            one = train(told, learnt, rows.tolist(), validation.tolist(), settings, seed)
            found.setdefault(name, []).append(one.best)
            print(f"seed {seed}, {name}: {one.best:.2f} in {one.seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", choices=["classical", "models"], default="classical")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=325)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="keep the features here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    models = options.features == "models"
    with tempfile.TemporaryDirectory() as temporary:
        made, modality = corpus(options.folder or Path(temporary), models)
    torch.set_num_threads(1)
    found = measure(made, modality, options.seeds, options.budget, options.validation, few=models)
    print(
        f"Features: {options.features}. Blends of {options.budget} pairs, {options.validation} validation pairs, "
        f"{options.seeds} seeds."
    )
    print("\n| | best perplexity (sd) | above natural scenes, paired (95 %) | p |\n|---|---|---|---|")
    for name, best in found.items():
        print(f"| {name} | {statistics.mean(best):.2f} ({statistics.stdev(best):.2f}) | {paired(best, found[CLEAN])} |")


def paired(best: list[float], clean: list[float]) -> str:
    """Return the mean difference with its interval (Student t over seeds), and the p value."""
    differences = np.array(best) - np.array(clean)
    if not differences.any():
        return "- | -"
    half = stats.t.ppf(0.975, len(best) - 1) * differences.std(ddof=1) / len(best) ** 0.5
    p = stats.ttest_1samp(differences, 0.0).pvalue
    return f"{differences.mean():+.2f} [{differences.mean() - half:+.2f}, {differences.mean() + half:+.2f}] | {p:.4f}"


if __name__ == "__main__":
    main()

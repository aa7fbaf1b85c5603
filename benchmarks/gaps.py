"""How far modalities lie apart, without the noise of few pairs, with recall and precision beside it, on every pool.

    python -m benchmarks.gaps [--seeds 0 1 2] [--pools real mixed ...] [--whisper FOLDER] [--folder FOLDER]

Pools: `real` and `mixed`; `demo`, which is built in; and two in which the same contents come in two modalities:
`captions` (COCO photos, and the other captions of each as a text) and `speech` (photos, and their captions read aloud,
through a recogniser). There the poster's own formula speaks of modalities alone. Every figure is out of sample and
stands beside those of each expert; AP is by the cosine with the query in that space alone, mean over the pool's
objectives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F
from rich.console import Console

from benchmarks import real_pool, weights
from benchmarks.quality import PLAIN
from nemo_mm_rank import curate, rank
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.measures import average_precision
from nemo_mm_rank.measures.gaps import Square, matched_gap_square, pooled
from nemo_mm_rank.measures.statistics import Interval
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import gather
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.sampling import folds_of
from nemo_mm_rank.schema import ANNOTATION, FUSED, MODALITY, annotation_column

DATA = weights.SHARED / "data"
MONEY = "a problem about money, prices and cost"
WORDS = "emb_data__words"

Truth = Callable[[pd.DataFrame], "pd.Series[bool]"]


def _says(pattern: str) -> Truth:
    return lambda blend: blend[ANNOTATION].str.contains(pattern, case=False, regex=True)


def _dollars(blend: pd.DataFrame) -> pd.Series[bool]:
    return (blend[MODALITY] == "text") & blend[ANNOTATION].str.contains(r"\$|dollar", case=False, regex=True)


def _scenes(blend: pd.DataFrame) -> pd.Series[bool]:
    return blend["on_topic"] if "on_topic" in blend else blend[MODALITY].isin(["image", "audio", "video"])


DOGS: tuple[str, Truth] = (real_pool.DOG, _says(r"\bdogs?\b"))
SCENES: tuple[str, Truth] = (real_pool.SCENES, _scenes)
OBJECTIVES: dict[str, list[tuple[str, Truth]]] = {
    "real": [SCENES, DOGS],
    "mixed": [DOGS, (MONEY, _dollars)],
    "demo": [SCENES],
    "captions": [
        ("people playing sports", _says(r"\b(?:tennis|baseball|skateboard|surf|ski|snowboard|frisbee)")),
        DOGS,
    ],
    "speech": [DOGS],
}


def source(name: str, folder: Path) -> dict[str, Any]:
    """Return a pool's manifest, made where it is not there."""
    if name == "real":
        return {"path": str(real_pool.POOL)}
    if name == "mixed":
        return {"path": str(DATA / "mixed_pool.jsonl")}
    if name == "demo":
        return {"path": str(make_demo_pool(folder / "pools" / "demo", 50))}
    path = folder / "pools" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _captions() if name == "captions" else _speech()
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path), "root": str(DATA)}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _captions() -> list[dict[str, Any]]:
    """Return COCO photos, each with its first caption, and as a text its other captions, with the same one."""
    rows = []
    for pair in (row for row in _read(real_pool.POOL) if row["pool"] == "coco"):
        first, _, others = pair["annotation"].partition(". ")
        photo = {"modality": "image", "data": f"real_pool/{pair['data']}"}
        rows += [
            {"pair_id": f"{kind}-{pair['pair_id']}", **data, "annotation": f"{first}."}
            for kind, data in (("photo", photo), ("captions", {"modality": "text", "data": others}))
        ]
    return rows


def _speech() -> list[dict[str, Any]]:
    """Return sounds in which a caption is read, and the photos that the captions are of, with the same captions."""
    rows = []
    for pair in _read(DATA / "spoken_pool.jsonl"):
        sound = {"modality": "audio", "data": pair["data"]}
        photo = {"modality": "image", "data": f"real_pool/{pair['photo']}"}
        rows += [
            {"pair_id": f"{kind}-{pair['pair_id']}", **data, "annotation": pair["annotation"]}
            for kind, data in (("sound", sound), ("photo", photo))
        ]
    return rows


def settings(name: str, folder: Path, seed: int, whisper: Path | None) -> dict[str, Any]:
    """Return the run's configuration; with a recogniser, sounds are described by what is said in them."""
    chosen = real_pool.settings(folder / name, pools=[source(name, folder)], budget="100%", seed=seed)
    if name == "speech":
        chosen["models"]["speech"] = {"class": "whisper", "path": str(whisper)}
        chosen["experts"][0]["describers"]["audio"] = "speech"
        del chosen["models"]["sounds"]
    return chosen


def by_modality(folder: Path, config: Config) -> dict[str, dict[str, tuple[Interval, int]]]:
    """Return space -> modality -> matched gap, and the different annotations of the modality."""
    run = RunFolder.at(str(folder))
    anchor = annotation_column(config.anchor)
    shards = State.load(run).open(run)
    columns = [FUSED, WORDS]
    words, vectors = gather(shards, [MODALITY, ANNOTATION], [anchor, *columns], 1 << 20, 0)
    modality, annotation = (np.array(words[name], dtype=str) for name in (MODALITY, ANNOTATION))
    folds = folds_of(annotation.tolist(), config.projection.folds, config.seed)
    found: dict[str, dict[str, tuple[Interval, int]]] = defaultdict(dict)
    for space in columns:
        for name in np.unique(modality):
            rows = [np.flatnonzero((folds == fold) & (modality == name)) for fold in range(config.projection.folds)]
            squares = [_square(vectors[space], vectors[anchor], annotation, part) for part in rows if len(part)]
            found[space][name] = pooled(squares).gap(), len(set(annotation[modality == name]))
    return found


def _square(data: Vectors, anchors: Vectors, annotation: np.ndarray, rows: np.ndarray) -> Square:
    left, right = (F.normalize(side.values[rows], dim=1) for side in (data, anchors))
    return matched_gap_square(left, right, ["all"] * len(rows), annotation[rows].tolist())


def measure(name: str, folder: Path, seeds: list[int], whisper: Path | None) -> None:
    """Print the table of a pool: every space with gaps, recall and precision, the mean over the seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    modalities: dict[str, dict[str, list[tuple[Interval, int]]]] = defaultdict(lambda: defaultdict(list))
    pairs = 0
    for seed in seeds:
        values = settings(name, folder, seed, whisper)
        result = curate(config=values, progress=False)
        pairs = len(result.blend)
        for space, measures in result.manifest["projection"]["metrics"]["mean"].items():
            for key, value in measures.items():
                found[space][key].append(np.nan if value is None else value)
        for query, truth in OBJECTIVES[name]:
            for space, weight in (("fused", "fused"), (WORDS, "words")):
                blend = rank(folder / name, query, ranking={**PLAIN, "weights": {weight: 1.0}}).blend
                scores = -np.arange(len(blend), dtype=np.float64)
                found[space]["AP"].append(average_precision(scores, truth(blend).to_numpy(dtype=bool)))
        for space, gaps in by_modality(folder / name, parse(Config, values)).items():
            for modality, gap in gaps.items():
                modalities[modality][space].append(gap)
    say = Console(width=200, highlight=False, markup=False).print
    say(f"\n{name}: {pairs:,} pairs, mean of seeds {seeds}; in brackets the 95 % interval (mean of its ends)\n")
    say("| space | pairs | gap | matched gap | fused less | Recall@10 | AP |\n" + "|---" * 7 + "|")
    fused = float(np.mean(found["fused"]["matched_gap"]))
    for space, measures in found.items():
        own = float(np.mean(measures["matched_gap"]))
        part = measures["n"][0] < found["fused"]["n"][0]  # of the modalities: the table below has them one by one
        less = "-" if space == "fused" or part else f"{1 - fused / own:.0%}"
        precision = f"{np.mean(measures['AP']):.3f}" if measures["AP"] else "-"
        cells = [_interval(measures, "gap"), _interval(measures, "matched_gap"), less]
        recall = f"{np.mean(measures['recall_at_10']):.3f}"
        say(f"| {space} | {measures['n'][0]:,.0f} | {' | '.join(cells)} | {recall} | {precision} |")
    say("\n| matched gap of | annotations | fused | words | less |\n" + "|---" * 5 + "|")
    for modality, spaces in modalities.items():
        values_of = {space: float(np.mean([gap.value for gap, _ in gaps])) for space, gaps in spaces.items()}
        shown = [
            f"{values_of[space]:.3f} [{np.mean([gap.low for gap, _ in spaces[space]]):.3f}, "
            f"{np.mean([gap.high for gap, _ in spaces[space]]):.3f}]"
            for space in (FUSED, WORDS)
        ]
        less = f"{1 - values_of[FUSED] / values_of[WORDS]:.0%}" if values_of[WORDS] else "-"
        say(f"| {modality} | {spaces[FUSED][0][1]:,} | {' | '.join(shown)} | {less} |")


def _interval(measures: dict[str, list[float]], name: str) -> str:
    value, low, high = (float(np.mean(measures[key])) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pools", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--whisper", type=Path, help="a recogniser's folder, for speech; default: speech is left out")
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.pools:
            if name == "speech" and options.whisper is None:
                print("speech: left out, no --whisper")
                continue
            measure(name, options.folder or Path(temporary), options.seeds, options.whisper)


if __name__ == "__main__":
    main()

"""The ranking on many pools, objectives and kinds of noise, beside plain baselines: worst cases first.

    python -m benchmarks.suite --folder FOLDER [--pools real mixed spoken demo] [--seeds 0 1 2] [--workers 2] [--quick]

Each pool is embedded once by `curate` (kept in FOLDER). Then annotations are spoilt in memory (`make_plan`), embedded
anew, and projection, matcher and ranking are made by the product's own functions from the kept embeddings of the data,
so that a variant takes seconds. Media that are spoilt, and pairs off topic, come from two more runs per pool, in which
all are. Figures: average precision over the whole pool against what is on topic *and* sound.

Plain baselines: the query against the annotation alone, and against the data by the text-based expert alone; on clean
pools also the default's own topic without its condition. Settings are chosen on all pools but one and reported on that
one (``leave one pool out``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks import real_models, real_pool, weights
from nemo_mm_rank import curate, frames
from nemo_mm_rank.benchmark.planting import PlantSettings, make_plan, plant
from nemo_mm_rank.config import Config, ModelSpec, ProjectionSettings, RankingSettings, parse
from nemo_mm_rank.demo import QUERY, make_demo_pool
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.matching import Matcher, Pairs, Sample
from nemo_mm_rank.measures import average_precision
from nemo_mm_rank.models.expert import load_encoder, sources
from nemo_mm_rank.models.sentences import Spoken
from nemo_mm_rank.projection import FitSample, fit
from nemo_mm_rank.ranking.blend import fit_scoring
from nemo_mm_rank.ranking.feedback import FeedbackStep
from nemo_mm_rank.ranking.queries import score_step
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import gather, matching_spaces
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import ANNOTATION, DATA, FUSED, MATCH, MODALITY, PAIR_ID, POOL, annotation_column
from nemo_mm_rank.steps import columns_added
from nemo_mm_rank.vectors import take

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

DATA_FOLDER = weights.SHARED / "data"
CHILD = r"\b(child|children|boys?|girls?|kids?|toddlers?)\b"
STREET = r"\b(streets?|sidewalks?)\b"
ANIMALS = r"\b(dogs?|cats?|horses?|birds?|giraffes?|elephants?|cows?|sheep|bears?|zebras?|chickens?|fish)\b"
EATING = r"\b(food|pizza|cakes?|apples?|sandwich\w*|cookies?|eggs?|fruit|bread|eating)\b"


@dataclass(frozen=True)
class Objective:
    """A query, and what is on topic.

    Attributes:
        query: in plain words.
        says: a pattern that the annotation of a pair on topic has.
        data_too: texts and code may have it instead.
        modalities: those that can be on topic; default: all.
    """

    query: str
    says: str | None = None
    data_too: bool = False
    modalities: tuple[str, ...] = ()
    column: str | None = None

    def truth(self, rows: Sequence[Mapping[str, Any]]) -> Bools:
        """Return which pairs are on topic."""
        if self.column:
            return np.array([bool(row.get(self.column)) for row in rows])
        pattern = re.compile(self.says or "", re.IGNORECASE)
        found = []
        for row in rows:
            texts = [row[ANNOTATION], *([row[DATA]] if self.data_too and row[MODALITY] in ("text", "code") else [])]
            there = not self.modalities or row[MODALITY] in self.modalities
            found.append(there and any(pattern.search(text) for text in texts))
        return np.array(found)


OBJECTIVES: dict[str, dict[str, Objective]] = {
    "real": {
        "scenes": Objective(real_pool.SCENES, modalities=("image", "audio", "video")),
        "dog": Objective(real_pool.DOG, r"\bdogs?\b"),
        "street": Objective("people in a city street", STREET),
        "cat": Objective("a cat", r"\b(cats?|kittens?)\b"),
        "water": Objective("water, a river or the sea", r"\b(water|river|sea|ocean|lake|beach|waves?)\b"),
        "sport": Objective(
            "people playing a sport",
            r"\b(ball|baseball|soccer|tennis|football|skateboard\w*|surf\w*|skis?|skiing|snowboard\w*|basketball|"
            r"frisbee|players?)\b",
        ),
        "sorting": Objective("sorting a list", r"\bsort\w*\b"),
        "files": Objective("reading a file", r"\bfiles?\b"),
        "war": Objective("a war", r"\b(wars?|army|battle|military|troops)\b"),
        "sounds of animals": Objective("the sound of an animal", ANIMALS, modalities=("audio",)),
        "child": Objective("a child playing", CHILD),
        "food": Objective("food on a table", EATING),
        "patterns": Objective("regular expressions for strings", r"\b(regex|regular expression|pattern)\b"),
    },
    "mixed": {
        "money": Objective("a problem about money, prices and cost", r"\$|\bdollars?\b", True, ("text",)),
        "dog": Objective(real_pool.DOG, r"\bdogs?\b"),
        "street": Objective("people in a city street", STREET),
        "time": Objective("how long something takes in hours and minutes", r"\b(hours?|minutes?)\b", True, ("text",)),
        "files": Objective("find files by name", r"\bfind\b", True, ("code",)),
        "archives": Objective("compress or unpack an archive", r"\b(tar|zip|gzip|archive|compress\w*)\b", True),
        "child": Objective("a child playing", CHILD),
        "photos": Objective("photographs of real scenes", modalities=("image",)),
        "maths": Objective("maths word problems with solutions", modalities=("text",)),
        "shell": Objective("a shell command", modalities=("code",)),
        "food": Objective("food and cooking", EATING, True),
        "disk": Objective("disk space and file sizes", r"\b(size|disk|bytes?|du|df)\b", True, ("code",)),
        "animals": Objective("animals", ANIMALS, True),
    },
    "spoken": {
        "dog": Objective(real_pool.DOG, r"\bdogs?\b"),
        "child": Objective("a child playing", CHILD),
        "street": Objective("people in a city street", STREET),
        "water": Objective("water, a river or the sea", r"\b(water|river|sea|ocean|lake|beach|waves?|pool)\b"),
        "women": Objective("a woman", r"\b(woman|women|lady)\b"),
        "sport": Objective("people playing a sport", r"\b(ball|soccer|tennis|football|skateboard\w*|bike|players?)\b"),
    },
    "demo": {
        "scenes": Objective(QUERY, column="on_topic"),
        "code": Objective("a function of Python code", modalities=("code",)),
    },
}

NOISE: dict[str, str] = {
    "swap within": "swap-within",
    "swap across": "swap-across",
    "foreign sentence": "foreign-sentence",
    "removed sentence": "removed-sentence",
    "near-duplicate": "near-duplicate",
    "media": "media",
    "off topic": "off-topic",
}
"""What it is called -> the kind that is planted; the last two are taken from runs in which every pair is spoilt so."""

SHARES = (0.1, 0.4)
EPOCHS = 5
"""Of a projection: a quarter of the default, for the sake of time (recall differs by .002 on the mixed pool)."""
GRID: dict[str, dict[str, Any]] = {
    f"annotation {annotation:g}, match {match:g}": {
        "weights": {"annotation": annotation, "experts": 1.0, "fused": 0.5},
        "broad": RankingSettings().broad.model_dump() if RankingSettings().broad else None,  # type: ignore[union-attr]
        "conditions": {"match": match},
    }
    for annotation in (4.0, 8.0, 12.0)
    for match in (1.0, 2.0, 3.0)
}
DEFAULT, TOPIC = "default", "without the condition"
ANNOTATION_ALONE, EXPERT_ALONE, FUSED_ALONE = "annotation alone", "expert alone", "fused alone"
WAYS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    TOPIC: {"conditions": {}},
    "default, narrow": {"broad": None},
    ANNOTATION_ALONE: {"weights": {"annotation": 1.0}, "conditions": {}},
    EXPERT_ALONE: {"weights": {"experts": 1.0}, "conditions": {}},
    FUSED_ALONE: {"weights": {"fused": 1.0}, "conditions": {}},
}


@dataclass
class Base:
    """A pool as embedded, in memory.

    Attributes:
        name: of the pool.
        config: the run's.
        models: as the pairs were embedded with.
        rows: the pairs' own columns.
        data: column -> embeddings of the data.
    """

    name: str
    config: Config
    models: dict[str, ModelSpec]
    rows: list[dict[str, Any]]
    data: dict[str, Vectors]

    def part(self, keep: Ints, name: str) -> Base:
        """Return some of the pairs."""
        data = {column: take(vectors, keep) for column, vectors in self.data.items()}
        data = {column: vectors for column, vectors in data.items() if bool(vectors.valid.any())}
        return Base(name, self.config, self.models, [self.rows[row] for row in keep.tolist()], data)


def settings(name: str, folder: Path) -> dict[str, Any]:
    """Return the configuration of a pool's run, without its output."""
    once = {"queries": "a dog playing outdoors", "budget": "10%", "projection": {"max_epochs": 1}}
    if name == "demo":
        return {**once, "pools": str(make_demo_pool(folder / "demo-pool"))}
    pool = {"real": str(real_pool.POOL), "mixed": str(DATA_FOLDER / "mixed_pool.jsonl")}
    pool["spoken"] = str(DATA_FOLDER / "spoken_pool.jsonl")
    models = real_models.mini(audio="speech") if name == "spoken" else real_models.mini()
    return {**once, "pools": pool[name], **models}


def embed(name: str, folder: Path, spoilt: str | None = None) -> Path:
    """Embed a pool where that has not been done, as it is or with every pair spoilt in one way; return the run."""
    config = settings(name, folder)
    run = folder / "-".join(filter(None, ("base", name, spoilt)))
    if not (run / "manifest.json").exists():
        if spoilt is not None:
            kinds: Any = {"cropped": 1.0, "padded": 1.0} if spoilt == "media" else spoilt
            made = plant(
                config["pools"],
                folder / f"planted-{name}-{spoilt}",
                parse(PlantSettings, {"total": 1.0, "kinds": kinds}),
                0,
            )
            config["pools"] = [made.pool.model_dump(mode="json")]
        started = time.time()
        curate(config={**config, "output": str(run)}, progress=False)
        print(f"{run.name}: embedded in {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    return run


@cache
def load(run: Path) -> Base:
    """Read what a run has embedded, in the order of a hash of the ids."""
    folder = RunFolder.at(run)
    config, state = folder.load_config(), State.load(folder)
    shards = state.open(folder)
    names = [source.column for expert in config.experts for source in sources(expert)]
    own = [PAIR_ID, POOL, MODALITY, ANNOTATION, DATA, *(["on_topic"] if "on_topic" in shards.columns() else [])]
    words, data = gather(shards, own, names, 1 << 20, 0)
    rows = [dict(zip(own, values, strict=True)) for values in zip(*(words[name].tolist() for name in own), strict=True)]
    return Base(run.name.removeprefix("base-"), config, state.specs(folder), rows, data)


class Texts:
    """The anchor, with what it has embedded kept in a file of its own beside those of other processes."""

    def __init__(self, base: Base, file: Path) -> None:
        self.inner, self.file = load_encoder(base.config.anchor, base.models), file
        self.known: dict[str, npt.NDArray[np.float32]] = {}
        for one in sorted(file.parent.glob(f"{file.stem.rpartition('-')[0]}-*.npz")):
            kept = np.load(one, allow_pickle=False)
            self.known.update(zip(kept["texts"].tolist(), kept["vectors"], strict=True))
        self.name, self.revision, self.dim = self.inner.name, self.inner.revision, self.inner.dim
        self.modalities = self.inner.modalities
        self.new = 0

    def encode(self, items: Sequence[Any], modality: str) -> Any:
        """See `models.base.Encoder.encode`."""
        missing = [text for text in dict.fromkeys(items) if text not in self.known]
        if missing:
            made = self.inner.encode(missing, modality)
            self.known.update(zip(missing, made.vectors.float().cpu().numpy(), strict=True))
            self.new += len(missing)
        vectors = np.stack([self.known[text] for text in items])
        return type(self.inner.encode(items[:1], modality))(torch.from_numpy(vectors), {})

    def save(self) -> None:
        """Keep what was embedded."""
        if self.new:
            temporary = self.file.with_name(f"{os.getpid()}-{self.file.name}")
            np.savez(temporary, texts=np.array(list(self.known)), vectors=np.stack(list(self.known.values())))
            os.replace(temporary, self.file)


@dataclass(frozen=True)
class Variant:
    """A pool with noise in it.

    Attributes:
        base: the pairs, with data and annotations as they are now.
        annotations: ``n`` texts.
        sound: ``(n,)`` nothing was planted.
        relevant: objective -> ``(n,)`` on topic, before anything was planted.
    """

    base: Base
    annotations: list[str]
    sound: Bools
    relevant: dict[str, Bools]


def spoil(
    base: Base, objectives: Mapping[str, Objective], noise: str, share: float, seed: int, folder: Path
) -> Variant:
    """Plant one kind of noise in a pool."""
    annotations, n = [row[ANNOTATION] for row in base.rows], len(base.rows)
    relevant = {name: objective.truth(base.rows) for name, objective in objectives.items()}
    sound = np.ones(n, dtype=bool)
    kind = NOISE.get(noise)
    if kind is None:
        return Variant(base, annotations, sound, relevant)
    modality = [row[MODALITY] for row in base.rows]
    if kind in ("media", "off-topic"):
        other = load(folder / f"base-{base.name.split(':')[0]}-{kind}")
        place = {row[PAIR_ID]: number for number, row in enumerate(other.rows)}
        able = np.array(
            [
                row[PAIR_ID] in place and (kind != "media" or row[MODALITY] in ("image", "audio", "video"))
                for row in base.rows
            ]
        )
        rows = np.random.default_rng([seed, 5]).permutation(np.flatnonzero(able))[: round(share * int(able.sum()))]
        theirs = np.array([place[base.rows[row][PAIR_ID]] for row in rows.tolist()], dtype=np.int64)
        spoilt = {
            name: put(column, rows, other.data[name], theirs)
            for name, column in base.data.items()
            if name in other.data
        }
        for row, there in zip(rows.tolist(), theirs.tolist(), strict=True):
            annotations[row] = other.rows[there][ANNOTATION]
        sound[rows] = False
        return Variant(replace(base, data={**base.data, **spoilt}), annotations, sound, relevant)
    asked = parse(PlantSettings, {"total": share, "kinds": kind})
    plan = make_plan(modality, annotations, asked, seed, [row[DATA] for row in base.rows])
    if kind == "near-duplicate":
        rows = np.flatnonzero(~plan.clean)
        base = replace(
            base, data={name: put(column, rows, column, plan.donor[rows]) for name, column in base.data.items()}
        )
    return Variant(base, list(plan.annotation), plan.clean, relevant)


def put(column: Vectors, rows: Ints, other: Vectors, theirs: Ints) -> Vectors:
    """Return a column in which some rows are those of another."""
    values, valid = column.values.clone(), column.valid.clone()
    values[rows], valid[rows] = other.values[theirs], other.valid[theirs]
    return Vectors(values, valid)


@dataclass(frozen=True)
class Made:
    """A variant with all that the product makes of it.

    Attributes:
        table: one row a pair: ids, embeddings, fused, and the chance that the annotation is the data's own.
        about: how well that can be told.
        metrics: of the projection, on held-out pairs.
    """

    table: pa.Table
    about: dict[str, dict[str, dict[str, float]]]
    metrics: dict[str, Any]


def make(variant: Variant, texts: Texts, seed: int) -> Made:
    """Fit projection and matcher on a variant, and apply both, as a run does."""
    base, annotations = variant.base, variant.annotations
    config, anchor = base.config, base.config.anchor
    modality = np.array([row[MODALITY] for row in base.rows], dtype=object)
    anchors = texts.encode(annotations, "text").vectors
    order = np.argsort(hashes([row[PAIR_ID] for row in base.rows], seed), kind="stable")
    used = [source for expert in config.experts for source in sources(expert) if source.column in base.data]
    sample = FitSample(
        sources={name: take(column, order) for name, column in base.data.items()},
        anchors=anchors[torch.from_numpy(order)],
        modality=modality[order].tolist(),
        annotations=[annotations[row] for row in order.tolist()],
        anchor_space=[one.column for one in used if one.model == anchor],
        takes={one.column: one.modalities for one in used if one.modalities is not None},
    )
    projection = fit(sample, ProjectionSettings(threads=1, max_epochs=EPOCHS), seed)
    fused = projection.project(base.data, annotations)
    spaces = [space for space in matching_spaces(config, base.models) if space.data in (FUSED, *base.data)]
    pairs = Pairs(
        {space.name: fused if space.data == FUSED else base.data[space.data] for space in spaces},
        {anchor: Vectors(anchors, torch.ones(len(anchors), dtype=torch.bool))},
    )
    spaces = [space for space in spaces if space.model == anchor]
    shuffled = Pairs(
        *({name: take(column, order) for name, column in side.items()} for side in (pairs.data, pairs.annotations))
    )
    matcher = Matcher.fit(Sample(modality[order], sample.annotations, shuffled), spaces, anchor, texts, seed)
    match = np.ones(len(annotations))
    for name in np.unique(modality):
        rows = np.flatnonzero(modality == name)
        mine = Pairs(
            *({key: take(column, rows) for key, column in side.items()} for side in (pairs.data, pairs.annotations))
        )
        own = [annotations[row] for row in rows.tolist()]
        match[rows] = matcher.judge(str(name), own, mine, Spoken.of(own, texts)).both
    columns = {FUSED: fused, annotation_column(anchor): pairs.annotations[anchor], **base.data}
    words = {name: [row[name] for row in base.rows] for name in (PAIR_ID, POOL, MODALITY)}
    frame = frames.attach(frames.from_table(pa.table(words)), columns)
    table = frames.to_table(frame).append_column(MATCH, pa.array(match))
    return Made(table, matcher.about(), projection.metrics["mean"])


@dataclass(frozen=True)
class Whole:
    """One table as shards that a ranking reads."""

    table: pa.Table
    count: int = 1

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `ranking.pool.Shards.read`."""
        names = self.table.column_names if columns is None else columns
        return self.table.select([name for name in names if name in self.table.column_names])


def scores(
    made: Made, base: Base, query: str, ways: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Yield the scores of all pairs by each way of ranking."""
    config = base.config.model_copy(update={"queries": parse(Config, {"pools": "-", "queries": query}).queries})
    step = score_step(config, base.models, made.table.column_names)
    cosines = columns_added(step, made.table)
    table = made.table
    for name in cosines.column_names:
        table = table.append_column(name, cosines[name])
    spaces = {space.score: space.column for space in step.spaces}
    for way, changes in ways.items():
        ranking, wide = parse(RankingSettings, changes), table

        def add(feedback: FeedbackStep) -> Whole:
            nonlocal wide
            added = columns_added(feedback, table)
            for name in feedback.provides:
                wide = wide.append_column(name, added[name])
            return Whole(wide)

        scoring = fit_scoring(Whole(table), [*step.scores, MATCH], ranking, spaces, add)
        batch = next(scoring.batches(Whole(wide)))
        found = np.full(table.num_rows, -np.inf)
        found[batch.rows] = batch.scores
        yield way, found


@dataclass(frozen=True)
class Job:
    """One variant to be measured: part of a pool, noise, seed."""

    pool: str
    part: str
    noise: str
    share: float
    seed: int

    @property
    def key(self) -> str:
        """What it is kept under."""
        return f"{self.pool}|{self.part}|{self.noise}|{self.share:g}|{self.seed}"


def rows_of(base: Base, part: str, seed: int) -> Ints:
    """Return the pairs of a part: all, a modality or source alone, or so many drawn at random."""
    n = len(base.rows)
    if part == "all":
        return np.arange(n)
    if part.isdigit():
        return np.sort(np.random.default_rng([seed, int(part)]).permutation(n)[: int(part)])
    return np.array(
        [at for at, row in enumerate(base.rows) if part in (row[MODALITY], row[POOL], row[PAIR_ID].split("-")[0])]
    )


def measure(job: Job, folder: Path) -> list[dict[str, Any]]:
    """Return a line for each objective of a variant that enough pairs are on topic of."""
    torch.set_num_threads(1)
    whole = load(folder / f"base-{job.pool}")
    base = whole.part(rows_of(whole, job.part, job.seed), job.pool)
    texts = Texts(base, folder / f"texts-{job.pool}-{os.getpid()}.npz")
    variant = spoil(base, OBJECTIVES[job.pool], job.noise, job.share, job.seed, folder)
    made = make(variant, texts, job.seed)
    texts.save()
    lines = []
    for name, objective in OBJECTIVES[job.pool].items():
        wanted = variant.relevant[name] & variant.sound
        if not 3 <= wanted.sum() <= 0.9 * len(wanted) and not (len(wanted) < 10 and 0 < wanted.sum() < len(wanted)):
            continue
        found = {}
        for way, values in scores(
            made, base, objective.query, {**WAYS, **(GRID if job.part == "all" and job.seed == 0 else {})}
        ):
            found[way] = average_precision(values, wanted)
        lines.append({**job.__dict__, "objective": name, "n": len(wanted), "wanted": int(wanted.sum()), "ap": found})
    return [{**job.__dict__, "about": made.about, "sound": float(variant.sound.mean())}, *lines]


def jobs(pools: Sequence[str], seeds: Sequence[int], quick: bool) -> Iterator[Job]:
    """Yield all variants: whole pools with every kind of noise, and parts of them clean and with swaps."""
    for seed in seeds:
        for pool in pools:
            yield Job(pool, "all", "clean", 0.0, seed)
            for noise in NOISE:
                for share in SHARES[1:] if quick else SHARES:
                    yield Job(pool, "all", noise, share, seed)
    for pool in pools:
        for part in PARTS.get(pool, ()):
            for noise, share in (("clean", 0.0), ("swap within", 0.4)):
                yield Job(pool, part, noise, share, seeds[0])
        for part, draws in (("50", 10), ("5", 20)):
            for seed in range(draws // (2 if quick else 1)):
                yield Job(pool, part, "clean", 0.0, seed)


PARTS: dict[str, tuple[str, ...]] = {
    "real": ("image", "audio", "code", "text", "coco", "flickr8k"),
    "mixed": ("image", "code", "text"),
}


def run(folder: Path, wanted: Sequence[Job], workers: int) -> list[dict[str, Any]]:
    """Measure what has not been measured yet; lines are kept in ``lines.jsonl``."""
    kept = folder / "lines.jsonl"
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    done = {Job(*(line[name] for name in Job.__dataclass_fields__)).key for line in lines}
    todo = [job for job in wanted if job.key not in done]
    started = time.time()
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        kept.open("a", encoding="utf-8") as file,
    ):
        for place, found in enumerate(pool.map(measure, todo, [folder] * len(todo))):
            lines += found
            file.writelines(json.dumps(line) + "\n" for line in found)
            file.flush()
            print(
                f"{place + 1} of {len(todo)} in {time.time() - started:.0f} s: {todo[place].key}",
                file=sys.stderr,
                flush=True,
            )
    keys = {job.key for job in wanted}
    return [line for line in lines if Job(*(line[name] for name in Job.__dataclass_fields__)).key in keys]


def averaged(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, float, str], dict[str, float]]:
    """Return the mean over seeds: (pool, part, noise, share, objective) -> way -> average precision."""
    found: dict[tuple[str, str, str, float, str], list[Mapping[str, float]]] = defaultdict(list)
    for line in lines:
        if "ap" in line:
            found[line["pool"], line["part"], line["noise"], line["share"], line["objective"]].append(line["ap"])
    return {
        key: {way: float(np.mean([one[way] for one in of if way in one])) for way in of[0]} for key, of in found.items()
    }


def best_plain(ap: Mapping[str, float], clean: bool) -> float:
    """Return the best plain baseline; on clean pools the default's own topic counts as one."""
    return max(ap[way] for way in (ANNOTATION_ALONE, EXPERT_ALONE, *([TOPIC] if clean else [])) if way in ap)


def table(means: Mapping[tuple[str, str, str, float, str], Mapping[str, float]], way: str = DEFAULT) -> Iterator[str]:
    """Yield the table: worst case and mean of the default less the best plain baseline, by noise and part."""
    yield (
        "| pool | noise | worst case | where | mean | n | AP: default | without the condition | annotation alone | "
        "expert alone |"
    )
    yield "|---" * 10 + "|"
    groups: dict[tuple[str, str], list[tuple[float, str, Mapping[str, float]]]] = defaultdict(list)
    for (pool, part, noise, share, objective), ap in means.items():
        gain = ap[way] - best_plain(ap, noise == "clean")
        place = f"{noise} {share:.0%}" if share else noise
        size = {"all": "whole pools", "50": "50 pairs", "5": "5 pairs"}.get(part, "one modality or source")
        groups[size, place].append((gain, f"{pool}{'' if part == 'all' else ' ' + part}: {objective}", ap))
    for (size, place), found in sorted(groups.items(), key=lambda item: min(one[0] for one in item[1])):
        worst = min(found, key=lambda one: one[0])
        ways = [
            np.mean([one[2][name] for one in found if name in one[2]])
            for name in (way, TOPIC, ANNOTATION_ALONE, EXPERT_ALONE)
        ]
        yield (
            f"| {size} | {place} | {worst[0]:+.3f} | {worst[1]} | {np.mean([one[0] for one in found]):+.3f} | "
            f"{len(found)} | " + " | ".join(f"{value:.3f}" for value in ways) + " |"
        )


def left_out(means: Mapping[tuple[str, str, str, float, str], Mapping[str, float]]) -> Iterator[str]:
    """Yield for each pool the setting that is best on all others, and what it gives on this one."""
    yield "| pool left out | chosen on the others | worst clean, mean gain there | the same here | default here |"
    yield "|---" * 5 + "|"
    pools = sorted({key[0] for key in means})

    def figures(of: Sequence[str], way: str) -> tuple[float, float]:
        gains = {
            key: ap[way] - best_plain(ap, key[2] == "clean") for key, ap in means.items() if key[0] in of and way in ap
        }
        clean = [gain for key, gain in gains.items() if key[2] == "clean"]
        noisy = [gain for key, gain in gains.items() if key[2] != "clean"]
        return min(clean), float(np.mean(noisy))

    for pool in pools:
        others = [name for name in pools if name != pool]
        # No harm first; then what is gained.
        chosen = max(GRID, key=lambda way: (min(figures(others, way)[0], -0.02), figures(others, way)[1]))
        cells = [figures(others, chosen), figures([pool], chosen), figures([pool], DEFAULT)]
        yield f"| {pool} | {chosen} | " + " | ".join(f"{worst:+.3f}, {mean:+.3f}" for worst, mean in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="runs, texts and lines are kept here")
    parser.add_argument("--pools", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="40 %% noise alone, and half of the small draws")
    parser.add_argument("--noise", nargs="*", choices=NOISE, help="these kinds alone")
    options = parser.parse_args()
    if reason := real_pool.missing() or real_models.missing(speech="spoken" in options.pools):
        sys.exit(f"skipped: {reason}")
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        job
        for job in jobs(options.pools, options.seeds, options.quick)
        if options.noise is None or job.noise in ("clean", *options.noise)
    ]
    for pool in options.pools:
        embed(pool, options.folder)
        for kind in ("media", "off-topic"):
            if any(job.pool == pool and NOISE.get(job.noise) == kind for job in wanted):
                embed(pool, options.folder, kind)
    means = averaged(run(options.folder, wanted, options.workers))
    print("\n".join(table(means)))
    print()
    print("\n".join(left_out({key: ap for key, ap in means.items() if key[1] == "all"})))


if __name__ == "__main__":
    main()

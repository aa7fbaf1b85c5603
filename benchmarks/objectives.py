"""Every strategy on two pools, clean and with planted noise, for several objectives: one table, the worst first.

    python -m benchmarks.objectives --folder FOLDER [--pools real mixed] [--noise clean all] [--seeds 0 1 2 3 4]

A pool is embedded once, and everything is chosen from that run. Of every objective some pairs are held out: those that
a trained model is judged by, and others that stand for a user's examples (``like``) and for the target of a mix. A seed
is that of projection, matcher, draws and training; strategies that know no seed choose once and are trained on by each.
Blends and trainings are kept in FOLDER, by what they are made of, so that a run goes on where it was left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import real_models, real_pool, suite
from nemo_mm_rank.benchmark.downstream import features, train
from nemo_mm_rank.benchmark.downstream.rows import Rows
from nemo_mm_rank.benchmark.downstream.settings import SmallSettings
from nemo_mm_rank.benchmark.mixing import MixConfig, find_mix
from nemo_mm_rank.benchmark.settings import BenchmarkConfig, Strategy
from nemo_mm_rank.benchmark.source import Source, prepare
from nemo_mm_rank.benchmark.strategies import Bench, choose
from nemo_mm_rank.config import parse
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.measures.selection import Labels, selection
from nemo_mm_rank.measures.statistics import mean_interval, paired_difference
from nemo_mm_rank.run import curation, ecodatum
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import digest
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import PAIR_ID

QUIET = SafeConsole(quiet=True)
POOLS = {"real": real_pool.POOL, "mixed": real_pool.MIXED}


@dataclass(frozen=True)
class Objective:
    """What is asked for.

    Attributes:
        suite: its name in `suite.OBJECTIVES`, where query and relevance stand.
        budget: pairs of a blend.
        validation: pairs that models are judged by.
        examples: pairs that show what is wanted.
        mixed: whether a mix of modalities is searched for; where all that is wanted is of one, there is none to find.
    """

    suite: str
    budget: int
    validation: int
    examples: int = 10
    mixed: bool = False


OBJECTIVES: dict[str, dict[str, Objective]] = {
    "real": {
        "scenes": Objective("scenes", 310, 100, 40, mixed=True),
        "dog": Objective("dog", 64, 20),
        "files": Objective("files", 64, 20),
    },
    "mixed": {
        "scenes": Objective("photos", 110, 40, 20, mixed=True),
        "dog": Objective("dog", 24, 12, 5),
        "money": Objective("money", 40, 15, 8),
        "files": Objective("files", 110, 40, 20),
    },
}

FIXED = (
    Strategy.EXPERT,
    Strategy.ECODATUM,
    Strategy.TRADITIONAL,
    Strategy.CLIP_SCORE,
    Strategy.NEGCLIPLOSS,
)
DRAWN = (Strategy.RANDOM, Strategy.STRATIFIED, Strategy.DATACOMP)
SELECTS: dict[str, dict[str, Any]] = {
    "clusters": {"how": "clusters"},
    "soft-cap": {"how": "soft-cap"},
    "balanced": {"how": "balanced"},
    "diverse": {"how": "diverse"},
    "coverage": {"how": "coverage", "over": 20},
}
"""Name -> ``ranking.select``."""
STEPS = 150


@dataclass
class Pool:
    """One pool, clean or noisy, and all that is chosen from it.

    Attributes:
        name, noise, folder: which, and where it is kept.
        seeds: of everything that is fitted or drawn.
        steps: of training.
    """

    name: str
    noise: str
    folder: Path
    seeds: Sequence[int]
    steps: int = STEPS

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The pool's own rows, before anything is planted."""
        return [json.loads(line) for line in POOLS[self.name].read_text(encoding="utf-8").splitlines()]

    @cached_property
    def held_out(self) -> dict[str, dict[str, list[int]]]:
        """Objective -> ``validation`` and ``examples`` -> rows, drawn among those on topic; no row is drawn twice."""
        free, found = np.ones(len(self.rows), dtype=bool), {}
        for number, (name, objective) in enumerate(OBJECTIVES[self.name].items()):
            on_topic = suite.OBJECTIVES[self.name][objective.suite].truth(self.rows)
            rows = np.random.default_rng([number, 2]).permutation(np.flatnonzero(on_topic & free)).tolist()
            ends = objective.validation, objective.validation + objective.examples
            found[name] = {"validation": rows[: ends[0]], "examples": rows[ends[0] : ends[1]]}
            free[rows[: ends[1]]] = False
        return found

    def part(self, name: str, rows: Sequence[int]) -> dict[str, str]:
        """Write some of the rows as a pool of their own, whose media lie where the pool's do."""
        file = self.folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(self.rows[row]) + "\n" for row in rows), encoding="utf-8")
        return {"path": str(file), "root": str(POOLS[self.name].parent)}

    def config(self, objective: str, seed: int) -> BenchmarkConfig:
        """Return the configuration of the benchmark for an objective."""
        wanted = OBJECTIVES[self.name][objective]
        mine = self.held_out.values()
        held_out = self.part("held-out", [row for one in mine for rows in one.values() for row in rows])
        pictures: Any = "labels" if self.name == "real" else "objects"
        return parse(
            BenchmarkConfig,
            {
                "pools": str(POOLS[self.name]),
                **real_models.mini(images=pictures),
                "queries": suite.OBJECTIVES[self.name][wanted.suite].query,
                "budget": wanted.budget,
                "validation": {"pools": [held_out]},
                "plant": None if self.noise == "clean" else {"total": 0.4, "kinds": self.noise},
                "ranking": {"collapse_duplicates": True},
                "rows_per_shard": 512,
                "cold": False,
                "seeds": [seed],
                "output": str(self.folder),
            },
        )

    @cached_property
    def source(self) -> Source:
        """The pool as it is chosen from, planted or not, and the held-out pairs."""
        objective = next(iter(OBJECTIVES[self.name]))
        return prepare(self.config(objective, 0), self.folder, SerialEngine(), Reporter(QUIET))

    def labels(self, objective: str) -> Labels:
        """Return which pairs are clean and on topic."""
        truth = self.source.planted.truth
        on_topic = suite.OBJECTIVES[self.name][OBJECTIVES[self.name][objective].suite].truth(self.rows)
        by_id = dict(zip((row["pair_id"] for row in self.rows), on_topic.tolist(), strict=True))
        return Labels.of(truth, np.array([by_id[pair_id] for pair_id in truth[PAIR_ID].to_pylist()]))

    def bench(self, objective: str, seed: int) -> Bench:
        """Return what the product's own strategies choose from."""
        source, config = self.source, self.config(objective, seed)
        budget = OBJECTIVES[self.name][objective].budget
        return Bench(
            config,
            self.folder,
            source.planted.pool,
            source.shards,
            budget,
            self.labels(objective),
            SerialEngine(),
            QUIET,
        )

    def kept(self, objective: str, strategy: str, seed: int, make: Callable[[], list[str]]) -> list[str]:
        """Return a blend that an earlier run has left, or make it."""
        file = self.folder / "table" / f"{objective}-{strategy}-{seed}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(make()), encoding="utf-8")
        return list(json.loads(file.read_text(encoding="utf-8")))

    def again(self, bench: Bench, ranking: Mapping[str, Any], queries: Sequence[Any] | None = None) -> list[str]:
        """Rank the run with other settings; the fit is the one that the last `Bench.curate` made."""
        changes: dict[str, Any] = {"ranking": ranking, "budget": bench.budget}
        changes["queries"] = queries or [query.model_dump(mode="json") for query in bench.config.queries]
        found = curation.rank(bench.run("off"), changes, QUIET, SerialEngine(), Trust(run=True))
        return [str(pair_id) for pair_id in found.blend[PAIR_ID]]

    def blends(self) -> Iterator[tuple[str, str, int, list[str]]]:
        """Yield objective, strategy, seed and blend."""
        for objective in OBJECTIVES[self.name]:
            first = self.bench(objective, self.seeds[0])
            for strategy in FIXED:
                blend = self.kept(objective, strategy, 0, lambda b=first, s=strategy: choose(b, s, 0))  # type: ignore[misc]
                yield from ((objective, strategy, seed, blend) for seed in self.seeds)
            for strategy in DRAWN:
                for seed in self.seeds:
                    made = self.kept(objective, strategy, seed, lambda b=first, s=strategy, n=seed: choose(b, s, n))  # type: ignore[misc]
                    yield objective, strategy, seed, made
        for seed in self.seeds:
            for objective in OBJECTIVES[self.name]:
                yield from self._ranked(objective, seed)

    def _ranked(self, objective: str, seed: int) -> Iterator[tuple[str, str, int, list[str]]]:
        """Yield what ranks as the main job does; nothing is fitted where all has been chosen."""
        bench = self.bench(objective, seed)
        rows = self.held_out[objective]["examples"]
        query, like = bench.config.queries[0].text, {"like": self.part(f"examples-{objective}", rows)}
        quality = ecodatum.as_condition(bench.config.ranking, bench.run("ecodatum"))
        ways: dict[str, Callable[[], list[str]]] = {
            "ranked": lambda: self.again(bench, {}),
            "ranked-quality": lambda: self.again(bench, quality),
            **{
                f"ranked-{name}": lambda s=select: self.again(bench, {"select": {**s, "seed": seed}})  # type: ignore[misc]
                for name, select in SELECTS.items()
            },
            "like": lambda: self.again(bench, {}, [like]),
            "query and like": lambda: self.again(bench, {}, [query, like]),
        }
        if OBJECTIVES[self.name][objective].mixed:
            ways["mix alone"] = lambda: self._mixed_alone(bench, objective, seed)
            ways["mix and ranked"] = lambda: self.again(bench, self._mix(bench, objective))
        ready = False
        for name, make in ways.items():
            file = self.folder / "table" / f"{objective}-{name}-{seed}.json"
            if not file.exists() and not ready:
                bench.curate("off", seed)
                ready = True
            yield objective, name, seed, self.kept(objective, name, seed, make)

    def _mix(self, bench: Bench, objective: str) -> dict[str, Any]:
        """Return the quotas by modality that serve an objective's examples, searched for once, with the first fit."""
        folder = self.folder / f"mix-{objective}"
        if not (folder / "quotas.yaml").exists():
            examples = self.part(f"examples-{objective}", self.held_out[objective]["examples"])
            values = {
                "run": str(bench.run("off")),
                "target": [examples],
                "budget": bench.budget,
                "search": {"rounds": 2, "draws": 6},
                "seeds": 2,
                "downstream": {"steps": 60, "evaluations": 1},
                "output": str(folder),
            }
            find_mix(parse(MixConfig, values), QUIET, SerialEngine())
        found: dict[str, Any] = yaml.safe_load((folder / "quotas.yaml").read_text(encoding="utf-8"))["ranking"]
        return found

    def _mixed_alone(self, bench: Bench, objective: str, seed: int) -> list[str]:
        """Draw the pairs of every modality by its quota."""
        quotas, drawn = self._mix(bench, objective)["quotas"], []
        ids, names = (np.array(bench.pairs[name].to_pylist(), dtype=object) for name in (PAIR_ID, "modality"))
        order = np.random.default_rng([seed, 3]).permutation(len(ids))
        for name, share in quotas.items():
            drawn += ids[order[names[order] == name]][: round(share * bench.budget)].tolist()
        rest = [pair_id for pair_id in ids[order].tolist() if pair_id not in {*drawn}]
        return [*drawn, *rest][: bench.budget]

    @cached_property
    def corpus(self) -> Rows:
        """What models are trained on and judged by."""
        parts = {"pool": self.source.shards, "validation": self.source.validation}
        config = self.bench(next(iter(OBJECTIVES[self.name])), self.seeds[0]).run_config("off", 0)
        return features(parts, self.training, config, self.folder / "features", SerialEngine())

    @cached_property
    def training(self) -> SmallSettings:
        """Which model is trained."""
        return SmallSettings(steps=self.steps)

    def perplexity(self, objective: str, seed: int, blend: Sequence[str]) -> float:
        """Return the best perplexity of a model that learns from a blend; equal blends are learnt from once."""
        key = digest([objective, seed, self.steps, sorted(blend)])[:24]
        file = self.folder / "trained" / f"{key}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            judged = [self.rows[row]["pair_id"] for row in self.held_out[objective]["validation"]]
            rows = self.corpus.rows("pool", blend), self.corpus.rows("validation", judged)
            found = train(self.corpus, self.corpus.annotations, *rows, self.training, seed)
            file.write_text(json.dumps(found.best), encoding="utf-8")
        return float(json.loads(file.read_text(encoding="utf-8")))


Figures = dict[tuple[str, str, str, str], dict[str, list[float]]]
"""(pool, noise, objective, strategy) -> measure -> one figure a seed."""


def measure(pool: Pool) -> Figures:
    """Return all figures of a pool."""
    found: Figures = defaultdict(lambda: defaultdict(list))
    labels = {objective: pool.labels(objective) for objective in OBJECTIVES[pool.name]}
    for objective, strategy, seed, blend in pool.blends():
        worth = selection(blend, labels[objective])
        cell = found[pool.name, pool.noise, objective, strategy]
        cell["precision"].append(worth["precision"])
        if pool.steps:
            cell["perplexity"].append(pool.perplexity(objective, seed, blend))
    return found


def table(found: Figures, against: str = "ranked") -> Iterator[str]:
    """Yield markdown: each strategy's worst case and mean against one of them, then every cell."""
    cells = list(dict.fromkeys(key[:3] for key in found))
    strategies = [name for name in dict.fromkeys(key[3] for key in found) if name != against]
    for name, sign in (("precision", 1), ("perplexity", -1)):
        plain = {cell: found[*cell, against][name] for cell in cells if found[*cell, against].get(name)}
        if not plain:
            continue
        yield f"\n{name}: of {against}, and how the others differ from it, paired by seed (95 %); the worst first\n"
        yield f"| | worst | better / worse / neither | {' | '.join(' '.join(cell) for cell in plain)} |"
        yield "|---" * (len(plain) + 3) + "|"
        means = [mean_interval(values) for values in plain.values()]
        yield f"| {against} | | | {' | '.join(f'{one.value:.3f} +- {one.high - one.value:.3f}' for one in means)} |"
        lines = []
        for strategy in strategies:
            gaps = [
                paired_difference(values, theirs) if (values := found.get((*cell, strategy), {}).get(name)) else None
                for cell, theirs in plain.items()
            ]
            known = [gap for gap in gaps if gap is not None]
            better = sum(sign * gap.value > 0 and gap.separable for gap in known)
            worse = sum(sign * gap.value < 0 and gap.separable for gap in known)
            worst = min(sign * gap.value for gap in known)
            texts = ["" if gap is None else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" for gap in gaps]
            counts = f"{better} / {worse} / {len(known) - better - worse}"
            lines.append((worst, f"| {strategy} | {sign * worst:+.3f} | {counts} | {' | '.join(texts)} |"))
        yield from (line for _, line in sorted(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--noise", nargs="+", default=["clean", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=STEPS, help="of training; 0: none")
    options = parser.parse_args()
    if reason := real_pool.missing() or real_models.missing():
        sys.exit(f"skipped: {reason}")
    found: Figures = {}
    for name in options.pools:
        for noise in options.noise:
            found |= measure(Pool(name, noise, options.folder / f"{name}-{noise}", options.seeds, options.steps))
            print(f"{name}, {noise}: done", file=sys.stderr, flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()

"""The main job: from pools to a ranked blend, every step resumable, on any engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
from rich.console import Console

from nemo_mm_rank.config import Config, ModelSpec, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.experts.expert import Source, sources
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.io.ingest import IngestReport, ingest
from nemo_mm_rank.io.parquet import read_table, write_json
from nemo_mm_rank.models import loader
from nemo_mm_rank.projection.artifact import CONFIG, Projection
from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.projection.step import ProjectionStep
from nemo_mm_rank.run import outcome
from nemo_mm_rank.run.engine import Engine, make_engine
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.sample import read_sample
from nemo_mm_rank.run.statistics import fit_statistics
from nemo_mm_rank.run.store import Shards, Stage, digest
from nemo_mm_rank.run.summary import print_summary
from nemo_mm_rank.schema import annotation_column
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: where everything lies.
        manifest: configuration, models, digests, counts, metrics, versions.
    """

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def blend(self) -> pd.DataFrame:
        """The chosen pairs, best first."""
        return pd.read_parquet(RunFolder(self.folder).blend)

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The pairs that could not be ranked, with step, error class and message."""
        return pd.read_parquet(RunFolder(self.folder).quarantine)

    def print(self, console: Console | None = None) -> None:
        """Print the tables that the command line prints."""
        blend = read_table(RunFolder(self.folder).blend)
        print_summary(self.manifest, blend, self.folder, console or Console())

    def _repr_html_(self) -> str:
        return str(self.blend._repr_html_())  # type: ignore[operator]  # pandas-stubs leave it out


def curate(config: Config, console: Console | None = None, engine: Engine | None = None) -> Result:
    """Run the main job, taking up what an earlier run in the same folder has finished.

    Args:
        config: the whole run.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    folder = RunFolder(Path(config.output))
    reporter = Reporter(console or Console(quiet=True))
    with folder.locked():
        folder.save_config(config)
        return _with_engine(config, engine, lambda e: _Curation(config, folder, e, reporter).curate())


def rank(
    run: str | Path,
    changes: Mapping[str, Any],
    console: Console | None = None,
    engine: Engine | None = None,
) -> Result:
    """Rank a finished run anew, with other ``queries``, ``budget`` or ``ranking`` settings; nothing is embedded again.

    Raises:
        UserError: the folder is no run, or one that has not been finished.
    """
    folder = RunFolder(Path(run))
    values = folder.load_config().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    unknown = set(changes) - {"queries", "budget", "ranking", "jsonl"}
    if unknown:
        raise UserError(f"only queries, budget, ranking and jsonl can change without a new run, not {sorted(unknown)}")
    config = parse(Config, {**values, **changes, "output": str(run)})
    reporter = Reporter(console or Console(quiet=True))
    with folder.locked():
        return _with_engine(config, engine, lambda e: _Curation(config, folder, e, reporter).rank_again())


def _with_engine(config: Config, engine: Engine | None, work: Callable[[Engine], T]) -> T:
    if engine is not None:
        return work(engine)
    own = make_engine(config.engine)
    try:
        return work(own)
    finally:
        own.close()


@dataclass
class _Curation:
    config: Config
    folder: RunFolder
    engine: Engine
    reporter: Reporter
    _steps: list[str] = field(default_factory=list)

    def curate(self) -> Result:
        config = self.config
        report, shards = self._ingest()
        models = fit_statistics(config.models, shards, self.folder.fitted, self.engine, self.reporter, report.good)
        for step in self._embedding_steps(models):
            shards = self._through(step, shards, report.good)
        shards = self._project(shards, report.good)
        return self._finish(report, shards, models)

    def _ingest(self) -> tuple[IngestReport, Shards]:
        config = self.config
        report = ingest(
            config.pools,
            self.folder.pool,
            rows_per_shard=config.rows_per_shard,
            shards=config.shards,
            on_bad_row=config.on_bad_row,
        )
        if not report.good:
            raise UserError(f"the pool has no usable pair: {report.rows_in} rows in, {report.bad} of them bad")
        self.reporter.say(f"{'pool':<11} {report.good:,} pairs in {report.shards} shards, {report.bad:,} bad rows")
        return report, Shards((self.folder.pool,), report.shards)

    def _embedding_steps(self, models: Mapping[str, ModelSpec]) -> list[Step]:
        config = self.config
        steps: list[Step] = []
        if config.sns.mode != "off":
            steps.append(SNSStep(config.sns, _sns_expert(config), models, config.media))
        steps.append(ExpertStep(config.experts, models, config.anchor, config.media))
        return steps

    def _through(self, step: Step, shards: Shards, pairs: int) -> Shards:
        """Take all shards through one step, those that are not done yet."""
        identity = digest(step.identity())
        stage = Stage(
            step, shards, self.folder.stage(step.name, identity), identity, self.engine.backend, self.engine.device
        )
        todo = [part for part in range(shards.count) if not stage.done(part)]
        done = pairs - sum(shards.rows(part) for part in todo)
        with self.reporter.step(step.name, pairs, done) as advance:
            for _, rows in self.engine.map(stage, todo):
                advance(rows)
        self._steps.append(step.name)
        return shards.then(stage.folder)

    def _project(self, shards: Shards, pairs: int) -> Shards:
        """Fit the projection where that has not been done, and apply it."""
        config = self.config
        used = self._sources()
        settings = config.projection
        key = digest(
            [
                settings.model_dump(),
                config.seed,
                [source.column for source in used],
                config.anchor,
                [shards.key(part) for part in range(shards.count)],
            ]
        )
        folder = self.folder.fitted / f"projection-{key[:12]}"
        if not (folder / CONFIG).exists():
            with self.reporter.step("fit", pairs) as advance:
                sample = read_sample(
                    shards,
                    [source.column for source in used],
                    annotation_column(config.anchor),
                    [source.column for source in used if source.model == config.anchor],
                    settings.max_pairs,
                    config.seed,
                )
                fit(sample, settings, config.seed, loader.pick_device(self.engine.device)).save(folder)
                advance(pairs)
        self._projection = Projection.load(folder)
        step = ProjectionStep(str(folder), list(self._projection.sources), config.anchor)
        return self._through(step, shards, pairs)

    def _sources(self) -> list[Source]:
        return [source for expert in self.config.experts for source in sources(expert)]

"""The main job: from pools to a ranked blend, every step resumable, on any engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.console import Console

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ModelSpec, SNSSettings, parse
from nemo_mm_rank.console import SafeConsole, printable
from nemo_mm_rank.engine import Engine, SerialEngine, using
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.examples import kind_of
from nemo_mm_rank.io.files import read_table, write_json
from nemo_mm_rank.io.owned import Claim, remove
from nemo_mm_rank.io.part_files import is_part
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.matching import Matcher, MatchStep
from nemo_mm_rank.mix import advice, mix_of
from nemo_mm_rank.models import loader
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.ranking import explain as explain_pair
from nemo_mm_rank.ranking import variety
from nemo_mm_rank.ranking.blend import Ranking, check_pools, choose
from nemo_mm_rank.ranking.candidates import Groups
from nemo_mm_rank.ranking.conditions import ConditionStep
from nemo_mm_rank.ranking.feedback import FeedbackStep
from nemo_mm_rank.ranking.queries import likenesses, score_step
from nemo_mm_rank.ranking.query_scores import GIVEN, ScoreStep
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run import outcome
from nemo_mm_rank.run.finished import Pool, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job, at_work
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore, count_steps
from nemo_mm_rank.run.summary import print_summary
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import MATCH, POOL
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: where everything lies.
        manifest: configuration, models, digests, counts, metrics, versions.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @cached_property
    def blend(self) -> pd.DataFrame:
        """The chosen pairs, best first."""
        frame: pd.DataFrame = read_table(RunFolder(self.folder).blend).to_pandas()
        return frame

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The pairs that could not be ranked, with step, error class and message."""
        frame: pd.DataFrame = read_table(RunFolder(self.folder).quarantine).to_pandas()
        return frame

    def pairs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return every pair of the pool with some columns: its own, and those that steps have added.

        Args:
            columns: their names; unknown ones are left out. All pairs have to fit into memory with these columns.
        """
        folder = RunFolder(self.folder)
        shards = State.load(folder).open(folder)
        table = pa.concat_tables(shards.read(part, columns) for part in range(shards.count))
        frame: pd.DataFrame = frames.from_table(table)
        return frame

    def print(self, console: Console | None = None) -> None:
        """Print the tables that the command line prints."""
        blend = read_table(RunFolder(self.folder).blend)
        print_summary(self.manifest, blend, self.folder, console or SafeConsole())

    def _repr_html_(self) -> str:
        return str(self.blend._repr_html_())  # type: ignore[operator]  # pandas-stubs leave it out


def curate(
    config: Config, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> Result:
    """Run the main job, taking up what an earlier run of the same pools in the same folder has finished.

    Args:
        config: the whole run.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a run of other pools that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    check(config)
    with at_work(config, console, engine, overwrite) as job:
        job.folder.begin(config)
        return _Curation(job, config).curate()


def rank(
    run: str | Path,
    changes: Mapping[str, Any],
    console: Console | None = None,
    engine: Engine | None = None,
    trust: Trust | None = None,
) -> Result:
    """Rank a finished run anew, with other ``queries``, ``budget`` or ``ranking`` settings; nothing is embedded again.

    Of ``ranking``, the settings that are given change, and the others stay as the run has them.

    Args:
        run: its folder.
        changes: the settings.
        console: where progress goes.
        engine: where the work is done; default: what the run's ``engine`` says. The caller's is left open.
        trust: which code the folder may have run; default: none but this package's.

    Raises:
        UserError: the folder is no run, one that has not been finished, or one that names code that is not trusted.
    """
    folder = RunFolder.at(run)
    values = folder.load_config().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    unknown = set(changes) - {"queries", "budget", "ranking", "jsonl"}
    if unknown:
        raise UserError(f"only queries, budget, ranking and jsonl can change without a new run, not {sorted(unknown)}")
    ranking = {**values.get("ranking", {}), **changes.get("ranking", {})}
    config = parse(Config, {**values, **changes, "ranking": ranking, "output": str(run)})
    reporter = Reporter(console or SafeConsole(quiet=True))
    trust = trust or Trust()
    if engine is None and config.engine.scheduler_address and not trust.run:
        # A scheduler hands its clients pickles.
        address = config.engine.scheduler_address
        reporter.say(
            f"ranked on this machine, and not on the cluster that the folder of the run names ({address}) "
            "without --trust-run"
        )
        engine = SerialEngine(config.engine.device)
    with folder.reopened(), using(engine, config.engine) as held:
        return _Curation(Job(config, folder, held, reporter), config).rank_again(trust)


def check(config: Config) -> list[str]:
    """Find what is wrong before anything is written or loaded; return the manifests.

    Raises:
        UserError: a pool that is not there, or a model class or argument that does not exist.
    """
    files = [manifest.file for pool in config.pools for manifest in manifests(pool)]
    config.register()
    loader.pick_device(config.engine.device, here=config.engine.scheduler_address is None)
    loader.check_models(config.models)
    loader.check_models(config.ranking.computed)
    variety.check(config.ranking.select)
    if config.ranking.quota_by is not None:
        Groups.of(config.ranking.quota_by, config.ranking.quotas)
    for query in config.queries:
        if query.like is not None:
            kind_of(query.like)
    return files


def dry_run(config: Config, console: Console, overwrite: bool = False) -> None:
    """Check what can be checked without work, and say what would be done.

    Raises:
        UserError: a pool that is not there, a model class or argument that does not exist, or a folder that is not
            ours to write.
    """
    files = check(config)
    folder = RunFolder(Claim("run", config.pools, overwrite=overwrite).check(config.output))
    steps = _embedding_steps(config, config.models, config.sns)

    def say(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    say(f"pools    {', '.join(files)}")
    for query in config.queries:
        say(f"query    {query.label!r}" + (f" x {query.weight:g}" if query.weight != 1 else ""))
    for step in steps:
        say(f"step     {step.name}: adds {', '.join(step.provides)}")
    for note in outcome.notes(config):
        say(f"note     {note}")
    if config.ranking.mix is not None:
        mix = mix_of(config.ranking.mix)
        say(f"mix      {', '.join(f'{name} {share:.1%}' for name, share in mix.shares.items())} ({mix.source})")
        for line in advice(mix):
            say(f"advice   {line}")
    if config.sns.mode != "off" and config.sns.select == "pool" and config.sns.cuts is None:
        say("fit      sns: where to cut, by modality and side")
    say(f"fit      projection: {config.projection.folds} folds, anchored on {config.anchor!r}")
    say(f"budget   {', '.join(f'{k} {v}' for k, v in config.budget.model_dump(exclude_none=True).items())}")
    say(f"output   {folder.path}" + (" (the earlier run there is continued)" if folder.config.exists() else ""))


def explain(run: str | Path, pair_id: str) -> str:
    """Say in a few lines why a pair was or was not chosen.

    Raises:
        UserError: the folder is no finished run, or there is no such pair in it (the nearest id is named).
    """
    folder = RunFolder.at(run)
    folder.load_config()
    state = State.load(folder)
    shards, scoring = state.scored(folder), state.scored_by(folder)
    likes = state.likes(folder)
    return explain_pair(pair_id, shards, Ranking.load(folder.ranking), scoring, read_table(folder.bad_rows), likes)


def _embedding_steps(config: Config, models: Mapping[str, ModelSpec], sns: SNSSettings) -> list[Step]:
    """Return what takes every shard from the pool to its embeddings; ``sns`` with the pool's cut scores."""
    steps: list[Step] = []
    if sns.mode != "off":
        steps.append(SNSStep(sns, config.sns_expert, models, config.media))
    steps.append(ExpertStep(config.experts, models, config.anchor, config.media))
    return steps


def _project(projection: Path, config: Config) -> ProjectionStep:
    return ProjectionStep(projection, list(Projection.load(projection).sources), config.anchor)


@dataclass
class _Curation:
    job: Job
    config: Config

    def curate(self) -> Result:
        """Take the pool through all steps, or as many as an earlier run has left, and choose."""
        config, job, folder = self.config, self.job, self.job.folder
        pool = job.take_in(config.pools)
        shards = pool.shards
        job.reporter.say(f"{'pool':<17} {shards.pairs:,} pairs in {shards.count} shards, {pool.bad_rows:,} bad rows")
        if config.ranked_by.quota_by == POOL:
            check_pools(config.ranked_by.quotas, shards)  # before anything is embedded
        models = job.fits.statistics(config.models, shards)
        sns = job.fits.trimming(config, models, shards)
        shards = job.take_through(_embedding_steps(config, models, sns), shards)
        projection = job.fits.projection(config, shards)
        shards = job.take_through([_project(projection, config)], shards)
        matcher = job.fits.matcher(config, models, shards)
        shards = job.take_through([MatchStep(matcher, models, config.media)], shards)
        state = State(
            stages=tuple(map(folder.relative, shards.stages)),
            shards=shards.count,
            rows=pool.rows,
            bad_rows=pool.bad_rows,
            inputs=pool.inputs,
            models={name: spec.model_dump(by_alias=True) for name, spec in config.models.items()},
            statistics={
                name: folder.relative(spec.arguments[loader.STATISTICS])
                for name, spec in models.items()
                if spec != config.models[name]
            },
            projection=folder.relative(projection),
            matcher=folder.relative(matcher),
            cuts="" if sns.cuts == config.sns.cuts else folder.relative(str(sns.cuts)),
            notes=pool.notes,
        )
        state.save(folder)
        return self._rank(state, models)

    def rank_again(self, trust: Trust) -> Result:
        """Rank what an earlier run has embedded."""
        folder = self.job.folder
        state = State.load(folder)
        models = trust.admit(state.specs(folder), folder)
        # Conditions that the caller names are the caller's; those that the folder names may be anybody's.
        theirs = folder.load_config().ranking.conditions
        conditions = {k: spec for k, spec in self.config.ranking.computed.items() if spec == theirs.get(k)}
        trust.admit(conditions, folder, kind="condition")
        return self._rank(state, models)

    def _rank(self, state: State, models: Mapping[str, ModelSpec]) -> Result:
        """Score the pairs, fit how scores are put together, choose, and write blend, quarantine and manifest."""
        config, settings, job, folder = self.config, self.config.ranked_by, self.job, self.job.folder
        pool = state.as_pool(folder)
        examples = self._examples(state, models)
        score = score_step(config, models, pool.shards.columns(), likenesses(config, examples))
        conditions = [ConditionStep(settings.computed)] if settings.computed else []
        scored = job.take_through([score, *conditions], pool.shards)
        columns = [*score.scores, MATCH, *(name for step in conditions for name in step.provides)]
        spaces = {space.score: space.column for space in score.spaces}
        near = scored

        def add(feedback: FeedbackStep) -> ShardStore:
            nonlocal near
            near = job.take_through([feedback], scored)
            return near

        fitted = job.fits.scoring(settings, columns, spaces, scored, add)
        scoring = Scoring.load(fitted)
        if scoring.means and near is scored:  # an earlier ranking has fitted it
            add(FeedbackStep(spaces, scoring.means))
        ranking = choose(near, scoring, settings, config.budget)
        self._tell(ranking)
        mirror.unlink(folder.manifest)  # it vouches for what stands beside it
        ranking.save(folder.ranking)
        added = tuple(map(folder.relative, near.stages[len(state.stages) :]))
        shown = tuple(map(folder.relative, examples))
        replace(state, ranked=added, scoring=folder.relative(fitted), examples=shown).save(folder)
        self._forget_rankings_but(near.stages)
        job.fits.forget("scoring", fitted)
        write_json(folder.timings, {name: round(took, 3) for name, took in job.reporter.seconds.items()})
        manifest = job.finish(
            pool,
            ranking.chosen,
            ranking.places,
            near,
            _counts(pool, near),
            told=outcome.told(near.columns()),
            jsonl=config.jsonl,
            notes=[*outcome.notes(config), *outcome.caveats(config)],
            models=loader.identities(models),
            projection={"metrics": Projection.load(folder.path / state.projection).metrics},
            matching=Matcher.load(folder.path / state.matcher).about(),
            ranking=ranking.summary,
            mix=outcome.mix_entry(config.ranking, ranking.summary),
        )
        return Result(folder.path, manifest)

    def _examples(self, state: State, models: Mapping[str, ModelSpec]) -> list[Path]:
        """Embed the examples of queries, where that has not been done, as this run's pairs are embedded."""
        queries = [query for query in self.config.queries if query.like is not None]
        if not queries:
            return []
        folder = self.job.folder
        project = _project(folder.path / state.projection, self.config)
        steps = [*_embedding_steps(self.config, models, state.trimmed_by(self.config, folder)), project]
        untrimmed = [step for step in steps if not isinstance(step, SNSStep)]
        return [self.job.fits.examples(query, steps, untrimmed) for query in queries]

    def _tell(self, ranking: Ranking) -> None:
        """Say what scores from elsewhere lack."""
        for name in self.config.ranking.scores:
            known, ranked = ranking.summary["statistics"][GIVEN + name]["pairs"], ranking.summary["ranked"]
            rest = "; the others count as the mean" if known < ranked else ""
            self.job.reporter.say(f"{'score ' + name:<17} {known:,} of {ranked:,} pairs have one{rest}")

    def _forget_rankings_but(self, stages: Sequence[Path]) -> None:
        """Remove the scores of earlier queries: they are made anew in no time, and every query would leave some."""
        for name in (ScoreStep.name, ConditionStep.name, FeedbackStep.name):
            for stage in self.job.folder.stages(name):
                if stage not in stages:
                    remove(stage, is_part)


def _counts(pool: Pool, shards: ShardStore) -> dict[str, Any]:
    """Return the pairs of every step by modality, JSON-able."""
    steps = count_steps(shards)
    last = steps[-1]
    pairs_in = dict(sorted(steps[0].rows.items()))
    return {
        "pool": {"rows": pool.rows, "bad_rows": pool.bad_rows, "in": pairs_in},
        "steps": [step.as_json() for step in steps],
        "ranked": {modality: pairs - last.failed(modality) for modality, pairs in sorted(last.rows.items())},
    }

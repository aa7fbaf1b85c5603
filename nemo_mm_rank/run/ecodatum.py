"""EcoDatum as a job: operators score, duplicates go, labeling functions vote, a label model weighs, the best stay.

Xu et al., "Quality over Quantity: Boosting Data Efficiency Through Ensembled Multimodal Data Curation" (2025). The
labeling functions' thresholds may be searched for, with a small labelled set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field
from rich.console import Console

from nemo_mm_rank import config as settings_of
from nemo_mm_rank.config import OFF, Budget, ExpertSpec, MediaSettings, ModelSpec, Settings, parse
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import check_free
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import read_sealed, read_table, write_sealed, write_table
from nemo_mm_rank.io.owned import local
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.loader import STATISTICS
from nemo_mm_rank.quality import operators
from nemo_mm_rank.quality.duplicates import DuplicateSettings, deduplicate
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, LABELLED, Ensemble, fit
from nemo_mm_rank.quality.ensemble.search import SearchSettings, search
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings, default_functions
from nemo_mm_rank.quality.ensemble.step import QUALITY, VOTES, EnsembleStep, LookUpStep, choose, label_step
from nemo_mm_rank.quality.operators import OperatorSettings
from nemo_mm_rank.quality.text_filters import existing_file
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import Pool, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job, StrategyConfig, at_work
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import AGREEMENT, PAIR_ID, WEAKEST
from nemo_mm_rank.shards import live
from nemo_mm_rank.steps import Step
from nemo_mm_rank.tables import Row, Table

SETUP, ENSEMBLE, LOSERS = "operators.json", "ensemble", "duplicates.parquet"
"""In the run's folder for what is fitted."""


class OperatorSetup(Settings):
    """The quality operators and what they need."""

    operators: OperatorSettings = Field(description="The quality operators, together with those that read embeddings.")
    experts: tuple[ExpertSpec, ...] = Field(
        description="Experts that embed both sides first; none where the pool comes with embeddings."
    )
    anchor: str = Field(description="The model that embeds annotations for the experts.")
    models: dict[str, ModelSpec] = Field(description="The models, by name, with their statistics of the pool.")
    media: MediaSettings

    @property
    def scoring(self) -> list[Step]:
        """The operators' steps."""
        return operators.steps(self.operators, self.models, self.media)

    @property
    def embedding(self) -> list[Step]:
        """What embeds both sides first, where anything has to."""
        return [ExpertStep(self.experts, self.models, self.anchor, self.media)] if self.experts else []

    @property
    def steps(self) -> list[Step]:
        """All steps, one after the other."""
        return [*self.embedding, *self.scoring]

    def save(self, folder: RunFolder) -> None:
        """Write it into the run's folder; paths below it stay true where the folder is moved."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for spec in values["models"].values():
            if (path := spec.get(STATISTICS)) and Path(path).is_relative_to(folder.path):
                spec[STATISTICS] = folder.relative(path)
        for operator in values["operators"]["others"].values():
            if Path(operator["reference"]).is_relative_to(folder.path):
                operator["reference"] = folder.relative(operator["reference"])
        write_sealed(folder.fitted / SETUP, values)

    @classmethod
    def load(cls, run: str | Path) -> tuple[OperatorSetup, Ensemble]:
        """Read it back, with the ensemble that was fitted to the scores.

        Raises:
            UserError: the folder holds no finished job.
        """
        folder = RunFolder.at(run)
        if not (folder.fitted / SETUP).exists():
            raise UserError(f"{folder.path} contains no finished EcoDatum job")
        values = read_sealed(folder.fitted / SETUP)
        for spec in values["models"].values():
            if path := spec.get(STATISTICS):
                spec[STATISTICS] = str(folder.path / path)
        for operator in values["operators"].get("others", {}).values():
            operator["reference"] = str(folder.path / operator["reference"])
        return parse(cls, values), Ensemble.load(folder.fitted / ENSEMBLE)


SCORES, DUPLICATES, SEARCH = "quality.parquet", "duplicates.parquet", "search.parquet"
"""Quality and votes of every pair, the groups of duplicates, and what a search has tried, in the run's folder."""

STRENGTH = 0.5
"""Of quality as a condition of a ranking: how much the logarithm of its chance counts. It knows of agreement as well,
so that agreement by itself counts so much less."""


class LabelledSearch(SearchSettings):
    """A search for thresholds with a labelled set."""

    truth: Annotated[str, AfterValidator(existing_file)] = Field(
        description="A Parquet file with pair_id and clean. These pairs of the pool serve the search only and are"
        " never chosen."
    )


class EcoDatumSettings(Settings):
    """The parts of EcoDatum's ensemble."""

    operators: OperatorSettings = Field(default_factory=OperatorSettings)
    duplicates: Annotated[DuplicateSettings | Literal["off"], OFF] = Field(default_factory=DuplicateSettings)
    ensemble: EnsembleSettings | None = Field(
        None, description="The labeling functions. Default: what each operator can judge."
    )


class EcoDatumConfig(EcoDatumSettings, StrategyConfig):
    """A whole EcoDatum job. Either ``pools`` or ``run`` has to be given.

    With ``run``, what that run has embedded is used: its experts' embeddings, and the agreement out of sample, of the
    annotation and of its sentence that fits least.
    """

    kind = "ecodatum"
    libraries = ("numpy", "pillow", "pyarrow", "scipy", "torch")

    budget: Budget = Field(
        default_factory=lambda: Budget(fraction=0.4),
        description="Size of the blend: a number of pairs or a share. The paper keeps 40 %.",
    )
    output: str = "ecodatum-run"
    trust_run: bool = Field(
        False, description="Load whatever classes the folder of the run names: code from there will run."
    )
    media: MediaSettings = Field(default_factory=MediaSettings)
    models: dict[str, ModelSpec] = Field(default_factory=lambda: dict(settings_of.CLASSICAL_MODELS))
    experts: tuple[ExpertSpec, ...] = Field(
        default_factory=lambda: settings_of.CLASSICAL_EXPERTS,
        description="Experts that embed both sides where `operators.experts` asks for it and there is no run.",
    )
    anchor: str = Field("text", description="The model that embeds annotations for the experts.")
    search: LabelledSearch | None = Field(
        None, description="Search for thresholds with a labelled set. Default: the thresholds stay as they are."
    )
    tie_break: str | None = Field(
        None,
        description="The column that decides between pairs of equal quality, by their standing in the modality. "
        "Default: the agreement of the sentence that fits least.",
    )


@dataclass(frozen=True)
class EcoDatumResult(Result):
    """A finished job: ``blend``, ``quarantine`` and ``manifest`` as the main job's."""

    @cached_property
    def quality(self) -> pd.DataFrame:
        """Every pair that could be judged: ``pair_id, quality, votes, duplicate_of``, in the pool's order.

        The quality of a duplicate is lowered as by a veto.
        """
        frame: pd.DataFrame = read_table(self.folder / SCORES).to_pandas()
        return frame

    def print(self, console: Console | None = None) -> None:
        """Print how each labeling function votes, what it weighs, and what somebody should know."""
        ensemble = self.manifest["ensemble"]
        measures = ("selects", "rejects", "overlap", "conflict", "weight")
        rows = [
            Row((name, *("veto" if values[measure] is None else f"{values[measure]:.3f}" for measure in measures)))
            for name, values in ensemble["functions"].items()
        ]
        out = console or SafeConsole()
        out.print(Table(f"labeling functions on {ensemble['pairs']:,} pairs", ["function", *measures], rows))
        if (self.folder / SEARCH).exists():
            out.print(_search_table(read_table(self.folder / SEARCH)))
        counts = self.manifest["counts"]
        out.print(
            f"{self.manifest['blend']['pairs']:,} pairs chosen of {ensemble['pairs']:,}; "
            f"{counts['duplicates']:,} duplicates, {counts['quarantined']:,} quarantined",
            highlight=False,
        )
        for line in (*ensemble["warnings"], *self.manifest["notes"]):
            out.print(f"note: {line}", style="yellow", markup=False, highlight=False)


def _search_table(trace: pa.Table, most: int = 5) -> Table:
    """Return the choices of thresholds with the greatest M: does it choose what the labelled set would?"""
    measures = ("m", "f1", "overlap", "conflict", "coverage")
    order = [("best", "descending"), ("m", "descending")]
    best = trace.filter(pc.is_valid(trace["m"])).sort_by(order).slice(0, most).to_pylist()
    rows = [Row([f"{row[name]:.3f}" for name in measures]) for row in best]
    title = f"the best of {trace.num_rows:,} choices of thresholds"
    return Table(title, ["M", "F1", *measures[2:]], rows, text=())


def as_condition(ranking: settings_of.RankingSettings, job: str | Path) -> dict[str, Any]:
    """Return the settings of a ranking that change where the quality that a job has found is one more condition.

    Args:
        ranking: as it is without.
        job: the folder of a finished EcoDatum job.

    Raises:
        UserError: it holds none.
    """
    scores = local(job) / SCORES
    if not scores.exists():
        raise UserError(f"{job} contains no finished EcoDatum job")
    quality = settings_of.GivenScore(path=mirror.named(scores), column=QUALITY).model_dump(mode="json")
    scores_there = {name: score.model_dump(mode="json", exclude_none=True) for name, score in ranking.scores.items()}
    return {"scores": {**scores_there, QUALITY: quality}, "conditions": {**ranking.conditions, QUALITY: STRENGTH}}


def curate(
    config: EcoDatumConfig, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> EcoDatumResult:
    """Fill the budget by EcoDatum; finished shards of an earlier run in the same folder are kept.

    The output folder holds ``blend.parquet``, ``quality.parquet`` (of every pair that could be judged, duplicates
    too), ``duplicates.parquet``, ``quarantine.parquet`` and ``manifest.json``, and after a search ``search.parquet``
    with its whole trace. A share as the budget counts the pairs that are left once duplicates are gone.

    Args:
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a job on other pools that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    config.register()
    loader.check_models({**config.models, **config.operators.own})
    if config.run is not None:
        _admitted(config, RunFolder.at(config.run))  # before anything is written
    with at_work(config, console, engine, overwrite) as job:
        return _EcoDatum(job, config.pool(job), config).curate()


def _admitted(config: EcoDatumConfig, run: RunFolder) -> dict[str, ModelSpec]:
    """Return the models that a run's folder names, where all of them may be loaded.

    Raises:
        UserError: one of them may not.
    """
    return Trust(config.import_from, config.trust_run).admit(State.load(run).specs(run), run)


@dataclass
class _EcoDatum:
    job: Job
    pool: Pool
    config: EcoDatumConfig

    def curate(self) -> EcoDatumResult:
        config, job = self.config, self.job
        check_free(self.pool.shards.pool.columns(), (QUALITY, VOTES, DUPLICATE_OF, LABELLED), "ecodatum, in the pool")
        setup, shards = self._setup(), self.pool.shards
        if setup.operators.others:
            shards = job.take_through(setup.embedding, shards)
            others = job.fits.others(setup.operators.others, 0, shards)
            setup = setup.model_copy(update={"operators": setup.operators.model_copy(update={"others": others})})
            setup.save(job.folder)
            shards = job.take_through(setup.scoring, shards)
        else:
            setup.save(job.folder)
            shards = job.take_through(setup.steps, shards)
        scores = operators.columns(setup.scoring)
        agreement = [name for name in operators.agreements(setup.operators) if name in scores]
        shards, groups = self._without_duplicates(shards, agreement)
        shards, settings, trace = self._searched(shards, self._ensemble(shards, scores))
        with job.reporter.whole("label model", shards.pairs):
            fitted = fit(shards, settings, job.engine.map)
        ensemble = fitted.ensemble
        ensemble.save(job.folder.fitted / ENSEMBLE)
        scored = job.take_through([EnsembleStep(ensemble)], shards)
        # Where a crowd has equal votes, the sentence that fits least tells more than the whole annotation.
        weakest = [operators.column(name) for name in setup.operators.weakest]
        tie_break = config.tie_break or next((name for name in (*weakest, *agreement) if name in scores), None)
        if tie_break is not None and tie_break not in scored.columns():
            raise ConfigError(f"tie_break: there is no column {tie_break!r}{nearest(tie_break, scored.columns())}")
        choice = choose(
            scored, ensemble.names, config.budget, fitted.pairs, tie_break, ensemble.vetoes, settings.by_modality
        )
        manifest = job.finish(
            self.pool,
            choice.chosen,
            choice.places,
            scored,
            {"duplicates": 0 if groups is None else int(pc.sum(pc.invert(groups["kept"])).as_py() or 0)},
            files={SCORES: _judged(scored), DUPLICATES: groups, SEARCH: trace},
            strategy=config.kind,
            steps=[step.identity() for step in setup.steps],
            run=[stage.name for stage in self.pool.shards.stages[1:]],  # the names have the steps' digests
            operators=scores,
            tie_break=tie_break,
            ensemble=fitted.as_json(),
        )
        return EcoDatumResult(job.folder.path, manifest)

    def _setup(self) -> OperatorSetup:
        """Return the operators, those of embeddings among them, and what has to be embedded for them first."""
        config, job = self.config, self.job
        asked, experts, models = config.operators, config.experts, config.models
        if config.run is not None:
            run = RunFolder.at(config.run)
            experts, models = run.load_config().experts, {**models, **_admitted(config, run)}
            scores = {name: name for name in (AGREEMENT, WEAKEST) if name in self.pool.shards.columns()}
            asked = asked.model_copy(update={"given": {**scores, **asked.given}})
        shared = operators.shared_experts(experts)
        if not asked.experts:
            asked = asked.model_copy(update={"experts": shared})
        if "weakest" not in asked.model_fields_set:
            weakest = {f"weakest_{name.removeprefix('agreement_')}": expert for name, expert in shared.items()}
            asked = asked.model_copy(update={"weakest": weakest})
        used = {operator.expert for operator in (*asked.experts.values(), *asked.weakest.values())}
        used |= {operator.expert.partition("__")[0] for operator in asked.others.values()}
        embedding = tuple(expert for expert in experts if expert.name in used) if config.run is None else ()
        if embedding:
            models = job.fits.statistics(models, self.pool.shards)
        return OperatorSetup(
            operators=asked, experts=embedding, anchor=config.anchor, models=models, media=config.media
        )

    def _ensemble(self, shards: ShardStore, scores: list[str]) -> EnsembleSettings:
        if self.config.ensemble is None:
            return EnsembleSettings(functions=default_functions(scores))
        columns = shards.columns()
        for name, function in self.config.ensemble.functions.items():
            if function.column not in columns:
                close = nearest(function.column, columns)
                raise ConfigError(f"ensemble: labeling function {name!r}: no column {function.column!r}{close}")
        return self.config.ensemble

    def _without_duplicates(self, shards: ShardStore, agreement: list[str]) -> tuple[ShardStore, pa.Table | None]:
        """Add ``duplicate_of``, and return the groups of duplicates."""
        settings, job = self.config.duplicates, self.job
        if settings == "off":
            return shards, None
        if "by" not in settings.model_fields_set and agreement:
            settings = settings.model_copy(update={"by": tuple(agreement)})
        with job.reporter.whole("duplicates", shards.pairs):
            groups = deduplicate(shards, settings).groups
        losers = groups.filter(pc.invert(groups["kept"])).select([PAIR_ID, "group"])
        path = job.folder.fitted / LOSERS
        write_table(path, losers.rename_columns([PAIR_ID, DUPLICATE_OF]))
        step = LookUpStep(path, DUPLICATE_OF, DUPLICATE_OF, pa.string(), "duplicates")
        return job.take_through([step], shards), groups

    def _searched(
        self, shards: ShardStore, settings: EnsembleSettings
    ) -> tuple[ShardStore, EnsembleSettings, pa.Table | None]:
        """Return the shards, with the labelled set marked, the best thresholds, and how they were found."""
        job, labelled = self.job, self.config.search
        if labelled is None:
            return shards, settings, None
        shards = job.take_through([label_step(labelled.truth)], shards)
        with job.reporter.whole("search", shards.pairs):
            best = search(shards, settings, labelled, job.engine.map)
        return shards, best.settings, best.trace


def _judged(scored: ShardStore) -> pa.Table:
    """Return quality and votes of every pair that has them, in the pool's order."""
    schema = pa.schema(
        [(PAIR_ID, pa.string()), (QUALITY, pa.float32()), (VOTES, pa.list_(pa.int8())), (DUPLICATE_OF, pa.string())]
    )
    table = pa.concat_tables([table for _, _, table in live(scored, schema.names)])
    if DUPLICATE_OF not in table.column_names:
        table = table.append_column(DUPLICATE_OF, pa.nulls(table.num_rows, pa.string()))
    return table.select(schema.names).cast(schema).combine_chunks()

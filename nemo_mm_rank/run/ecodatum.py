"""EcoDatum as a job: operators score, duplicates go, labeling functions vote, a label model weighs, the best stay.

Xu et al., "Quality over Quantity: Boosting Data Efficiency Through Ensembled Multimodal Data Curation" (2025). The
labeling functions' thresholds may be searched for, with a small labelled set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field
from rich import box
from rich.console import Console
from rich.table import Table

from nemo_mm_rank.config import (
    CLASSICAL_EXPERTS,
    CLASSICAL_MODELS,
    OFF,
    Budget,
    ExpertSpec,
    GivenScore,
    MediaSettings,
    ModelSpec,
    RankingSettings,
    parse,
)
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import check_free
from nemo_mm_rank.io.files import read_note, write_json, write_table
from nemo_mm_rank.io.owned import drop, take
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.loader import STATISTICS
from nemo_mm_rank.quality.dedup import Duplicates, DuplicateSettings, deduplicate
from nemo_mm_rank.quality.ensemble.choose import Choice, choose
from nemo_mm_rank.quality.ensemble.fit import DUPLICATE_OF, LABELLED, Ensemble, fit
from nemo_mm_rank.quality.ensemble.plot import plot_search
from nemo_mm_rank.quality.ensemble.search import SearchSettings, search
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings, default_functions
from nemo_mm_rank.quality.ensemble.step import QUALITY, VOTES, EnsembleStep, LabelStep
from nemo_mm_rank.quality.operators import OperatorSettings, agreements, column, columns, shared_experts, steps
from nemo_mm_rank.quality.text_filters import existing_file
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.fits import Fits
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job, StrategyConfig, at_work
from nemo_mm_rank.run.store import ShardStore, digest
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.schema import AGREEMENT, PAIR_ID, WEAKEST
from nemo_mm_rank.shards import live
from nemo_mm_rank.steps import Step

FILE, ENSEMBLE = "operators.json", "ensemble"
"""In the run's folder for what is fitted."""


@dataclass(frozen=True)
class Operated:
    """Operators, and what they need.

    Attributes:
        operators: settings, with those of embeddings.
        experts: that embed both sides first; none where the pool came with embeddings.
        anchor: the model that embeds annotations for them.
        models: by name, with their statistics of the pool.
        media: how media are opened.
    """

    operators: OperatorSettings
    experts: tuple[ExpertSpec, ...]
    anchor: str
    models: dict[str, ModelSpec]
    media: MediaSettings

    @property
    def scoring(self) -> list[Step]:
        """The operators' steps."""
        return steps(self.operators, self.models, self.media)

    @property
    def steps(self) -> list[Step]:
        """All steps, one after the other."""
        experts = [ExpertStep(self.experts, self.models, self.anchor, self.media)] if self.experts else []
        return [*experts, *self.scoring]

    def save(self, folder: RunFolder) -> None:
        """Write it into the run's folder; paths below it stay true where the folder is moved."""
        models = {name: spec.model_dump(mode="json", by_alias=True) for name, spec in self.models.items()}
        for spec in models.values():
            if (path := spec.get(STATISTICS)) and Path(path).is_relative_to(folder.path):
                spec[STATISTICS] = folder.relative(path)
        values = {
            "operators": self.operators.model_dump(mode="json", by_alias=True, exclude_none=True),
            "experts": [expert.model_dump(mode="json", exclude_defaults=True) for expert in self.experts],
            "anchor": self.anchor,
            "models": models,
            "media": self.media.model_dump(mode="json"),
        }
        write_json(folder.fitted / FILE, values)

    @classmethod
    def load(cls, run: str | Path) -> tuple[Operated, Ensemble]:
        """Read it back, with the ensemble that was fitted to the scores.

        Raises:
            UserError: the folder holds no finished job.
        """
        folder = RunFolder.at(run)
        try:
            values = json.loads((folder.fitted / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{folder.path} holds no finished EcoDatum job") from error
        for spec in values["models"].values():
            if path := spec.get(STATISTICS):
                spec[STATISTICS] = str(folder.path / path)
        operated = cls(
            parse(OperatorSettings, values["operators"]),
            tuple(parse(ExpertSpec, expert) for expert in values["experts"]),
            values["anchor"],
            {name: parse(ModelSpec, spec) for name, spec in values["models"].items()},
            parse(MediaSettings, values["media"]),
        )
        return operated, Ensemble.load(folder.fitted / ENSEMBLE)


SCORES, DUPLICATES = "quality.parquet", "duplicates.parquet"
SEARCH, PLOT = "search.parquet", "search.png"
"""Quality and votes of every pair, the groups of duplicates, and what a search has tried, in the run's folder."""

_NO_MATTER: dict[str, Any] = {
    "pools": True,
    "run": True,
    "engine": True,
    "output": True,
    "import_from": True,
    "trust_run": True,
    "shards": True,
    "rows_per_shard": True,
    "media": {"threads"},
}
"""Settings that say where and how the work is done, and change nothing of what comes out (inputs have digests)."""

STRENGTH = 0.5
"""Of quality as a condition of a ranking: how much the logarithm of its chance counts. It knows of agreement as well,
so that agreement by itself counts so much less."""

VERSIONS = ("numpy", "pillow", "pyarrow", "scipy", "torch")
"""Libraries whose version can change what comes out."""


class LabelledSearch(SearchSettings):
    """A search for thresholds with a labelled set."""

    truth: Annotated[str, AfterValidator(existing_file)] = Field(
        description="Parquet with pair_id and clean: pairs of the pool that are there to search with, never chosen"
    )


class EcoDatumConfig(StrategyConfig):
    """A whole job. Either ``pools`` or ``run`` has to be given.

    With ``run``, what that run has embedded is used: its experts' embeddings, and the agreement out of sample, of the
    annotation and of its sentence that fits least.
    """

    budget: Budget = Field(default_factory=lambda: Budget(fraction=0.4), description="the paper keeps 40 %")
    output: str = "ecodatum-run"
    trust_run: bool = Field(False, description="load whatever classes the run's folder names: code from there runs")
    media: MediaSettings = Field(default_factory=MediaSettings)
    models: dict[str, ModelSpec] = Field(default_factory=lambda: dict(CLASSICAL_MODELS))
    experts: tuple[ExpertSpec, ...] = Field(
        default_factory=lambda: CLASSICAL_EXPERTS,
        description="embed both sides where `operators.experts` asks for it and there is no run",
    )
    anchor: str = Field("text", description="the model that embeds annotations for the experts")
    operators: OperatorSettings = Field(default_factory=OperatorSettings)
    duplicates: Annotated[DuplicateSettings | Literal["off"], OFF] = Field(default_factory=DuplicateSettings)
    ensemble: EnsembleSettings | None = Field(None, description="default: what each operator can fairly say")
    search: LabelledSearch | None = Field(None, description="for thresholds, with a labelled set; default: as they are")
    tie_break: str | None = Field(
        None,
        description="decides between equals, by standing in the modality; default: the sentence that fits least",
    )


@dataclass(frozen=True)
class EcoDatumResult(Result):
    """A finished job: ``blend``, ``quarantine`` and ``manifest`` as the main job's."""

    @cached_property
    def quality(self) -> pd.DataFrame:
        """Every pair that could be judged: ``pair_id, quality, votes, duplicate_of``, in the pool's order.

        The quality of a duplicate is lowered as by a veto.
        """
        return pd.read_parquet(self.folder / SCORES)

    def print(self, console: Console | None = None) -> None:
        """Print how each labeling function votes, what it weighs, and what somebody should know."""
        ensemble = self.manifest["ensemble"]
        table = Table(box=box.SIMPLE, title=f"labeling functions on {ensemble['pairs']:,} pairs", title_justify="left")
        table.add_column("function", no_wrap=True)
        measures = ("selects", "rejects", "overlap", "conflict", "weight")
        for name in measures:
            table.add_column(name, justify="right")
        for name, values in ensemble["functions"].items():
            table.add_row(name, *("veto" if values[one] is None else f"{values[one]:.3f}" for one in measures))
        out = console or SafeConsole()
        out.print(table)
        counts = self.manifest["counts"]
        out.print(
            f"{self.manifest['blend']['pairs']:,} pairs chosen of {ensemble['pairs']:,}; "
            f"{counts['duplicates']:,} duplicates, {counts['quarantined']:,} quarantined",
            highlight=False,
        )
        for line in ensemble["warnings"]:
            out.print(f"note: {line}", style="yellow", markup=False, highlight=False)


def as_condition(ranking: RankingSettings, job: str | Path) -> dict[str, Any]:
    """Return the settings of a ranking that change where the quality that a job has found is one more condition.

    Args:
        ranking: as it is without.
        job: the folder of a finished EcoDatum job.

    Raises:
        UserError: it holds none.
    """
    scores = Path(job) / SCORES
    if not scores.exists():
        raise UserError(f"{job} holds no finished EcoDatum job")
    quality = GivenScore(path=str(scores.absolute()), column=QUALITY).model_dump(mode="json")
    given = {name: one.model_dump(mode="json", exclude_none=True) for name, one in ranking.scores.items()}
    return {"scores": {**given, QUALITY: quality}, "conditions": {**ranking.conditions, QUALITY: STRENGTH}}


def curate(
    config: EcoDatumConfig, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> EcoDatumResult:
    """Fill the budget by EcoDatum; finished shards of an earlier run in the same folder are kept.

    The output folder holds ``blend.parquet``, ``quality.parquet`` (of every pair that could be judged, duplicates
    too), ``duplicates.parquet``, ``quarantine.parquet`` and ``manifest.json``, and after a search ``search.parquet``
    with its whole trace and ``search.png``. A share as the budget counts the pairs
    that are left once duplicates are gone.

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
    with at_work("ecodatum", config, console, engine, overwrite) as job:
        return _EcoDatum(job, config).curate()


def _admitted(config: EcoDatumConfig, run: RunFolder) -> dict[str, ModelSpec]:
    """Return the models that a run's folder names, where all of them may be loaded.

    Raises:
        UserError: one of them may not.
    """
    return Trust(config.import_from, config.trust_run).admit(State.load(run).specs(run), run)


@dataclass
class _EcoDatum:
    job: Job
    config: EcoDatumConfig

    def curate(self) -> EcoDatumResult:
        config, job = self.config, self.job
        check_free(job.pool.shards.columns(), (QUALITY, VOTES, DUPLICATE_OF, LABELLED), "ecodatum, in the pool")
        operated = self._operated()
        operated.save(job.folder)
        shards, scores = job.through(operated.steps, job.pool.embedded), columns(operated.scoring)
        agreement = [name for name in agreements(operated.operators) if name in scores]
        shards, groups = self._without_duplicates(shards, agreement)
        shards, settings, trace = self._searched(shards, self._ensemble(shards, scores))
        with job.reporter.step("label model", job.pool.pairs) as advance:
            fitted = fit(shards, settings, job.engine.map)
            advance(job.pool.pairs)
        fitted.ensemble.save(job.folder.fitted / ENSEMBLE)
        scored = job.through([EnsembleStep(fitted.ensemble)], shards)
        # Where a crowd has equal votes, the sentence that fits least tells more than the whole annotation.
        weakest = [column(name) for name in operated.operators.weakest]
        tie_break = config.tie_break or next((name for name in (*weakest, *agreement) if name in scores), None)
        if tie_break is not None and tie_break not in scored.columns():
            raise ConfigError(f"tie_break: no column {tie_break!r}{nearest(tie_break, scored.columns())}")
        ensemble = fitted.ensemble
        choice = choose(
            scored, ensemble.names, config.budget, fitted.pairs, tie_break, ensemble.vetoes, settings.by_modality
        )
        about = {
            "run": [stage.name for stage in job.pool.embedded.stages[1:]],  # the names have the steps' digests
            "steps": [step.identity() for step in operated.steps],
            "operators": scores,
            "tie_break": tie_break,
            "ensemble": fitted.as_json(),
        }
        return self._write(choice, scored, groups, trace, about)

    def _operated(self) -> Operated:
        """Return the operators, those of embeddings among them, and what has to be embedded for them first."""
        config, pool = self.config, self.job.pool
        operators = config.operators
        if config.run is not None:
            run = RunFolder.at(config.run)
            used_there = _admitted(config, run)
            experts, models = run.load_config().experts, {**config.models, **used_there}
            there = {name: name for name in (AGREEMENT, WEAKEST) if name in pool.embedded.columns()}
            operators = operators.model_copy(update={"given": {**there, **operators.given}})
        else:
            experts, models = config.experts, config.models
        shared = shared_experts(experts)
        if not operators.experts:
            operators = operators.model_copy(update={"experts": shared})
        if "weakest" not in operators.model_fields_set:
            weakest = {f"weakest_{name.removeprefix('agreement_')}": one for name, one in shared.items()}
            operators = operators.model_copy(update={"weakest": weakest})
        used = {one.expert for one in (*operators.experts.values(), *operators.weakest.values())}
        embedding = tuple(expert for expert in experts if expert.name in used) if config.run is None else ()
        if embedding:
            fits = Fits(self.job.folder.fitted, self.job.engine, self.job.reporter, pool.pairs)
            models = fits.statistics(models, pool.shards)
        return Operated(operators, embedding, config.anchor, models, config.media)

    def _ensemble(self, shards: ShardStore, scores: list[str]) -> EnsembleSettings:
        if self.config.ensemble is None:
            return EnsembleSettings(functions=default_functions(scores))
        there = shards.columns()
        for name, function in self.config.ensemble.functions.items():
            if function.column not in there:
                close = nearest(function.column, there)
                raise ConfigError(f"ensemble: labeling function {name!r}: no column {function.column!r}{close}")
        return self.config.ensemble

    def _without_duplicates(self, shards: ShardStore, agreement: list[str]) -> tuple[ShardStore, pa.Table | None]:
        """Add ``duplicate_of``, and return the groups of duplicates."""
        settings, job = self.config.duplicates, self.job
        if settings == "off":
            return shards, None
        if "by" not in settings.model_fields_set and agreement:
            settings = settings.model_copy(update={"by": tuple(agreement)})
        with job.reporter.step("duplicates", job.pool.pairs) as advance:
            found = deduplicate(shards, settings)
            identity = digest(settings.model_dump(mode="json"))
            folder = job.folder.stage("duplicates", identity)
            _write_duplicates(found, shards, folder, identity)
            advance(job.pool.pairs)
        return shards.then(folder), found.groups

    def _searched(
        self, shards: ShardStore, settings: EnsembleSettings
    ) -> tuple[ShardStore, EnsembleSettings, pa.Table | None]:
        """Return the shards, with the labelled set marked, the best thresholds, and how they were found."""
        job, wanted = self.job, self.config.search
        if wanted is None:
            return shards, settings, None
        shards = job.through([LabelStep(Path(wanted.truth))], shards)
        with job.reporter.step("search", job.pool.pairs) as advance:
            found = search(shards, settings, wanted, job.engine.map)
            advance(job.pool.pairs)
        return shards, found.settings, found.trace

    def _write(
        self, choice: Choice, scored: ShardStore, groups: pa.Table | None, trace: pa.Table | None, about: dict[str, Any]
    ) -> EcoDatumResult:
        """Write all files, the manifest that vouches for them last."""
        job, config = self.job, self.config
        blend, quarantine = job.write(choice.chosen, choice.places, scored)
        write_table(job.folder.path / SCORES, _judged(scored))
        for name, table in ((DUPLICATES, groups), (SEARCH, trace)):
            if table is None:
                drop(job.folder.path, name)
            else:
                write_table(take(job.folder.path, name), table)
        if trace is None:
            drop(job.folder.path, PLOT)
        elif find_spec("matplotlib"):
            plot_search(trace, take(job.folder.path, PLOT))
        else:
            job.reporter.say("no plot of the search: this needs the extra [report]")
        losers = 0 if groups is None else groups.num_rows - int(pc.sum(groups["kept"]).as_py() or 0)
        about = {
            "config": config.model_dump(mode="json", by_alias=True, exclude=_NO_MATTER, exclude_none=True),
            **about,
        }
        manifest = job.manifest("ecodatum", VERSIONS, about, {"duplicates": losers}, blend, quarantine)
        write_json(job.folder.manifest, manifest)
        return EcoDatumResult(job.folder.path, manifest)


def _write_duplicates(found: Duplicates, shards: ShardStore, folder: Path, identity: str) -> None:
    """Write ``duplicate_of`` as a stage of the run, each file keyed by all shards: any of them may hold the other."""
    gone = found.groups.filter(pc.invert(found.groups["kept"]))
    losers, winners = gone[PAIR_ID].combine_chunks(), gone["group"].combine_chunks()
    everything = digest([identity, [shards.key(part) for part in range(shards.count)]])
    for part, rows, table in live(shards, [PAIR_ID]):
        path, key = folder / part_name(part), digest([everything, part])
        if (read_note(path) or {}).get("key") == key:
            continue
        place = np.full(shards.rows(part), -1)
        mine = rows[~found.kept[part]]
        ids = table[PAIR_ID].filter(pa.array(~found.kept[part])).cast(losers.type)
        place[mine] = pc.index_in(ids, value_set=losers).to_numpy()
        column = winners.take(pa.array(place, mask=place < 0))
        write_table(path, pa.table({DUPLICATE_OF: column}), {"key": key, "counts": {}})


def _judged(scored: ShardStore) -> pa.Table:
    """Return quality and votes of every pair that has them, in the pool's order."""
    schema = pa.schema(
        [(PAIR_ID, pa.string()), (QUALITY, pa.float32()), (VOTES, pa.list_(pa.int8())), (DUPLICATE_OF, pa.string())]
    )
    pieces = []
    for _, _, table in live(scored, schema.names):
        if DUPLICATE_OF not in table.column_names:
            table = table.append_column(DUPLICATE_OF, pa.nulls(table.num_rows, pa.string()))
        pieces.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(pieces).combine_chunks()

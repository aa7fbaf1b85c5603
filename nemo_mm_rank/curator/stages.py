"""Our steps as Curator stages over batches of documents, to stand beside Curator's own in a pipeline."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from nemo_curator.backends.base import NodeInfo, WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, Task

from nemo_mm_rank import frames
from nemo_mm_rank.config import (
    CLASSICAL_EXPERTS,
    CLASSICAL_MODELS,
    Config,
    ExpertSpec,
    JobSettings,
    MediaSettings,
    ModelSpec,
    Query,
    RankingSettings,
    SNSSettings,
    parse,
)
from nemo_mm_rank.errors import ConfigError, FailedError, MissingColumnError, TextError, nearest
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import check_free
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.batches import is_whole
from nemo_mm_rank.io.columns import as_json
from nemo_mm_rank.matching import MatchStep
from nemo_mm_rank.models import loader
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.reasons import reasons
from nemo_mm_rank.run.store import StepCounts, split_error
from nemo_mm_rank.schema import (
    ANNOTATION_SPANS,
    CANONICAL,
    CONTENTS,
    DATA_BYTES,
    DATA_PARTS,
    DATA_SPANS,
    ERROR,
    FUSED,
    MEDIA_ROOT,
    MODALITY,
    PARTS,
    SNS_REASON,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SPANS,
    VECTOR,
    annotation_column,
    data_column,
    description_column,
)
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step, columns_added, reason

_OURS = {
    DATA_BYTES: pa.binary(),
    DATA_PARTS: PARTS,
    SOURCE_MEDIA: PARTS,
    SOURCE_CONTENTS: CONTENTS,
    MEDIA_ROOT: pa.string(),
    ERROR: pa.string(),
    DATA_SPANS: SPANS,
    ANNOTATION_SPANS: SPANS,
    SNS_REASON: pa.string(),
    FUSED: VECTOR,
}
ALLOWED = JobSettings.model_fields["allow_failures"].default
_VECTORS = (data_column(""), annotation_column(""))


def to_table(batch: DocumentBatch) -> pa.Table:
    """Return the rows of a batch, pandas or Arrow, as an Arrow table without an index and pandas' metadata.

    Curator's filters and modifiers go through pandas, where our lists become objects that have lost their type, and
    a column of nulls any type at all. Our columns get their types back; the values are the same. Where pandas held
    several types in one column, each value is JSON text, and a row in which one of our texts is none has failed.
    """
    data = batch.data
    table = data if isinstance(data, pa.Table) else _strings(_from_pandas(data))
    for place, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        kind = _kind(name)
        if kind is not None and column.type != kind and (pa.types.is_null(column.type) or pa.types.is_nested(kind)):
            table = table.set_column(place, name, column.cast(kind))
    return table.replace_schema_metadata(None)


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, UnicodeEncodeError):
        columns = {name: _column(frame[name]) for name in frame.columns}
    reasons = columns[ERROR].to_pylist() if ERROR in columns else [None] * len(frame)
    for name in CANONICAL:
        for row, value in enumerate(frame[name]) if name in frame.columns else ():
            if reasons[row] is None and not _missing(value) and not (isinstance(value, str) and is_whole(value)):
                reasons[row] = reason("batch", TextError(f"{name} is {shown(value)}, no text"))
    return pa.table({**columns, ERROR: pa.array(reasons, pa.string())})


def _missing(value: Any) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _column(values: pd.Series[Any]) -> pa.Array:
    try:
        return pa.Array.from_pandas(values)
    except (pa.ArrowException, UnicodeEncodeError):
        there = [None if _missing(value) else value for value in values]
        if values.name in CANONICAL:
            there = [None if value is None else str(value) for value in there]
            return pa.array([value if is_whole(value) else ascii(value) for value in there])
        return as_json([value if is_whole(value) else ascii(value) for value in there])


def _strings(table: pa.Table) -> pa.Table:
    """Return ``table`` with strings of the common kind: pandas has but one, and Arrow takes it for the large one."""
    fields = [field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _kind(name: str) -> pa.DataType | None:
    if name.startswith(_VECTORS):
        return VECTOR
    return pa.string() if name.startswith(description_column("")) else _OURS.get(name)


def with_rows(batch: DocumentBatch, table: pa.Table) -> DocumentBatch:
    """Return a new batch with the rows of ``table`` that goes on for ``batch``: its name, metadata and measurements."""
    return DocumentBatch(
        dataset_name=batch.dataset_name, data=table, _metadata=batch._metadata, _stage_perf=batch._stage_perf
    )


def put(table: pa.Table, columns: pa.Table) -> pa.Table:
    """Return ``table`` with ``columns`` of the same rows added at its end; ``error`` takes the place of what it was.

    Raises:
        TakenColumnError: any other is there already.
    """
    check_free(set(table.column_names) - {ERROR}, columns.column_names, "batch")
    kept = table.select([name for name in table.column_names if name not in columns.column_names])
    return pa.table([*kept.columns, *columns.columns], names=[*kept.column_names, *columns.column_names])


Experts = Sequence[ExpertSpec | Mapping[str, Any]]
Models = Mapping[str, ModelSpec | Mapping[str, Any]]
Queries = str | Query | Mapping[str, Any] | Sequence[str | Query | Mapping[str, Any]]


def checked(**sections: Any) -> Config:
    """Check the sections of the configuration that a stage has, as those of a whole one are checked.

    Raises:
        ConfigError: one line per mistake.
    """
    return parse(Config, {"pools": "-", "queries": "unused", **sections})


def classical_models() -> dict[str, ModelSpec]:
    """Return the models that need no download."""
    return dict(CLASSICAL_MODELS)


@dataclass(kw_only=True, repr=False)
class StepStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """A step of ours as a stage: every batch comes out with the step's columns added, as a new Arrow table.

    A pair that cannot be processed keeps its row, with the reason in ``error``, and later stages pass it by;
    `QuarantineStage` takes such rows out. What goes on is the same to the bit however the rows are batched.

    Metrics of every call: ``pairs`` (rows in), ``kept`` (live rows out), ``quarantined`` (rows that failed here),
    ``trimmed`` (by SNS) and ``seconds``.

    Args:
        allow_failures: a stage that fails for this share of the pairs of a modality that a worker has seen (20 at
            least) ends the pipeline, as it ends ``nemo-mm-rank curate``; ``100%``: none does.
        name: in the pipeline; default: the step's.
        resources: of one worker. Models run on the GPU where one is asked for, otherwise on the CPU.
        batch_size: batches that a worker is given at a time; each is processed by itself.
    """

    allow_failures: float | str = ALLOWED
    name: str = ""
    resources: Resources = field(default_factory=Resources)
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the settings; no model is loaded.

        Raises:
            UserError: settings that cannot be meant.
        """
        self.step, self._models = self._make()
        self.name = self.name or self.step.name
        self._most = checked(allow_failures=self.allow_failures).allow_failures
        self._counts = StepCounts(self.name)

    @abstractmethod
    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        """Check the fields; return the step, and the models that it loads."""

    def inputs(self) -> tuple[list[str], list[str]]:
        """The columns that the step reads."""
        return ["data"], list(self.step.requires)

    def outputs(self) -> tuple[list[str], list[str]]:
        """The columns that the step adds."""
        return ["data"], [*self.step.provides, ERROR]

    def validate_input(self, task: Task[Any]) -> bool:
        """Check that the batch has the columns that the step reads, and none that it adds.

        Raises:
            MissingColumnError: naming the stage and the columns that are missing.
            TakenColumnError: naming the stage and those of its columns that the batch has already.
        """
        require_columns(task, self.step.requires, self.name)
        frames.check_free(task.get_columns(), self.step.provides, self.name)
        return True

    def setup_on_node(self, node_info: NodeInfo | None = None, worker_metadata: WorkerMetadata | None = None) -> None:
        """See that the models' files are on this machine; what is there stays as it is."""
        loader.prefetch(self._models)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the models.

        Raises:
            UserError: naming a model that cannot be loaded.
        """
        self.step.setup(self._device)

    def teardown(self) -> None:
        """Let go of the models."""
        self.step = copy.copy(self.step)  # steps are pickled and copied without what they have loaded
        loader.release(self._models)

    def process(self, task: DocumentBatch) -> DocumentBatch:
        """Return a new batch with the step's columns added to the rows of ``task``.

        Raises:
            MissingColumnError: naming the stage and the columns that are missing.
            TakenColumnError: naming the stage and those of its columns that the batch has already.
            FailedError: it fails for nearly all pairs of a modality; with the most frequent reason.
        """
        self.validate_input(task)
        started = time.perf_counter()
        table = to_table(task)
        self.step.device = self._device
        added = columns_added(self.step, table)
        self._measure(table, added, time.perf_counter() - started)
        self._check(table, added)
        return with_rows(task, put(table, added))

    def _check(self, before: pa.Table, added: pa.Table) -> None:
        """Count what has failed so far, and raise where that is nearly all of a modality."""
        if MODALITY not in before.column_names:
            return
        live = before[ERROR].is_null() if ERROR in before.column_names else pa.repeat(True, len(before))
        failed = pc.and_(live, added[ERROR].is_valid())
        rows = before.select([MODALITY]).append_column(ERROR, added[ERROR])
        self._counts.rows.update(rows.filter(live)[MODALITY].to_pylist())
        here: dict[str, list[tuple[str, str, str]]] = {}
        for row in rows.filter(failed).to_pylist():
            here.setdefault(row[MODALITY], []).append(split_error(row[ERROR]))
        for modality, errors in here.items():
            self._counts.quarantined.setdefault(modality, Counter()).update(kind for _, kind, _ in errors)
        for modality in here.keys() & set(self._counts.hopeless(self._most)):
            parts = dict(zip(("step", "error", "message"), zip(*here[modality], strict=True), strict=True))
            raise FailedError(
                f"{self._counts.summary(modality, reasons(pa.table(parts))[0])}; once that is mended, run the pipeline "
                "again, or go on without these pairs: allow_failures='100%'"
            )

    @property
    def _device(self) -> str:
        return "cuda" if self.resources.requires_gpu else "cpu"

    def _measure(self, before: pa.Table, added: pa.Table, seconds: float) -> None:
        """Add to the metrics of this call: Curator takes them once for all batches of a call."""
        live = before[ERROR].null_count if ERROR in before.column_names else before.num_rows
        kept = added[ERROR].null_count
        measured = {"pairs": before.num_rows, "kept": kept, "quarantined": live - kept, "seconds": seconds}
        if DATA_SPANS in added.column_names:
            trimmed = pc.or_(pc.is_valid(added[DATA_SPANS]), pc.is_valid(added[ANNOTATION_SPANS]))
            measured["trimmed"] = pc.sum(trimmed, min_count=0).as_py()
        so_far = getattr(self, "_custom_metrics", None) or {}
        self._log_metrics({name: so_far.get(name, 0.0) + value for name, value in measured.items()})


BRIDGES = {
    "ImageBatch": "ImagePairsStage",
    "ImageSampleTask": "ImageSamplePairsStage",
    "AudioTask": "AudioPairsStage",
    "VideoTask": "ClipPairsStage",
    "InterleavedBatch": "InterleavedPairsStage",
}
"""Curator's tasks -> the stage of ours that makes pairs of them."""


def require_type(task: Task[Any], kind: type[Task[Any]], stage: str) -> None:
    """Check that a stage is given the tasks that it takes.

    Raises:
        ConfigError: naming both, and the stage that goes between them.
    """
    if not isinstance(task, kind):
        there = type(task).__name__
        way = f": put {BRIDGES[there]} before it" if kind is DocumentBatch and there in BRIDGES else ""
        raise ConfigError(f"{stage}: takes {kind.__name__}, not {there}{way}")


def require_columns(task: Task[Any], columns: Iterable[str], stage: str) -> None:
    """Check that a batch of documents has ``columns``.

    Raises:
        ConfigError: it is no batch of documents.
        MissingColumnError: naming the stage and the columns that the batch lacks.
    """
    require_type(task, DocumentBatch, stage)
    try:
        frames.check_columns(pd.DataFrame(columns=task.get_columns()), dict.fromkeys(columns), stage)
    except MissingColumnError as error:
        hint = "" if set(CANONICAL) <= set(task.get_columns()) else "; PairColumnsStage makes pairs of any columns"
        raise MissingColumnError(f"{error}{hint}") from None


@dataclass(kw_only=True, repr=False)
class SNSStage(StepStage):
    """Trims pairs to the parts that support each other: `sns.step.SNSStep`.

    Args:
        sns: which side, and how boldly.
        experts: the one that ``sns.expert`` names judges; default: the first that shares a space with text.
        models: the experts' models by name.
        media: how media are opened.
    """

    sns: SNSSettings | Mapping[str, Any]
    experts: Experts = CLASSICAL_EXPERTS
    models: Models = field(default_factory=classical_models)
    media: MediaSettings | Mapping[str, Any] = field(default_factory=MediaSettings)

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        anchor = next(iter(self.models), "")  # SNS has none
        config = checked(sns=self.sns, experts=self.experts, models=self.models, media=self.media, anchor=anchor)
        expert = config.sns_expert
        used = set() if config.sns.mode == "off" else expert.models | set(config.sns.grounders.values())
        step = SNSStep(config.sns, expert, config.models, config.media)
        return step, {name: config.models[name] for name in sorted(used)}


@dataclass(kw_only=True, repr=False)
class EncoderStage(StepStage):
    """A stage whose step embeds by the experts' models and the anchor.

    Args:
        experts: which experts.
        models: their models by name, and the anchor.
        anchor: the model that embeds annotations (and queries).
        media: how media are opened, and bounds on texts.
    """

    experts: Experts = CLASSICAL_EXPERTS
    models: Models = field(default_factory=classical_models)
    anchor: str = "text"
    media: MediaSettings | Mapping[str, Any] = field(default_factory=MediaSettings)

    @property
    def _checked(self) -> Config:
        return checked(experts=self.experts, models=self.models, anchor=self.anchor, media=self.media)


@dataclass(kw_only=True, repr=False)
class ExpertEmbeddingStage(EncoderStage):
    """Embeds both sides of every pair with every expert: `experts.step.ExpertStep`. Arguments: `EncoderStage`, and

    Args:
        given: experts whose embeddings of data are there already, as ``emb_data__<expert>``, L2-normalised.
    """

    given: Sequence[str] = ()

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        config = self._checked
        names = [expert.name for expert in config.experts]
        for name in self.given:
            if name not in names:
                raise ConfigError(f"given: there is no expert {name!r}{nearest(name, names)}")
        step = ExpertStep(config.experts, config.models, config.anchor, config.media, tuple(self.given))
        return step, {name: config.models[name] for name in sorted(step.used)}


@dataclass(kw_only=True, repr=False)
class ProjectionStage(StepStage):
    """Fuses the experts in one space by a projection that was fitted before: `projection.step.ProjectionStep`.

    Args:
        projection: its folder, for example ``RUN/fitted/projection-...``; on a file system that all nodes see.
        anchor: the model that embedded the annotations.
    """

    projection: str | Path
    anchor: str = "text"

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        folder = Path(self.projection).absolute()  # workers may stand elsewhere
        return ProjectionStep(folder, list(Projection.load(folder).sources), self.anchor), {}


@dataclass(kw_only=True, repr=False)
class MatchStage(StepStage):
    """Adds how likely each pair's annotation is its data's own, by a matcher that was fitted before: `MatchStep`.

    A run's score needs it; cosines with queries do without.

    Args:
        matcher: its folder, for example ``RUN/fitted/matching-...``; on a file system that all nodes see.
        models: models by name, the anchor among them.
        media: bounds on texts.
    """

    matcher: str | Path
    models: Models = field(default_factory=classical_models)
    media: MediaSettings | Mapping[str, Any] = field(default_factory=MediaSettings)

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        media = parse(MediaSettings, self.media)
        models = {name: parse(ModelSpec, model) for name, model in self.models.items()}
        step = MatchStep(Path(self.matcher).absolute(), models, media)  # workers may stand elsewhere
        if step.anchor not in models:
            raise ConfigError(f"models: there is no model {step.anchor!r}, which embeds the sentences for the matcher")
        return step, {step.anchor: models[step.anchor]}


@dataclass(kw_only=True, repr=False)
class RankScoreStage(StepStage):
    """Scores pairs against queries in every space that holds text: `run.queries.QueryStep`.

    Args:
        queries: the objective in plain words; several, with weights.
        experts: those that the pairs were embedded by.
        models: their models by name, and the anchor.
        anchor: the model that embeds queries.
        ranking: how several queries are combined.
        scoring: a finished run's statistics (`run.finished.FinishedRun.scoring`). With them there is a ``score``
            besides the cosines, the one that the run itself gives such a pair.
        examples: that run's files for queries by examples (`run.finished.FinishedRun.examples`).
    """

    queries: Queries
    experts: Experts = CLASSICAL_EXPERTS
    models: Models = field(default_factory=classical_models)
    anchor: str = "text"
    ranking: RankingSettings | Mapping[str, Any] = field(default_factory=RankingSettings)
    scoring: Scoring | None = None
    examples: Sequence[Path] = ()

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        config = checked(
            queries=self.queries, experts=self.experts, models=self.models, anchor=self.anchor, ranking=self.ranking
        )
        step = QueryStep(config, config.models, self.scoring, self.examples)
        return step, {name: config.models[name] for name in step.query_models}

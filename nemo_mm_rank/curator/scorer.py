"""Tasks of other kinds scored in their place, as a finished run scored its own pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from nemo_curator.backends.base import NodeInfo, WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.curator.pairs import Bridge
from nemo_mm_rank.curator.stages import ALLOWED
from nemo_mm_rank.curator.workflow import MultimodalRankStage
from nemo_mm_rank.curator.writers import QuarantineStage
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.ranking.queries import SCORE
from nemo_mm_rank.schema import ERROR


@dataclass(kw_only=True, repr=False)
class Scorer(Bridge):
    """A stage that scores what tasks hold and hands the tasks on: `MultimodalRankStage` within one stage.

    What cannot be scored stays, with the reason beside it; with ``quarantine`` it is taken out, as `QuarantineStage`
    does. Metrics of every call: ``pairs``, ``kept`` and ``quarantined``.

    Args:
        run: the folder of a finished run, on a file system that all nodes see.
        import_from: folders whose classes the run may name as its models.
        trust_run: load whatever classes the run names.
        quarantine: the folder for what fails; default: it stays.
        allow_failures: see `StepStage`.
        column: the score that counts: ``score``, ``agreement_score``, ``match_probability`` ...
    """

    run: str | Path | None = None
    import_from: str | Path | Sequence[str | Path] = ()
    trust_run: bool = False
    quarantine: str | Path | None = None
    allow_failures: float | str = ALLOWED
    column: str = SCORE
    _stages: list[ProcessingStage[Any, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Check everything and make the stages; no model is loaded.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        super().__post_init__()
        self._quarantine = None if self.quarantine is None else QuarantineStage(self.quarantine)
        if self.run is not None:
            given = () if self.embedding is None else (self.embedding.partition("__")[0],)
            named = ("import_from", "trust_run", "allow_failures", "resources")
            ranking = MultimodalRankStage(run=self.run, given=given, **{name: getattr(self, name) for name in named})
            self._stages = ranking.decompose()

    def setup_on_node(self, node_info: NodeInfo | None = None, worker_metadata: WorkerMetadata | None = None) -> None:
        """See that the models' files are on this machine."""
        for stage in self._stages:
            stage.setup_on_node(node_info, worker_metadata)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the models."""
        for stage in self._stages:
            stage.setup(worker_metadata)

    def teardown(self) -> None:
        """Let go of the models."""
        for stage in self._stages:
            stage.teardown()

    def scored(self, tasks: Sequence[Any]) -> pa.Table:
        """Return what ``tasks`` hold as pairs with their scores, in their order; what fails is in the quarantine.

        Raises:
            ConfigError: a task of another kind, or there is no such score.
        """
        batch = DocumentBatch(dataset_name=tasks[0].dataset_name, data=self.pairs(tasks))
        for stage in self._stages:
            batch = stage.process(batch)
        if self._quarantine is not None:
            self._quarantine.process(batch)
        table = batch.data
        if self.column not in table.column_names:
            there = ", ".join(name for name in table.column_names if pa.types.is_floating(table[name].type))
            raise ConfigError(f"{self.name}: the run gives no score {self.column!r}; it gives {there}")
        live = table[ERROR].null_count
        self._log_metrics({"pairs": len(table), "kept": live, "quarantined": len(table) - live})
        return table

    @property
    def keeps_failed(self) -> bool:
        """Whether what cannot be scored stays."""
        return self._quarantine is None

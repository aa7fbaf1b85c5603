"""EcoDatum in a Curator pipeline: its operators, the ensemble's score, and all of it as one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.config import MediaSettings, ModelSpec, parse
from nemo_mm_rank.curator.stages import ALLOWED, ExpertEmbeddingStage, Models, StepStage
from nemo_mm_rank.curator.writers import QuarantineStage
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.quality.ensemble.fit import Ensemble
from nemo_mm_rank.quality.ensemble.step import EnsembleStep
from nemo_mm_rank.quality.operators import ColumnsStep, MediaStep, OperatorSettings, SentenceStep, TextStep, steps
from nemo_mm_rank.run.ecodatum import ENSEMBLE, OperatorSetup
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.trust import Trust
from nemo_mm_rank.steps import Step


@dataclass(kw_only=True, repr=False)
class OperatorStage(StepStage):
    """Adds the scores of one kind of quality operators, ``quality__<operator>``; the kinds are the classes below.

    Args:
        operators: which ones; those of other kinds are passed by.
        models: by name, for operators that name one.
        media: how media are opened.
    """

    kind: ClassVar[type[Step]]

    operators: OperatorSettings | Mapping[str, Any] = field(default_factory=OperatorSettings)
    models: Models = field(default_factory=dict)
    media: MediaSettings | Mapping[str, Any] = field(default_factory=MediaSettings)

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        operators = parse(OperatorSettings, self.operators)
        named = {name: parse(ModelSpec, spec) for name, spec in self.models.items()}
        for step in steps(operators, named, parse(MediaSettings, self.media)):
            if isinstance(step, self.kind):
                own = operators.own if self.kind is MediaStep else {}
                return step, {name: named[name] for name in sorted(_used(operators, self.kind))} | own
        raise ConfigError(f"{type(self).__name__}: the settings name no operator of this kind")


class TextQualityStage(OperatorStage):
    """Adds what the annotation's words say of a pair: `quality.operators.TextStep`."""

    kind = TextStep


class MediaQualityStage(OperatorStage):
    """Adds what a look at the data says, and the keys of duplicates: `quality.operators.MediaStep`."""

    kind = MediaStep


class ColumnQualityStage(OperatorStage):
    """Adds what columns and embeddings that are there already say: `quality.operators.ColumnsStep`."""

    kind = ColumnsStep


class SentenceQualityStage(OperatorStage):
    """Adds how well the annotation's weakest sentence agrees with embeddings that are there: `SentenceStep`."""

    kind = SentenceStep


def _used(operators: OperatorSettings, kind: type[Step]) -> set[str]:
    """Return the models that operators of one kind load."""
    if kind is MediaStep:
        agreement, grounding = operators.agreement.values(), operators.grounding.values()
        return {one.model for one in agreement} | {one.model for one in grounding}
    if kind is SentenceStep:
        return {one.model for one in operators.weakest.values()}
    if kind is TextStep and operators.concreteness and operators.concreteness.model:
        return {operators.concreteness.model}
    return set()


@dataclass(kw_only=True, repr=False)
class EnsembleStage(StepStage):
    """Adds ``quality`` and ``votes`` by an ensemble that was fitted before: `quality.ensemble.EnsembleStep`.

    Args:
        ensemble: its folder, ``RUN/fitted/ensemble``; on a file system that all nodes see.
    """

    ensemble: str | Path

    def _make(self) -> tuple[Step, Mapping[str, ModelSpec]]:
        return EnsembleStep(Ensemble.load(Path(self.ensemble).absolute())), {}


@dataclass(kw_only=True, repr=False)
class EcoDatumStage(CompositeStage[DocumentBatch, DocumentBatch]):
    """Scores pairs as a finished EcoDatum job has scored its own, and takes out those that fail.

    Stands for ``experts`` (where the job embedded its pool), ``quality-texts``, ``quality-media``, ``quality-columns``,
    ``quality-sentences``, ``quality-ensemble`` and ``quarantine``; by these names ``with_`` changes one of them. A job
    on a finished run has used what that run embedded: put `MultimodalRankStage` of the same run before it.

    Duplicates are not looked for: that takes all pairs at once.

    Args:
        run: the folder of the job.
        import_from: folders whose classes the job may name as its models and operators.
        trust_run: load whatever classes the job names; a folder may be anybody's.
        quarantine: the folder for pairs that fail; default: they stay, with the reason in ``error``.
        allow_failures: see `StepStage`.
        resources: of one worker of the stages that have models.
    """

    run: str | Path
    import_from: str | Path | Sequence[str | Path] = ()
    trust_run: bool = False
    quarantine: str | Path | None = None
    allow_failures: float | str = ALLOWED
    resources: Resources = field(default_factory=Resources)
    name: str = "ecodatum"

    def __post_init__(self) -> None:
        """Check everything and make the stages; no model is loaded.

        Raises:
            UserError: the folder holds no finished job, or names code that is not trusted.
        """
        super().__init__()
        run = Path(self.run).absolute()
        done, _ = OperatorSetup.load(run)
        trust = Trust.of(self.import_from, self.trust_run)
        trust.admit(done.models, RunFolder(run), describing=True)
        trust.admit(done.operators.own, RunFolder(run), kind="operator")
        allowed: dict[str, Any] = {"allow_failures": self.allow_failures}
        self._stages: list[ProcessingStage[Any, Any]] = []
        if done.experts:
            embed: dict[str, Any] = {"models": done.models, "anchor": done.anchor, "media": done.media}
            work: dict[str, Any] = {"resources": self.resources, **allowed}
            self._stages.append(ExpertEmbeddingStage(experts=done.experts, **embed, **work))
        kinds = {type(step) for step in done.scoring}
        stages = (TextQualityStage, MediaQualityStage, ColumnQualityStage, SentenceQualityStage)
        for stage in stages:
            if stage.kind in kinds:
                resources = Resources() if stage is ColumnQualityStage else self.resources
                told: dict[str, Any] = {"operators": done.operators, "models": done.models, "media": done.media}
                self._stages.append(stage(**told, resources=resources, **allowed))
        self._stages.append(EnsembleStage(ensemble=run / "fitted" / ENSEMBLE, **allowed))
        if self.quarantine is not None:
            self._stages.append(QuarantineStage(self.quarantine))

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stages."""
        return list(self._stages)

"""The whole chain as one Curator stage, from a configuration or from a run that is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_curator.stages.base import CompositeStage, ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.api import settings
from nemo_mm_rank.config import Config
from nemo_mm_rank.curator.quarantine import QuarantineStage
from nemo_mm_rank.curator.stages import (
    ExpertEmbeddingStage,
    MatchStage,
    ProjectionStage,
    RankScoreStage,
    SNSStage,
)
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.run.trust import Trust


@dataclass(kw_only=True, repr=False)
class MultimodalRankStage(CompositeStage[DocumentBatch, DocumentBatch]):
    """Trims, embeds, projects and scores pairs, and takes out those that fail.

    Stands for ``sns`` (unless off), ``experts``, ``projection``, ``match`` (where there is a run), ``rank``
    and ``quarantine``; by these names ``with_`` changes one of them:
    ``stage.with_({"experts": {"resources": Resources(gpus=1)}})``.

    Give either ``run``, and pairs are treated as that run treated its own, ``score`` included; or ``config`` and
    ``projection``, for cosines alone. A run's models know the statistics of its pool, which a configuration says
    nothing of, so ``run`` is the way to what a run's projection was fitted on.

    Args:
        run: the folder of a finished run, on a file system that all nodes see.
        import_from: folders whose classes the run may name as its models.
        trust_run: load whatever classes the run names, and ask whatever addresses; a folder may be anybody's.
        config: a `Config`, a mapping, or the path of a YAML file; its pools do not matter here.
        projection: the folder of a fitted projection.
        quarantine: the folder for pairs that fail; default: they stay, with the reason in ``error``.
        resources: of one worker of the stages that have models (``sns``, ``experts`` and ``match``).
    """

    run: str | Path | None = None
    import_from: str | Path | Sequence[str | Path] = ()
    trust_run: bool = False
    config: Config | Mapping[str, Any] | str | Path | None = None
    projection: str | Path | None = None
    quarantine: str | Path | None = None
    resources: Resources = field(default_factory=Resources)
    name: str = "multimodal_rank"

    def __post_init__(self) -> None:
        """Check everything and make the stages; no model is loaded.

        Raises:
            UserError: anything that you can mend, in one line.
        """
        super().__init__()
        if (self.run is None) == (self.config is None) or (self.config is None) != (self.projection is None):
            raise ConfigError("give either the run, or both config and projection")
        if self.run is not None:
            finished = FinishedRun.load(self.run, Trust.of(self.import_from, self.trust_run))
            config, models = finished.config, finished.models
            projection, scoring, matcher = finished.projection, finished.scoring, finished.matcher
        else:
            config = settings(self.config, {"pools": "-"})
            models, scoring, matcher = config.models, None, None
            projection = Path(str(self.projection))
        experts, media, anchor = config.experts, config.media, config.anchor
        spaces: dict[str, Any] = {"experts": experts, "models": models, "anchor": anchor}
        work: dict[str, Any] = {"media": media, "resources": self.resources}
        self._stages: list[ProcessingStage[Any, Any]] = []
        if config.sns.mode != "off":
            self._stages.append(SNSStage(sns=config.sns, experts=experts, models=models, **work))
        self._stages.append(ExpertEmbeddingStage(**spaces, **work))
        self._stages.append(ProjectionStage(projection=projection, anchor=anchor))
        if matcher is not None:
            self._stages.append(MatchStage(matcher=matcher, models=models, **work))
        self._stages.append(RankScoreStage(queries=config.queries, ranking=config.ranking, scoring=scoring, **spaces))
        if self.quarantine is not None:
            self._stages.append(QuarantineStage(self.quarantine))

    def decompose(self) -> list[ProcessingStage[Any, Any]]:
        """Return the stages."""
        return list(self._stages)

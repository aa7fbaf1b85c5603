"""How a job has scored its pool, written down so that pairs that come later are scored in the same way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec, parse
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.io.parquet import write_json
from nemo_mm_rank.models.loader import STATISTICS
from nemo_mm_rank.quality.ensemble.artifact import Ensemble
from nemo_mm_rank.quality.operators import OperatorSettings, steps
from nemo_mm_rank.run.folder import RunFolder
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
            "operators": self.operators.model_dump(mode="json", exclude_none=True),
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

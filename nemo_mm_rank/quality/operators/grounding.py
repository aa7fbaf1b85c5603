"""What a grounder finds of the annotation in the data: how much, how surely, and of how many of its phrases.

EcoDatum counts Grounding DINO's boxes (Xu et al., equation 1). Here any grounder's finds are counted: boxes, or windows
of a recording.

| column            | what                                                                                  |
|-------------------|---------------------------------------------------------------------------------------|
| ``<name>_count``  | finds whose best phrase scores at least the threshold                                  |
| ``<name>_mean``   | mean over all finds of the score of their best phrase, 0 where there are none          |
| ``<name>_best``   | the highest score, 0 where nothing was found                                           |
| ``<name>_coverage`` | share of the phrases that some find scores at least the threshold for               |

What is a find at all, the grounder's own threshold decides: EcoDatum's detector has .1, its count .3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded, Grounder, Item
from nemo_mm_rank.models.contract import answering
from nemo_mm_rank.quality.operators.media_step import Judged
from nemo_mm_rank.quality.operators.settings import GroundingSettings, column
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.sns.components import components

SCORES = ("count", "mean", "best", "coverage")


@dataclass
class Grounding:
    """Adds what one grounder finds.

    Args:
        name: how its columns begin.
        settings: which grounder, and what it looks for.
        models: the configuration's models by name.
        given: columns of these operators come from elsewhere.
    """

    name: str
    settings: GroundingSettings
    models: Mapping[str, ModelSpec]
    given: frozenset[str] = frozenset()
    _grounder: Grounder | None = field(default=None, init=False, repr=False)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Four columns, without those that are given."""
        names = [f"{self.name}_{score}" for score in SCORES]
        return {column(name): pa.float32() for name in names if name not in self.given}

    def setup(self, device: str) -> None:
        """Load the grounder."""
        spec = self.models[self.settings.model]
        loaded = loader.load(self.settings.model, spec.class_, spec.arguments, device)
        self._grounder = loader.as_grounder(self.settings.model, loaded)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_grounder": None}

    def takes(self, modality: Modality) -> bool:
        """What the grounder lists."""
        return self._grounder is not None and modality in self._grounder.modalities

    def identity(self) -> dict[str, Any]:
        """Settings, and the model with its revision."""
        model = self.settings.model
        return {
            "grounding": self.name,
            "columns": list(self.provides),
            "settings": self.settings.model_dump(mode="json"),
            "models": loader.identities({model: self.models[model]}),
        }

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: Modality) -> Judged:
        """Look for the phrases of each annotation in its own data, all of them in one go."""
        assert self._grounder is not None, "setup runs before every frame"  # noqa: S101
        phrases = components(texts, self.settings.phrases)
        with answering(self._grounder.name):
            found = self._grounder.ground(items, phrases, modality)
        scores = np.full((len(items), len(SCORES)), np.nan, dtype=np.float32)
        errors: dict[int, PairError] = {}
        for row, one in enumerate(found):
            if isinstance(one, PairError):
                errors[row] = one
            else:
                scores[row] = summarise(one, self.settings.threshold)
        named = {column(f"{self.name}_{score}"): scores[:, place].copy() for place, score in enumerate(SCORES)}
        return Judged({name: pa.array(named[name], from_pandas=True) for name in self.provides}, errors)


def summarise(grounded: Grounded, threshold: float) -> npt.NDArray[np.float32]:
    """Return ``(4,)`` count, mean, best and coverage; a phrase without a score is not found, and of none NaN is."""
    scores = np.nan_to_num(grounded.scores.float().cpu().numpy())
    best = scores.max(axis=1, initial=0.0)
    covered = (scores >= threshold).any(axis=0)
    return np.array(
        [
            (best >= threshold).sum(),
            best.mean() if len(best) else 0.0,
            best.max(initial=0.0),
            covered.mean() if len(covered) else np.nan,
        ],
        dtype=np.float32,
    )

"""How well the sentence of the annotation that fits least agrees with the data, by embeddings that are there.

The whole annotation's embedding hides a sentence that speaks of something else among those that do not; its own does
not. A pair's score is the least cosine of its data with any sentence (`sns.sentences`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.experts.expert import load_encoder
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.matching.features import Spoken
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.quality.operators.settings import OperatorSettings, column
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, VECTOR, data_column
from nemo_mm_rank.steps import Added, Step


@dataclass
class SentenceStep(Step):
    """Adds the agreement of the weakest sentence, by each expert that the settings name.

    Args:
        settings: ``weakest`` of them.
        models: the configuration's models by name.
        media: bounds on texts.
    """

    settings: OperatorSettings
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "quality-sentences"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation, and the data's embeddings."""
        return {ANNOTATION: pa.string(), **{data_column(one.expert): VECTOR for one in self.settings.weakest.values()}}

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept of the annotation."""
        return (ANNOTATION_SPANS,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per expert."""
        return {column(name): pa.float32() for name in self.settings.weakest}

    def setup(self, device: str | None = None) -> None:
        """Load the encoders (nothing happens where this process has them)."""
        picked = loader.pick_device(device)
        self._encoders = {
            name: load_encoder(one.model, self.models, picked) for name, one in self.settings.weakest.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the loaded models."""
        return {key: value for key, value in self.__dict__.items() if key != "_encoders"}

    def identity(self) -> dict[str, Any]:
        """Experts, and the models with their revisions."""
        used = sorted({one.model for one in self.settings.weakest.values()})
        return {
            "step": self.name,
            **self.settings.model_dump(mode="json", include={"weakest"}),
            "models": loader.identities({name: self.models[name] for name in used}),
        }

    def process(self, rows: Frame) -> Added:
        """Embed each distinct sentence once; null for a pair without an embedding, or without an embedded sentence."""
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        annotations = ["" if row in errors else str(text) for row, text in enumerate(texts)]
        columns: dict[str, pa.Array | Vectors] = {}
        for name, one in self.settings.weakest.items():
            weakest = np.full(len(texts), np.nan, dtype=np.float32)
            data = frames.vectors(rows, data_column(one.expert))
            if bool(data.valid.any()):
                spoken = Spoken.of(annotations, self._encoders[name])
                cosines = spoken.cosines(data)
                owners, lowest = spoken.lowest(cosines)
                weakest[owners] = cosines[lowest]
            columns[column(name)] = pa.array(weakest, from_pandas=True)
        return Added(columns, errors)

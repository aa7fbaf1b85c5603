"""How well the sentence of the annotation that fits least agrees with the data, by embeddings that are there.

The whole annotation's embedding hides a sentence that speaks of something else among those that do not; its own does
not. A pair's score is the least cosine of its data with any sentence (`sns.components`, which SNS also looks up).
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
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.quality.operators.settings import OperatorSettings, column
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, VECTOR, Modality, data_column
from nemo_mm_rank.sns.components import components
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
        """Embed each distinct sentence once; null where a pair has no embedding, an error where a sentence fails."""
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        sentences = components(["" if row in errors else str(text) for row, text in enumerate(texts)], "sentences")
        places: dict[str, int] = {}
        index = np.array([places.setdefault(one, len(places)) for own in sentences for one in own], dtype=np.int64)
        owners = np.repeat(np.arange(len(texts)), [len(own) for own in sentences])
        columns = {}
        for name, one in self.settings.weakest.items():
            encoded = self._encoders[name].encode(list(places), Modality.TEXT)
            for place in np.flatnonzero(np.isin(index, list(encoded.errors))).tolist():
                errors.setdefault(int(owners[place]), encoded.errors[int(index[place])])
            data = frames.vectors(rows, data_column(one.expert))
            weakest = np.full(len(texts), np.inf)
            if data.values.shape[1] and len(index):
                left, right = data.values.double()[owners], encoded.vectors.double().cpu()[index]
                cosines = (left * right).sum(dim=1) / right.norm(dim=1)
                np.minimum.at(weakest, owners, cosines.numpy())
            missing = ~data.valid.numpy() | ~np.isfinite(weakest)
            missing[list(errors)] = True
            columns[column(name)] = pa.array(weakest.astype(np.float32), mask=missing)
        return Added(dict(columns), errors)

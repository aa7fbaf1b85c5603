"""The sentence of each annotation that agrees least with the data.

One sentence of four that speaks of something else hardly moves the whole annotation's embedding; its own gives it away.
So whether a pair's sides agree is judged by the sentence that agrees least, which in an annotation of one sentence is
the annotation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.experts.expert import load_encoder
from nemo_mm_rank.experts.step import VectorColumn
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded
from nemo_mm_rank.ranking.cosine import rowwise
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    FUSED,
    VECTOR,
    WEAKEST,
    WEAKEST_SENTENCE,
    Modality,
    annotation_column,
    weakest_column,
)
from nemo_mm_rank.sns.sentences import Ints, Sentences
from nemo_mm_rank.steps import Added, Step


@dataclass
class WeakestStep(Step):
    """Adds the agreement of the sentence that agrees least, and that sentence's embedding in every space of text.

    The sentence is found in the fused space; one that cannot be embedded is passed by. Its embeddings are null where
    the annotation has only one, whose embedding is there already.

    Args:
        text_models: the models whose spaces hold annotations, the anchor among them.
        models: the configuration's models by name.
        anchor: the model that embedded the annotations for the projection.
        media: bounds on texts.
    """

    text_models: Sequence[str]
    models: Mapping[str, ModelSpec]
    anchor: str
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "weakest"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation, its embedding, and the fused one."""
        return {ANNOTATION: pa.string(), annotation_column(self.anchor): VECTOR, FUSED: VECTOR}

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept of the annotation."""
        return (ANNOTATION_SPANS,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The cosine, the sentence, and a column of its embeddings per model."""
        vectors = {weakest_column(model): VECTOR for model in self.text_models}
        return {WEAKEST: pa.float32(), WEAKEST_SENTENCE: pa.string(), **vectors}

    def setup(self, device: str | None = None) -> None:
        """Load the models (nothing happens where this process has them)."""
        self._device = loader.pick_device(device)
        self._encoders = {model: load_encoder(model, self.models, self._device) for model in self.text_models}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the loaded models."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_encoders", "_device")}

    def identity(self) -> dict[str, Any]:
        """The models with their revisions."""
        models = {name: self.models[name] for name in sorted(self.text_models)}
        return {"step": self.name, "anchor": self.anchor, "models": loader.identities(models)}

    def process(self, rows: Frame) -> Added:
        """Embed the sentences of annotations that have several, each distinct one once."""
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        fused = frames.vectors(rows, FUSED, self._device)
        agreement = rowwise(fused, frames.vectors(rows, annotation_column(self.anchor), self._device))
        agreement[list(errors)] = torch.nan
        columns = {weakest_column(model): VectorColumn(len(rows)) for model in self.text_models}
        said = np.full(len(rows), None, dtype=object)
        sentences = Sentences.of(["" if row in errors else str(text) for row, text in enumerate(texts)], fewest=2)
        if sentences.texts:
            embedded = self._encoders[self.anchor].encode(sentences.texts, Modality.TEXT)
            owners, first, cosines = least(sentences, embedded, fused)
            agreement[torch.from_numpy(owners)] = cosines
            items = [sentences.texts[place] for place in sentences.place[first].tolist()]
            said[owners] = items
            for model, encoder in self._encoders.items():
                # The anchor still has them in its cache. Where another model fails, the whole annotation stands.
                encoded = encoder.encode(items, Modality.TEXT)
                columns[weakest_column(model)].put(owners.tolist(), encoded, {})
        vectors = {name: column.vectors(errors) for name, column in columns.items()}
        cosine = pa.array(agreement.cpu().numpy(), from_pandas=True)
        return Added({WEAKEST: cosine, WEAKEST_SENTENCE: pa.array(said, pa.string()), **vectors}, errors)


def least(sentences: Sentences, embedded: Encoded, data: Vectors) -> tuple[Ints, Ints, torch.Tensor]:
    """Return ``(k,)`` the rows of annotations with an embedded sentence, which one agrees least, and its cosine.

    Args:
        sentences: of ``n`` annotations.
        embedded: their distinct texts; those that failed are passed by.
        data: ``n`` rows in the same space.
    """
    owner, place = torch.from_numpy(sentences.owner), torch.from_numpy(sentences.place)
    there = torch.ones(len(sentences.texts), dtype=torch.bool)
    there[list(embedded.errors)] = False
    device = data.values.device
    spoken = Vectors(embedded.vectors[place].to(device), there[place].to(device))
    cosines = rowwise(Vectors(data.values[owner], data.valid[owner]), spoken)
    owners, first = sentences.least(cosines.double().cpu().numpy())
    return owners, first, cosines[torch.from_numpy(first)]

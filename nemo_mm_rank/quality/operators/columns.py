"""Operators that need no look at the pair: scores that a table has, and agreement of embeddings that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec
from nemo_mm_rank.errors import ConfigError, PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.expert import has_text, load_encoder, sources
from nemo_mm_rank.models.sentences import Spoken
from nemo_mm_rank.quality.operators.settings import ExpertSettings, OperatorSettings, column
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, VECTOR, annotation_column, data_column
from nemo_mm_rank.steps import Added, Portable, Step

DATACOMP = {"clip_b32": "clip_b32_similarity_score", "clip_l14": "clip_l14_similarity_score"}
"""Operator -> column, as ``given`` takes it, of the scores in DataComp's metadata."""


@dataclass
class ColumnsStep(Step):
    """Adds scores made of columns.

    Args:
        settings: ``experts`` and ``given`` of them.
    """

    settings: OperatorSettings
    name: str = "quality-columns"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The columns of the table, and the embeddings."""
        columns: dict[str, pa.DataType] = {name: pa.float32() for name in self.settings.given.values()}
        for expert in self._experts.values():
            columns |= {data_column(expert.expert): VECTOR, annotation_column(expert.model): VECTOR}
        return columns

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per operator."""
        return {column(name): pa.float32() for name in (*self.settings.given, *self._experts)}

    @property
    def _experts(self) -> dict[str, ExpertSettings]:
        return {name: expert for name, expert in self.settings.experts.items() if name not in self.settings.given}

    def identity(self) -> dict[str, Any]:
        """Which columns."""
        return {"step": self.name, **self.settings.model_dump(mode="json", include={"experts", "given"})}

    def process(self, rows: Frame) -> Added:
        """Take over the columns, and multiply the embeddings; null where a pair lacks one.

        Raises:
            ConfigError: a column that is to be a score holds no numbers, or the two sides of an expert are of different
                lengths: they do not lie in one space.
        """
        scores = {column(name): _numbers(rows, source) for name, source in self.settings.given.items()}
        for name, expert in self._experts.items():
            scores[column(name)] = _cosines(rows, data_column(expert.expert), annotation_column(expert.model))
        return Added(dict(scores))


def _numbers(rows: Frame, name: str) -> pa.Array:
    values = frames.array(rows, name)
    try:
        values = pc.cast(values, pa.float32(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"operators.given: column {name!r} holds no numbers ({error})") from error
    return pa.array(values.to_numpy(zero_copy_only=False), pa.float32(), from_pandas=True)


def _cosines(rows: Frame, data: str, annotation: str) -> pa.Array:
    left, right = frames.vectors(rows, data), frames.vectors(rows, annotation)
    both = (left.valid & right.valid).numpy()
    if not both.any():
        return pa.nulls(len(rows), pa.float32())
    if left.values.shape[1] != right.values.shape[1]:
        sizes = f"{left.values.shape[1]} and {right.values.shape[1]}"
        raise ConfigError(f"{data} and {annotation} have {sizes} dimensions: they do not lie in one space")
    products = (left.values.double() * right.values.double()).sum(dim=1).float().numpy()
    return pa.array(np.where(both, products, np.nan), pa.float32(), from_pandas=True)


def shared_experts(experts: Sequence[ExpertSpec]) -> dict[str, ExpertSettings]:
    """Return operators ``agreement_<expert>`` for the experts that embed data and text in one space."""
    return {
        f"agreement_{expert.name.lower().replace('-', '_')}": ExpertSettings(expert=expert.name, model=expert.encoder)
        for expert in experts
        if expert.encoder is not None
    }


def shared_spaces(experts: Sequence[ExpertSpec], models: Mapping[str, ModelSpec]) -> dict[str, ExpertSettings]:
    """Return ``<expert>`` or ``<expert>_<model>`` -> every space that experts share with text, fusion experts' too."""
    spaces = {}
    for source in (source for expert in experts for source in sources(expert)):
        if has_text(source.model, models):
            name = source.column.removeprefix(data_column(""))
            spaces[name.lower().replace("-", "_").replace("__", "_")] = ExpertSettings(expert=name, model=source.model)
    return spaces


@dataclass
class SentenceStep(Portable, Step):
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
        return {
            ANNOTATION: pa.string(),
            **{data_column(operator.expert): VECTOR for operator in self.settings.weakest.values()},
        }

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
            name: load_encoder(operator.model, self.models, picked) for name, operator in self.settings.weakest.items()
        }

    def identity(self) -> dict[str, Any]:
        """Experts, and the models with their revisions."""
        used = sorted({operator.model for operator in self.settings.weakest.values()})
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
        for name, operator in self.settings.weakest.items():
            weakest = np.full(len(texts), np.nan, dtype=np.float32)
            data = frames.vectors(rows, data_column(operator.expert))
            if bool(data.valid.any()):
                spoken = Spoken.of(annotations, self._encoders[name])
                cosines = spoken.cosines(data)
                owners, lowest = spoken.lowest(cosines)
                weakest[owners] = cosines[lowest]
            columns[column(name)] = pa.array(weakest, from_pandas=True)
        return Added(columns, errors)

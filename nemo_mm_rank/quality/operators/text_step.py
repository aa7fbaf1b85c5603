"""The operators that read the annotation, as a step: each distinct text once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import ModelError, PairError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.digest import file_digest
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.contract import answering, fulfil
from nemo_mm_rank.quality.operators import language, text
from nemo_mm_rank.quality.operators.norms import mean_ratings, read_norms
from nemo_mm_rank.quality.operators.settings import OperatorSettings, column
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS
from nemo_mm_rank.steps import Added, Step

LANGUAGE, CONCRETENESS, ICC = "language", "concreteness", "icc"
LANGUAGE_LABEL = f"{column(LANGUAGE)}_label"
"""The likeliest language as the fastText file calls it (string)."""


@runtime_checkable
class TextScorer(Protocol):
    """A model that rates texts; ``revision`` names its weights."""

    name: str
    revision: str

    def score(self, texts: list[str]) -> npt.NDArray[np.floating[Any]]:
        """Return ``(n,)`` ratings, higher is better, none of which depends on its neighbours."""
        ...


@dataclass
class TextStep(Step):
    """Adds what the annotation's words say of a pair, of every modality.

    Args:
        settings: which operators.
        models: the configuration's models by name.
        media: bounds on texts.
    """

    settings: OperatorSettings
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    media: MediaSettings = field(default_factory=MediaSettings)
    name: str = "quality-texts"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation."""
        return {ANNOTATION: pa.string()}

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept of it."""
        return (ANNOTATION_SPANS,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """One column per operator, and the language."""
        columns: dict[str, pa.DataType] = {column(name): pa.float32() for name in self._operators}
        return {**columns, LANGUAGE_LABEL: pa.string()} if LANGUAGE in self._operators else columns

    @property
    def _operators(self) -> list[str]:
        settings, concreteness = self.settings, self.settings.concreteness
        names = [
            *settings.texts,
            *([LANGUAGE] if settings.language else []),
            *([CONCRETENESS] if concreteness and concreteness.norms else []),
            *([ICC] if concreteness and concreteness.model else []),
        ]
        return [name for name in dict.fromkeys(names) if name not in settings.given]

    def setup(self, device: str | None = None) -> None:
        """Open the files, and load the model (nothing happens where this process has them)."""
        if LANGUAGE in self._operators and self.settings.language:
            language.load(self.settings.language.model)
        concreteness = self.settings.concreteness
        if CONCRETENESS in self._operators and concreteness and concreteness.norms:
            read_norms(concreteness.norms)
        if ICC in self._operators and concreteness and concreteness.model:
            self._scorer = _load_scorer(concreteness.model, self.models, loader.pick_device(device))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the loaded model."""
        return {key: value for key, value in self.__dict__.items() if key != "_scorer"}

    def identity(self) -> dict[str, Any]:
        """Operators, what their files hold, and the model's revision."""
        values: dict[str, Any] = {"step": self.name, "operators": self._operators, "version": 1}
        if LANGUAGE in self._operators and self.settings.language:
            settings = self.settings.language
            values[LANGUAGE] = {**settings.model_dump(mode="json"), "model": file_digest(settings.model)}
        concreteness = self.settings.concreteness
        if CONCRETENESS in self._operators and concreteness and concreteness.norms:
            values[CONCRETENESS] = file_digest(concreteness.norms)
        if ICC in self._operators and concreteness and concreteness.model:
            values[ICC] = loader.identities({concreteness.model: self.models[concreteness.model]})
        return values

    def process(self, rows: Frame) -> Added:
        """Judge each distinct annotation, and give every row its scores."""
        places: dict[str, int] = {}
        errors: dict[int, PairError] = {}
        index: list[int | None] = []
        for row, one in enumerate(annotation_texts(rows, self.media)):
            if isinstance(one, str):
                index.append(places.setdefault(one, len(places)))
            else:
                errors[row] = one
                index.append(None)
        taken = pa.array(index, pa.int64())
        return Added({name: scores.take(taken) for name, scores in self._judge(list(places)).items()}, errors)

    def _judge(self, texts: list[str]) -> dict[str, pa.Array]:
        """Return this step's columns for distinct texts."""
        columns: dict[str, pa.Array] = {}
        for name in self._operators:
            if name == LANGUAGE and self.settings.language:
                settings = self.settings.language
                labels, probabilities = language.identify(texts, settings.model, settings.lowercase)
                wanted = np.isin(np.array(labels, dtype=object), settings.languages)
                columns[column(name)] = _floats(np.where(wanted, probabilities, 0.0))
                columns[LANGUAGE_LABEL] = pa.array(labels, pa.string())
            elif name == CONCRETENESS and self.settings.concreteness and self.settings.concreteness.norms:
                columns[column(name)] = _floats(mean_ratings(texts, read_norms(self.settings.concreteness.norms)))
            elif name == ICC:
                columns[column(name)] = _floats(_scored(self._scorer, texts))
            else:
                columns[column(name)] = _floats(text.SCORES[name](texts))
        return columns


def _floats(scores: npt.NDArray[Any]) -> pa.Array:
    """Return scores as float32, null where they are not numbers."""
    return pa.array(scores.astype(np.float32), from_pandas=True)


def _load_scorer(name: str, models: Mapping[str, ModelSpec], device: str) -> TextScorer:
    spec = models[name]
    scorer: TextScorer = loader.load(name, spec.class_, spec.arguments, device)
    fulfil(name, scorer, TextScorer)
    return scorer


def _scored(scorer: TextScorer, texts: list[str]) -> npt.NDArray[Any]:
    if not texts:
        return np.zeros(0)
    with answering(scorer.name):
        scores = np.asarray(scorer.score(texts))
    if scores.shape != (len(texts),):
        raise ModelError(f"{scorer.name} returned scores of shape {scores.shape} for {len(texts)} texts")
    return scores

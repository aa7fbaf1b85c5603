"""How well data and annotation fit: by an encoder with a shared space, and by what a grounder finds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as PILImage

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import ConfigError, PairError
from nemo_mm_rank.media.segment import Image, Item, Video, part_key
from nemo_mm_rank.modality import is_media
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, Encoder, Grounded, Grounder, answering
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.quality.operators.media import Judged
from nemo_mm_rank.quality.operators.settings import AgreementSettings, GroundingSettings, column
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.steps import Portable
from nemo_mm_rank.text.phrases import components

AS_IT_IS, MIRRORED, UPSIDE_DOWN = "", "_h", "_v"


S = TypeVar("S", AgreementSettings, GroundingSettings)


@dataclass
class ByModel(Portable, Generic[S]):
    """An operator that asks one model.

    Args:
        name: of the operator; how its columns begin.
        settings: which model, and what it is asked.
        models: the configuration's models by name.
        given: columns of these operators come from elsewhere.
    """

    name: str
    settings: S
    models: Mapping[str, ModelSpec]
    given: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Columns and settings, and the model with its revision."""
        model = self.settings.model
        return {
            type(self).__name__.lower(): self.name,
            "columns": list(self.provides),
            "settings": self.settings.model_dump(mode="json"),
            "models": loader.identities({model: self.models[model]}),
        }

    @property
    @abstractmethod
    def provides(self) -> Mapping[str, pa.DataType]:
        """Columns that it fills."""


class Agreement(ByModel[AgreementSettings]):
    """Adds the agreement by one encoder."""

    _encoder: Encoder | None = None

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """A column for each way of looking."""
        return {column(self.name + way): pa.float32() for way in self._ways}

    @property
    def _ways(self) -> list[str]:
        ways = [AS_IT_IS, MIRRORED, UPSIDE_DOWN] if self.settings.mirrored else [AS_IT_IS]
        return [way for way in ways if self.name + way not in self.given]

    def setup(self, device: str) -> None:
        """Load the encoder.

        Raises:
            ConfigError: it does not embed text, or does not take a modality that it is to judge.
        """
        model = self.settings.model
        encoder = load_encoder(model, self.models, device)
        missing = {Modality.TEXT, *(self.settings.modalities or ())} - set(encoder.modalities)
        if missing:
            takes = ", ".join(sorted(encoder.modalities))
            raise ConfigError(
                f"operator {self.name!r}: model {model!r} takes {takes}, not {', '.join(sorted(missing))}"
            )
        self._encoder = encoder

    def takes(self, modality: str) -> bool:
        """What the settings say, or else the media that the encoder takes."""
        if self.settings.modalities is not None:
            return modality in self.settings.modalities
        return is_media(modality) and self._encoder is not None and modality in self._encoder.modalities

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Embed annotations once, and the data in each of its ways; audio and text have no mirror image."""
        assert self._encoder is not None, "setup runs before every frame"  # noqa: S101
        annotations = self._encoder.encode(texts, Modality.TEXT)
        judged = Judged({}, dict(annotations.errors))
        for way in self._ways:
            if way != AS_IT_IS and modality not in (Modality.IMAGE, Modality.VIDEO):
                continue
            data = self._encoder.encode([mirrored(item, way) for item in items], modality)
            judged.errors = {**data.errors, **judged.errors}
            judged.columns[column(self.name + way)] = pa.array(cosines(data, annotations), from_pandas=True)
        return judged


def cosines(data: Encoded, annotations: Encoded) -> npt.NDArray[np.float32]:
    """Return ``(n,)`` the cosine of each pair of embeddings; NaN where one of them failed."""
    left, right = data.vectors.double(), annotations.vectors.double()
    products = (left * right).sum(dim=1) / (left.norm(dim=1) * right.norm(dim=1))
    values: npt.NDArray[np.float32] = products.float().cpu().numpy()
    return values


def mirrored(item: Item, way: str) -> Item:
    """Return an image, or a video, as it looks mirrored or upside down."""
    if way == AS_IT_IS:
        return item
    if isinstance(item, Image):
        turn = PILImage.Transpose.FLIP_LEFT_RIGHT if way == MIRRORED else PILImage.Transpose.FLIP_TOP_BOTTOM
        return Image(part_key(item.key, way), item.pixels.transpose(turn))
    assert isinstance(item, Video)  # noqa: S101 (nothing else has a mirror image)
    frames = np.flip(item.frames, axis=2 if way == MIRRORED else 1)
    return replace(item, key=part_key(item.key, way), frames=np.ascontiguousarray(frames))


SCORES = ("count", "mean", "best", "coverage")


class Grounding(ByModel[GroundingSettings]):
    """Adds what one grounder finds."""

    _grounder: Grounder | None = None

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

    def takes(self, modality: str) -> bool:
        """What the grounder lists."""
        return self._grounder is not None and modality in self._grounder.modalities

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> Judged:
        """Look for the phrases of each annotation in its own data, all of them in one go."""
        assert self._grounder is not None, "setup runs before every frame"  # noqa: S101
        phrases = components(texts, self.settings.phrases)
        with answering(self._grounder.name):
            grounded_items = self._grounder.ground(items, phrases, modality)
        scores = np.full((len(items), len(SCORES)), np.nan, dtype=np.float32)
        errors: dict[int, PairError] = {}
        for row, grounded in enumerate(grounded_items):
            if isinstance(grounded, PairError):
                errors[row] = grounded
            else:
                scores[row] = summarise(grounded, self.settings.threshold)
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

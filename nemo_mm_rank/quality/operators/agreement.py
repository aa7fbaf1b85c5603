"""How well data and annotation fit by an encoder with a shared space: CLIP score, H-CLIP and V-CLIP, CLAP score.

The score is the cosine of the two embeddings (Hessel et al. 2021, CLIPScore without its factor). ``_h`` and ``_v`` are
those of the picture mirrored and upside down, before the encoder crops it: text in a picture, which models read instead
of looking, is of little help there (Xu et al., EcoDatum, section 3.2). The annotation is embedded once for all three.
A video is what its encoder makes of its frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image as PILImage

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.experts.expert import load_encoder
from nemo_mm_rank.media.segment import Image, Video, part_key
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoded, Encoder, Item
from nemo_mm_rank.quality.operators.media_step import Judged
from nemo_mm_rank.quality.operators.settings import AgreementSettings, column
from nemo_mm_rank.schema import Modality

AS_IT_IS, MIRRORED, UPSIDE_DOWN = "", "_h", "_v"


@dataclass
class Agreement:
    """Adds the agreement by one encoder.

    Args:
        name: of the operator.
        settings: which encoder, and whether mirrored too.
        models: the configuration's models by name.
        given: columns of these operators come from elsewhere.
    """

    name: str
    settings: AgreementSettings
    models: Mapping[str, ModelSpec]
    given: frozenset[str] = frozenset()
    _encoder: Encoder | None = field(default=None, init=False, repr=False)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def takes(self, modality: Modality) -> bool:
        """What the settings say, or else the media that the encoder takes."""
        if self.settings.modalities is not None:
            return modality in self.settings.modalities
        return modality.is_media and self._encoder is not None and modality in self._encoder.modalities

    def identity(self) -> dict[str, Any]:
        """Settings, and the model with its revision."""
        model = self.settings.model
        return {
            "agreement": self.name,
            "ways": self._ways,
            "settings": self.settings.model_dump(mode="json"),
            "models": loader.identities({model: self.models[model]}),
        }

    def judge(self, items: Sequence[Item], texts: Sequence[str], modality: Modality) -> Judged:
        """Embed annotations once, and the data in each of its ways; sound and text have no mirror image."""
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
    """Return a picture, or a video, as it looks mirrored or upside down."""
    if way == AS_IT_IS:
        return item
    if isinstance(item, Image):
        turn = PILImage.Transpose.FLIP_LEFT_RIGHT if way == MIRRORED else PILImage.Transpose.FLIP_TOP_BOTTOM
        return Image(part_key(item.key, way), item.pixels.transpose(turn))
    assert isinstance(item, Video)  # noqa: S101 (nothing else has a mirror image)
    frames = np.flip(item.frames, axis=2 if way == MIRRORED else 1)
    return replace(item, key=part_key(item.key, way), frames=np.ascontiguousarray(frames))

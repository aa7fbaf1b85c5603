"""Any model behind an interface like OpenAI's, as a describer of images, video frames and audio."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image as PILImage
from pydantic import Field

from nemo_mm_rank.config import Settings, parse
from nemo_mm_rank.errors import ConfigError, EmbeddingError, ModelError, PairError, nearest
from nemo_mm_rank.media.encode import wav
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models.base import Described, support
from nemo_mm_rank.models.endpoint_client import Answer, Answers, Body, Calls, Endpoint, Usage, check
from nemo_mm_rank.models.generation import PROMPTS, Prompt, prompts
from nemo_mm_rank.models.windows import as_images, at_rate

SMALLEST = 64
"""Pixels of the longer side below which an image is not shrunk to fit."""

Part = dict[str, Any]


class MediaLimits(Settings):
    """How large what is sent may be."""

    image_format: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(90, ge=1, le=95, description="Quality of the JPEG images that are sent.")
    max_side: int = Field(1024, ge=SMALLEST, description="Longer side in pixels that images are scaled down to.")
    max_bytes: int = Field(
        4 * 2**20, ge=1024, description="Most bytes of one encoded image; larger ones are scaled down further."
    )
    sample_rate: int = Field(16_000, ge=8_000, description="Sample rate in Hz of the audio that is sent.")
    max_seconds: float = Field(600, gt=0, description="Most seconds of a recording; a longer one is refused.")


def content(item: Item, limits: MediaLimits) -> list[Part]:
    """Return the parts of a message that show ``item``: one image, each frame of a video, or a recording.

    Raises:
        EmbeddingError: it is larger than ``limits`` allow.
        ModelError: it is text.
    """
    if isinstance(item, Audio):
        return [{"type": "input_audio", "input_audio": {"data": _base64(_wav(item, limits)), "format": "wav"}}]
    return [{"type": "image_url", "image_url": {"url": _data_url(picture, limits)}} for picture in as_images(item)]


def _data_url(picture: PILImage.Image, limits: MediaLimits) -> str:
    side = limits.max_side
    while True:
        encoded = _encoded(picture, side, limits)
        if len(encoded) <= limits.max_bytes:
            return f"data:image/{limits.image_format};base64,{_base64(encoded)}"
        side = min(side, max(picture.size)) * 3 // 4
        if side < SMALLEST:
            raise EmbeddingError(
                f"even scaled down to {SMALLEST} pixels, the image does not fit the {limits.max_bytes:,} bytes allowed"
            )


def _encoded(picture: PILImage.Image, side: int, limits: MediaLimits) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    # A new image: what else the file said of it (profiles, comments) is not sent.
    small = PILImage.frombytes("RGB", small.size, small.tobytes())
    buffer = io.BytesIO()
    if limits.image_format == "png":
        small.save(buffer, "PNG")
    else:
        small.save(buffer, "JPEG", quality=limits.quality)
    return buffer.getvalue()


def _wav(audio: Audio, limits: MediaLimits) -> bytes:
    if audio.duration > limits.max_seconds:
        raise EmbeddingError(
            f"{audio.duration:,.0f} s of audio are more than the {limits.max_seconds:,.0f} allowed (media.max_seconds)"
        )
    return wav(at_rate(audio, limits.sample_rate), limits.sample_rate)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


WAY_OF_ASKING = 1
"""Counted up where the same settings come to mean another request: kept answers are then asked for anew."""

GENERATION = {"temperature": 0, "max_tokens": 200}
OURS = frozenset({"model", "messages", "stream", "n"})
"""What a request holds that is not for the configuration to say."""

_log = logging.getLogger(__name__)


class EndpointDescriber:
    """Describes media by asking a model behind an interface like OpenAI's.

    Args:
        model: what the endpoint calls it.
        base_url: of the endpoint, such as ``https://integrate.api.nvidia.com/v1``; default: OpenAI's.
        key_variable: the name of the environment variable that holds the key. Default: ``OPENAI_API_KEY`` for
            OpenAI's own endpoint, no key for any other.
        name: what the configuration calls it; default: ``model``.
        modalities: which of ``image``, ``audio`` and ``video`` (sent as frames) the model takes.
        prompt: what is asked; one for all, or by modality. Default: `prompts.PROMPTS`.
        focus: what all descriptions are to attend to, in plain words.
        generation: further members of the request; default: ``temperature: 0, max_tokens: 200``, which what is given
            adds to or (null) takes away from.
        media: how large what is sent may be, see `content.MediaLimits`.
        calls: how hard the endpoint is asked, see `endpoint_client.Calls`.
        cache: a folder for answers, which later runs and other processes share; default: none.
        prices: of a million prompt tokens and a million completion tokens.

    Raises:
        ModelError: a setting that cannot be meant, or a key that is not there.
    """

    modalities: frozenset[str] = frozenset(PROMPTS)
    """What the class can take; an instance, those that it is told."""

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str | None = None,
        name: str | None = None,
        modalities: Sequence[str] = ("image", "video"),
        prompt: Prompt = None,
        focus: str | None = None,
        generation: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        calls: Mapping[str, Any] | None = None,
        cache: str | None = None,
        prices: tuple[float, float] | None = None,
    ) -> None:
        self.name = name or model
        self.revision = self.revision_of(model)
        for modality in modalities:
            if modality not in PROMPTS:
                raise ModelError(
                    f"{self.name}: {modality!r} is none of {', '.join(PROMPTS)}{nearest(modality, PROMPTS)}"
                )
        if foreign := sorted(OURS & set(generation or {})):
            raise ModelError(f"{self.name}: generation must not contain {', '.join(foreign)}")
        self.modalities = frozenset(modalities)
        self._model = model
        self._prompts = prompts(prompt, focus)
        self._generation = {k: v for k, v in {**GENERATION, **(generation or {})}.items() if v is not None}
        try:
            self._limits = parse(MediaLimits, media or {})
            limits = parse(Calls, calls or {})
        except ConfigError as error:
            raise ModelError(f"{self.name}: {error}") from error
        self.usage = Usage(prices=prices and (prices[0], prices[1]))
        self._endpoint = Endpoint(base_url, key_variable, limits, self.usage)
        self._answers = Answers(cache)

    @staticmethod
    def check_settings(arguments: Mapping[str, Any]) -> None:
        """Refuse a key in ``base_url`` or in place of its variable's name: see `client.check`."""
        check(arguments.get("base_url"), arguments.get("key_variable"))

    @staticmethod
    def revision_of(model: str, **_: Any) -> str:
        """Return all that is known of the weights: the name that the endpoint gives them."""
        return model

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``; each answer is kept as it comes.

        Raises:
            ModelError: a modality that is not listed, or an endpoint that refuses the key or the model, or that does
                not answer at all.
            StorageError: an answer cannot be kept.
        """
        support(self, modality)
        keys = [self._key(item, modality) for item in items]
        answers = [self._answers.get(key) for key in keys]
        texts = [answer.text if answer else None for answer in answers]
        open_rows = [row for row, answer in enumerate(answers) if answer is None]

        def took(position: int, answer: Answer) -> None:
            row = open_rows[position]
            texts[row] = self._answers.keep(keys[row], answer).text

        self.usage.kept += len(items) - len(open_rows)
        failed = self._endpoint.ask([partial(self._body, items[row], modality) for row in open_rows], took)
        _log.info("%s so far: %s", self.name, self.usage)
        errors: dict[int, PairError] = {
            open_rows[position]: type(error)(f"{self.name}: {error}") for position, error in failed.items()
        }
        return Described(texts, errors)

    def _body(self, item: Item, modality: str) -> Body:
        shown = [*content(item, self._limits), {"type": "text", "text": self._prompts[modality]}]
        return {"model": self._model, "messages": [{"role": "user", "content": shown}], **self._generation}

    def _key(self, item: Item, modality: str) -> str:
        """Return the digest of all that an answer depends on: 64 hexadecimal digits."""
        asked = {
            "way": WAY_OF_ASKING,
            "endpoint": self._endpoint.base_url,
            "model": self._model,
            "prompt": self._prompts[modality],
            "generation": self._generation,
            "media": self._limits.model_dump(),
            "modality": modality,
            "content": item if isinstance(item, str) else item.key,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

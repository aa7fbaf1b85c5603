"""Contrastive models of the transformers library as encoders: CLIP, SigLIP and their kin, X-CLIP, and CLAP."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import torch

from nemo_mm_rank.errors import ModelError, nearest
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models.base import Encoded, attempt, support, usable
from nemo_mm_rank.models.batching import Features, FixedRows, ahead, by_length, stacked, text_rows
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.weights import check_version
from nemo_mm_rank.models.windows import POOLINGS, Pixels, as_image, at_rate, pool, shots, windows
from nemo_mm_rank.schema import Modality

CPU_ROWS, DEVICE_ROWS = 16, 128
"""Media of a forward pass; on a device, where its memory allows."""


@dataclass(eq=False)
class TwoTowers(HubModel, ABC):
    """An encoder of text and media by a model that has a tower for each.

    An item's vector is the same to the bit whatever else is in the batch: every forward pass has the same number of
    rows, filled up with repetitions. On a GPU that number is at most ``batch_size``, by what its memory holds, and
    another number moves a vector by the rounding of the type that it is computed in.

    Attributes:
        dim: of the space; set by a subclass once its model is loaded.
    """

    dim: int = field(init=False)

    _usual_rows: ClassVar[tuple[int, int]] = (CPU_ROWS, DEVICE_ROWS)
    """Of a forward pass on a CPU, and elsewhere."""

    def __post_init__(self) -> None:
        """Check how parts are pooled, and how many are a batch."""
        self._pooling: str = getattr(self, "frame_pooling", getattr(self, "window_pooling", "mean"))
        if self._pooling not in POOLINGS:
            known = ", ".join(POOLINGS)
            raise ModelError(f"pooling must be one of {known}, not {self._pooling!r}{nearest(self._pooling, POOLINGS)}")
        super().__post_init__()
        self._batch_rows = self._rows(*self._usual_rows)
        # On a CPU the model has the cores; one thread prepares what comes next in its pauses.
        self._threads = 1 if self._device.type == "cpu" else min(8, os.cpu_count() or 1)
        self._run = FixedRows(self._device)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed ``items``; ``vectors`` is on the model's device.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        if modality == Modality.TEXT:
            encoded = Encoded(self._embed_texts([str(item) for item in items]))
        else:
            encoded = self._embed_media(items)
        return usable(encoded, self, len(items))

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Return ``(n, dim)`` float32, L2-normalised, on the device."""

    @abstractmethod
    def _parts(self, item: Item) -> Sequence[Any]:
        """Return what the media tower is to see of ``item``.

        Raises:
            PairError: it cannot be embedded.
        """

    @abstractmethod
    def _prepare(self, part: Any) -> Features:
        """Return the model's input for one part, one row; called in other threads."""

    @abstractmethod
    def _media(self, batch: Features) -> torch.Tensor:
        """Run the media tower: ``(rows, dim)``."""

    def _embed_media(self, items: Sequence[Item]) -> Encoded:
        parts, errors = attempt(self._parts, enumerate(items))
        vectors = torch.full((len(items), self.dim), float("nan"), device=self._device)
        if parts:
            embedded = self._embed_parts(chain.from_iterable(parts.values()))
            vectors[list(parts)] = pool(embedded, list(map(len, parts.values())), self._pooling)
        return Encoded(vectors, errors)

    def _embed_parts(self, parts: Iterable[Any]) -> torch.Tensor:
        prepared = ahead(self._prepare, parts, self._threads, 2 * self._batch_rows)
        return torch.cat(
            [self._run(self._media, batch, self._batch_rows) for batch in stacked(prepared, self._batch_rows)]
        )


READ_TO_THE_END = {"siglip", "siglip2"}
"""Types of model that were trained on texts padded to the limit: they read the last token, whatever it is."""


@dataclass(eq=False)
class _Contrastive(TwoTowers):
    """A model of transformers with ``get_text_features`` and a method of that kind for one sort of media."""

    _media_method: ClassVar[str]
    _unread = ("open_clip*",)

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        self._model = self._load(self._library.AutoModel)
        for method in ("get_text_features", self._media_method):
            if not hasattr(self._model, method):
                raise ModelError(f"{self.path}: {type(self._model).__name__} has no {method}(): another kind of model")
        self._processor = self._load_processor(self._library.AutoProcessor)
        config = self._model.config
        tokenizer = self._processor.tokenizer
        self._limit = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        self._pad_left = tokenizer.padding_side == "left"
        self._pad_token = tokenizer.pad_token_id or 0
        self._padding = "max_length" if config.model_type in READ_TO_THE_END else True
        self.dim = self._embed_texts(["a"]).shape[1]

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        if not texts:
            return torch.empty((0, self.dim), device=self._device)
        features: Features = self._processor(
            text=texts, padding=self._padding, truncation=True, max_length=self._limit, return_tensors="pt"
        ).data
        if self._padding == "max_length":
            return self._run(self._text, features, text_rows(self._limit, self._device))
        groups = list(by_length(features, self._limit, self._pad_token, self._pad_left))
        embedded = [
            self._run(self._text, batch, text_rows(batch["input_ids"].shape[1], self._device)) for _, batch in groups
        ]
        return torch.cat(embedded)[torch.cat([rows for rows, _ in groups]).argsort().to(self._device)]

    def _text(self, batch: Features) -> torch.Tensor:
        return _vectors(self._model.get_text_features(**batch))

    def _media(self, batch: Features) -> torch.Tensor:
        cast = {key: value.to(self._dtype) if value.is_floating_point() else value for key, value in batch.items()}
        return _vectors(getattr(self._model, self._media_method)(**cast))


def _vectors(features: Any) -> torch.Tensor:
    """Return what a tower says, ``(rows, dim)``: transformers 4 has it alone, 5 among all that the tower puts out."""
    embedded: torch.Tensor = features if isinstance(features, torch.Tensor) else features.pooler_output
    return embedded


@dataclass(eq=False)
class ClipEncoder(_Contrastive):
    """Embeds text, images and videos (frame by frame) with CLIP, SigLIP, SigLIP 2 or a model made like them.

    Args:
        batch_size: images of a forward pass; default: 16 on a CPU, 128 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        frame_pooling: how a video's frames become one vector: their ``mean``, or their ``medoid``.
        trust_remote_code: run the code that comes with the model.
    """

    batch_size: int | None = None
    frame_pooling: str = "mean"
    trust_remote_code: bool = False

    modalities = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO})
    _media_method = "get_image_features"

    def _parts(self, item: Item) -> list[Pixels]:
        return shots(item)

    def _prepare(self, part: Pixels) -> Features:
        features: Features = self._processor(images=[as_image(part)], return_tensors="pt").data
        return features


@dataclass(eq=False)
class XClipEncoder(_Contrastive):
    """Embeds text and videos with X-CLIP, which attends across the frames instead of pooling them.

    The model takes a number of frames of its own (8 or 16, as published); of a video with another number, as many are
    taken at even distances, so set `media.video_frames` to the model's.

    Args:
        batch_size: videos of a forward pass; default: 1 on a CPU, 16 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        trust_remote_code: run the code that comes with the model.
    """

    batch_size: int | None = None
    trust_remote_code: bool = False

    modalities = frozenset({Modality.TEXT, Modality.VIDEO})
    _media_method = "get_video_features"
    _usual_rows = (1, DEVICE_ROWS // 8)

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            ModelError: the library's own code for it fails.
        """
        check_version(self.path, (5, 0), "whose code for it runs")
        super().__post_init__()
        self._frames = int(self._model.config.vision_config.num_frames)

    def _parts(self, item: Item) -> list[list[Pixels]]:
        seen = shots(item)
        taken = [(2 * number + 1) * len(seen) // (2 * self._frames) for number in range(self._frames)]
        return [[seen[frame] for frame in taken]]

    def _prepare(self, part: list[Pixels]) -> Features:
        frames = [as_image(one) for one in part]
        features: Features = self._processor.image_processor([frames], return_tensors="pt").data
        return features


@dataclass(eq=False)
class ClapEncoder(_Contrastive):
    """Embeds text and audio with CLAP.

    The model hears some seconds at a time (ten, as published). Of a longer recording the library would take a part at
    random; here it is heard in windows of that length, spread evenly over it, and their vectors are pooled. Audio at
    another rate than the model's own (48 kHz, as published) is resampled; what `media.sample_rate` has cut off by then
    is lost to it, so set that to the model's.

    Args:
        batch_size: windows of a forward pass; default: 16 on a CPU, 128 (or what the memory allows) elsewhere. A part
            of what decides the last bits, so it belongs to the configuration.
        max_windows: heard of a recording.
        window_pooling: how they become one vector: their ``mean``, or their ``medoid``.
        trust_remote_code: run the code that comes with the model.
    """

    batch_size: int | None = None
    max_windows: int = 6
    window_pooling: str = "mean"
    trust_remote_code: bool = False

    modalities = frozenset({Modality.TEXT, Modality.AUDIO})
    _media_method = "get_audio_features"

    def __post_init__(self) -> None:
        """Load the model."""
        if self.max_windows < 1:
            raise ModelError(f"max_windows must be at least 1, not {self.max_windows}")
        super().__post_init__()
        self._extractor = self._processor.feature_extractor

    def _parts(self, item: Item) -> list[Audio]:
        return windows(item, self._extractor.max_length_s, self.max_windows)

    def _prepare(self, part: Audio) -> Features:
        rate = self._extractor.sampling_rate
        # Rounding while resampling may make a sample too many, and of more than it takes it would choose at random.
        samples = at_rate(part, rate)[: self._extractor.nb_max_samples]
        features: dict[str, torch.Tensor] = self._extractor(samples, sampling_rate=rate, return_tensors="pt").data
        # Set at random where nothing is longer; nothing here ever is.
        return {**features, "is_longer": torch.zeros((1, 1), dtype=torch.bool)}

"""Multimodal language models as encoders: a chat with the item in it is read, and its tokens' last states are pooled.

What UNITE, Qwen2.5-Omni and Omni-Embed have in common; each says in a `Chat` and a `Sight` how it differs.
sentence-transformers 6 gives an item of Qwen2.5-Omni the same vector, but knows neither UNITE's prompt and positions,
nor vectors that are the same bytes in any batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, ModelError, nearest, require
from nemo_mm_rank.media.segment import Audio, Image, Item, Items, Segment, Video
from nemo_mm_rank.modality import combined
from nemo_mm_rank.models.base import Encoded, attempt, support, usable
from nemo_mm_rank.models.batching import EqualShapes, Features, FixedRows, ahead, by_length, joined, text_rows
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.lora import adapter_revision, merge_adapter
from nemo_mm_rank.models.windows import as_image, at_rate, shots
from nemo_mm_rank.schema import Modality

SHORTEST_SOUND = 0.1
"""Seconds; of less the audio tower makes no token, and silence is added up to this."""

Content: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any]]
"""The parts of a message, and the media that its processor is to put into them."""


@dataclass(frozen=True)
class Sight:
    """What a model sees of images and videos.

    Attributes:
        image: pixels of an image, at least and at most; None: what its processor says.
        video: the same of a video's frame.
        shrunk: pixels that a frame is scaled down (or up) to before that, at least and at most.
        rate: frames per second.
        frames: of a video, at least and at most.
    """

    image: tuple[int, int] | None = None
    video: tuple[int, int] | None = None
    shrunk: tuple[int, int] | None = None
    rate: float = 1.0
    frames: tuple[int, int] = (4, 12)


def content(media: Segment, sight: Sight, sampling_rate: int) -> Content:
    """Return how a message shows ``media``.

    Args:
        media: with pixels, frames or samples.
        sight: what is seen of it.
        sampling_rate: of the audio that the processor takes.
    """
    if isinstance(media, Audio):
        samples = at_rate(media, sampling_rate)
        samples = np.pad(samples, (0, max(0, round(SHORTEST_SOUND * sampling_rate) - len(samples))))
        return [{"type": "audio", "audio": ""}], {"audio": [samples]}
    if isinstance(media, Image):
        size = {"images_kwargs": _size(sight.image)} if sight.image else {}
        return [{"type": "image", "image": ""}], {"images": [as_image(media.pixels)], **size}
    if not isinstance(media, Video):
        raise ModelError(f"images, videos and audio are expected, not {type(media).__name__}")
    chosen, rate = choose_frames(media, sight.rate, *sight.frames)
    frames = torch.from_numpy(media.frames[chosen]).permute(0, 3, 1, 2)
    settings: dict[str, Any] = {"do_sample_frames": False, "fps": rate, "cap_pixels_per_frame": False}
    if sight.shrunk:
        frames = _shrunk(frames, *sight.shrunk)
    if sight.video:
        settings.update(_size(sight.video))
    return [{"type": "video", "video": ""}], {"videos": [frames], "videos_kwargs": settings}


def choose_frames(video: Video, rate: float, least: int, most: int) -> tuple[npt.NDArray[np.int64], float]:
    """Choose among a video's frames, at even distances from its first to its last.

    As many as ``rate`` makes of its length, at least ``least`` and at most ``most``, and an even number, because models
    of this kind take frames in pairs. A video that has no more is taken whole: how many frames it has says
    `media.video_frames`.

    Args:
        video: at least one frame.
        rate: frames per second.
        least: frames.
        most: frames.

    Returns:
        ``(k,)`` int64 positions, and how many frames that is per second.
    """
    n = len(video.frames)
    # Frames stand in the middle of equal slices: all of them last one slice longer than from the first to the last.
    seconds = float(video.times[-1] - video.times[0]) * n / (n - 1) if n > 1 else video.duration
    wanted = min(max(int(seconds * rate), least), most) // 2 * 2
    chosen = np.linspace(0, n - 1, min(wanted, n)).round().astype(np.int64)
    return chosen, len(chosen) / seconds if seconds > 0 else rate


def _shrunk(frames: torch.Tensor, least: int, most: int) -> torch.Tensor:
    resized = require("transformers.models.qwen2_vl.video_processing_qwen2_vl", "models").smart_resize
    functional = require("torchvision.transforms.v2.functional", "models")
    size = resized(*frames.shape[-2:], 28, least, most)
    smaller: torch.Tensor = functional.resize(
        frames, list(size), interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    return smaller


def _size(pixels: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}


POSITIONS = ("1d", "mrope")
"""``1d``: tokens are numbered 0, 1, 2 ... on all three axes of the rotary embedding. ``mrope``: as the library does by
default, those of images and videos by time, row and column."""
TOKEN_POOLINGS = ("last", "mean")
"""Of the attended tokens' states after the final norm."""

KINDS: dict[type, Modality] = {
    str: Modality.TEXT,
    Image: Modality.IMAGE,
    Video: Modality.VIDEO,
    Audio: Modality.AUDIO,
}
WORDS = {Modality.TEXT: "sentence"}
"""What a modality is called in the prompt, where that is not its name."""


@dataclass(frozen=True)
class Chat:
    """How an item is put to a model.

    Attributes:
        system: what the chat begins with; None: what the model's own template says.
        asks: the content is followed by "Summary above ... in one word:", and the answer begins.
        ending: what then follows.
        passage: put before every text.
    """

    system: str | None = None
    asks: bool = True
    ending: str = ""
    passage: str = ""


@dataclass(eq=False)
class ChatEncoder(HubModel):
    """An encoder of text and media by one language model that reads both.

    A vector is the same to the bit whatever else is in the batch: texts are padded to lengths of their own in batches
    of a fixed number of rows, and media, whose shapes vary, are read one at a time on a CPU. On a device those of one
    shape share a batch (`EqualShapes`).

    A text that spells one of the model's marks (``<|image_pad|>``) is read as text: a space is put into it.

    Args:
        positions: one of `POSITIONS`.
        pooling: one of `TOKEN_POOLINGS`.
        batch_size: media of a forward pass; default: 1 on a CPU, 8 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        max_length: tokens that a text is cut to, prompt included.
    """

    positions: str = "mrope"
    pooling: str = "mean"
    batch_size: int | None = None
    max_length: int = 8192
    adapter: str | None = field(default=None, init=False)
    """A local folder, or a name on the hub, of what was learnt beside the model, and is added to its weights."""

    _model_class: ClassVar[str]
    """Of transformers, as it stands: weights of a class derived from it the library would make up at random."""
    _processor_class: ClassVar[str]
    _sight: ClassVar[Sight]
    _chat: Chat = field(default=Chat(), init=False)

    def __post_init__(self) -> None:
        """Load the model."""
        for what, known in (("positions", POSITIONS), ("pooling", TOKEN_POOLINGS)):
            if (given := getattr(self, what)) not in known:
                raise ModelError(f"{what} must be one of {', '.join(known)}, not {given!r}{nearest(given, known)}")
        super().__post_init__()
        self._processor = self._load_chat_processor(getattr(self._library, self._processor_class))
        self._tokenizer: Any = self._processor.tokenizer
        # On the right: plain positions then begin with a text's first token.
        self._tokenizer.padding_side = "right"
        self._tokenizer.truncation_side = "left" if self._chat.asks else "right"
        self._marks = re.compile("|".join(map(re.escape, self._tokenizer.get_added_vocab())) or "(?!)")
        self._model = self._load(getattr(self._library, self._model_class))
        if self.adapter is not None:
            merge_adapter(self._model, self.adapter)
            self.revision += f"+{adapter_revision(self.adapter)}"
        self.dim = int(self._model.config.get_text_config().hidden_size)
        rows = self._rows(1, 8)
        self._ahead = 2 * rows
        self._run = FixedRows(self._device)
        self._run_media: EqualShapes[torch.Tensor] = EqualShapes(self._embed_batch, self._model, rows)

    @classmethod
    def revision_of(cls, path: str, adapter: str | None = None, **arguments: Any) -> str:
        """Return the revision of the model that these arguments name, and of its adapter, without loading them."""
        revision = super().revision_of(path, **arguments)
        return revision if adapter is None else f"{revision}+{adapter_revision(adapter)}"

    @property
    def together(self) -> frozenset[str]:
        """A text and what it belongs to are embedded as one."""
        media = self.modalities - {Modality.TEXT}
        return frozenset(combined((Modality.TEXT, kind)) for kind in media)

    @property
    def model(self) -> Any:
        """The model of transformers, in whose place others may be put to be learnt."""
        return self._model

    def encode(self, items: Sequence[Item | Items], modality: str | None = None) -> Encoded:
        """Embed ``items``; ``vectors`` is on the model's device.

        Args:
            items: of one modality or of several; a pair of a text and an image, video or recording is embedded as one.
            modality: of all of them; default: what each of them is.

        Raises:
            ModelError: a modality that is not listed.
        """
        if modality is not None and modality not in self.together:
            support(self, modality)
        return self._encode(items, self._chat.passage)

    def _encode(self, items: Sequence[Item | Items], before: str) -> Encoded:
        for kind in {kind for item in items for kind in _kinds(item)}:
            support(self, kind)
        vectors = torch.full((len(items), self.dim), float("nan"), device=self._device)
        texts = {row: item for row, item in enumerate(items) if isinstance(item, str)}
        media = ((row, item) for row, item in enumerate(items) if row not in texts)
        shown, errors = attempt(lambda item: self._reading(item, before), media)
        if texts:
            vectors[list(texts)] = self._embed_texts([before + text for text in texts.values()])
        if shown:
            vectors[list(shown)] = torch.stack(
                self._run_media(ahead(lambda read: read(), shown.values(), 1, self._ahead))
            )
        return usable(Encoded(vectors, errors), self, len(items))

    def features(self, item: Item | Items) -> Features:
        """Return what the model takes of one item, to be learnt from.

        Raises:
            PairError: it cannot be shown.
            ModelError: a modality that is not listed.
        """
        for kind in _kinds(item):
            support(self, kind)
        if isinstance(item, str):
            return self._tokens([self._chat.passage + item])
        return self._reading(item, self._chat.passage)()

    def learnable(self, items: Sequence[Features]) -> torch.Tensor:
        """Embed items in one pass that gradients flow back through.

        Args:
            items: ``n``, from `features`.

        Returns:
            ``(n, dim)`` float32 on the device, L2-normalised.
        """
        batch = joined(items, self._tokenizer.pad_token_id)
        device, dtype = self._device, self._model.dtype
        moved = {key: v.to(device, dtype if v.is_floating_point() else None) for key, v in batch.items()}
        return F.normalize(self._states(moved).float(), dim=1)

    def _tokens(self, texts: list[str]) -> Features:
        written = [self._written([self._said(text)], [Modality.TEXT]) for text in texts]
        features: Features = self._tokenizer(
            written, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).data
        return features

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        features = self._tokens(texts)
        vectors = torch.empty((len(texts), self.dim), device=self._device)
        for chosen, batch in by_length(features, self.max_length, self._tokenizer.pad_token_id):
            # One column more of padding: without any the library computes in another way, whose last bits may differ,
            # and whether there is any would depend on the other texts.
            padded = {
                "input_ids": F.pad(batch["input_ids"], (0, 1), value=self._tokenizer.pad_token_id),
                "attention_mask": F.pad(batch["attention_mask"], (0, 1)),
            }
            rows = text_rows(padded["input_ids"].shape[1], self._device)
            vectors[chosen.to(self._device)] = self._run(self._states, padded, rows)
        return vectors

    def _embed_batch(self, batch: Features) -> list[torch.Tensor]:
        return list(self._run.whole(self._states, batch))

    def _states(self, batch: Features) -> torch.Tensor:
        """Run the model without its head: ``(n, dim)`` states of the pooled tokens."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        features = dict(batch)
        if self.positions == "1d":
            features["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        else:
            features.update(self._kinds_of_tokens(ids))
        if hasattr(self._model.model, "language_model"):
            hidden = self._model.model(**features, use_cache=False).last_hidden_state
        else:  # transformers 4 has media of Qwen2.5-Omni put among the tokens by the model with its head
            hidden = self._model(**features, use_cache=False, output_hidden_states=True).hidden_states[-1]
        return pool_tokens(hidden, mask, self.pooling)

    def _kinds_of_tokens(self, ids: torch.Tensor) -> Features:
        """Return what the library needs beside the tokens to place them in time, height and width."""
        return {}

    def _said(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)}

    def _written(self, parts: list[dict[str, Any]], kinds: Sequence[Modality]) -> str:
        """Return the chat that shows ``parts``, as its template has it."""
        if self._chat.asks:
            named = " and ".join(WORDS.get(kind, kind.value) for kind in kinds)
            parts = [*parts, {"type": "text", "text": f"\nSummary above {named} in one word:"}]
        messages = [{"role": "user", "content": parts}]
        if self._chat.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self._chat.system}]})
        text: str = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=self._chat.asks)
        return text + self._chat.ending

    def _reading(self, item: Item | Items, before: str) -> Callable[[], Features]:
        """Return what makes the features of an item of media, once its turn has come.

        Raises:
            PairError: it cannot be shown.
        """
        text, media = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
        if isinstance(media, (str, tuple)) or not (text is None or isinstance(text, str)):
            raise ModelError(f"a text and its media are expected, not {' and '.join(_kinds(item))}")
        if isinstance(media, Audio):
            if not len(media.samples):
                raise EmbeddingError("contains no samples")
        else:
            shots(media)
        rate = getattr(getattr(self._processor, "feature_extractor", None), "sampling_rate", 0)

        def read() -> Features:
            parts, given = content(media, self._sight, rate)
            if text is not None:
                parts.append(self._said(before + text))
            features = self._processor(text=[self._written(parts, _kinds(item))], return_tensors="pt", **given)
            return {key: torch.as_tensor(value) for key, value in features.items() if key != "mm_token_type_ids"}

        return read


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool the states of the attended tokens.

    Args:
        hidden: ``(n, length, d)``.
        mask: ``(n, length)``, 0 for tokens that are not attended, on either side.
        pooling: ``last``: of the last attended token; ``mean``: of all of them.

    Returns:
        ``(n, d)``; of a mean float32.
    """
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    return (hidden.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _kinds(item: Item | Items) -> list[Modality]:
    parts = item if isinstance(item, tuple) else (item,)
    for part in parts:
        if type(part) not in KINDS:
            raise ModelError(f"texts, images, videos and audio are expected, not {type(part).__name__}")
    return [KINDS[type(part)] for part in parts]

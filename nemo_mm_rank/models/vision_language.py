"""Any multimodal language model of the transformers library as a describer of images, videos and audio."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError
from nemo_mm_rank.media.segment import Audio, Item, Video
from nemo_mm_rank.models.base import Described, attempt, support
from nemo_mm_rank.models.batching import Features, ahead
from nemo_mm_rank.models.generation import Prompt, Writer, prompts
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.weights import chat_class
from nemo_mm_rank.models.windows import as_images, at_rate
from nemo_mm_rank.schema import Modality

Part = dict[str, Any]


@dataclass(eq=False)
class VisionLanguageDescriber(HubModel):
    """Describes media by asking a local model that reads a chat with images (or audio) in it.

    It takes what its processor takes: images always, audio where there is a feature extractor. A video goes in as a
    video where the processor knows them, otherwise as one image per frame. Texts are written greedily, so that equal
    media have equal descriptions, and do not depend on the batch (`equal_shapes`).

    Models that scale images to one size fill their batches. For those that keep the shape (Qwen2-VL and its kin)
    only images of one shape share a batch, and others fill up: where shapes vary much, a smaller ``batch_size`` is
    faster.

    Args:
        prompt: what is asked; one for all, or by modality. Default: `prompts.PROMPTS`.
        focus: what all descriptions are to attend to, in plain words.
        max_new_tokens: at which a description ends.
        batch_size: items of a batch; default: 2 on a CPU, 16 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.
        max_side: longer side in pixels that images are scaled down to before the model's own processing.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: a model without a chat template.
    """

    prompt: Prompt = None
    focus: str | None = None
    max_new_tokens: int = 96
    batch_size: int | None = None
    max_side: int = 1024
    trust_remote_code: bool = False

    modalities = frozenset({Modality.IMAGE, Modality.AUDIO, Modality.VIDEO})
    """What the class can take; an instance, what its model does."""

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        self._prompts = prompts(self.prompt, self.focus)
        self._processor = self._load_chat_processor(self._library.AutoProcessor)
        rows = self._rows(2, 16)
        self._model = model = self._load(chat_class(self._folder, self.trust_remote_code))
        # A copy: the library's tokenizers serve one thread at a time, and another one prepares the next items.
        self._write = Writer(model, copy.deepcopy(self._processor.tokenizer), rows, self.max_new_tokens)
        self._ahead = 2 * rows
        self._has_videos = getattr(self._processor, "video_processor", None) is not None
        self._extractor: Any = getattr(self._processor, "feature_extractor", None)
        taken = [Modality.IMAGE, Modality.VIDEO] if getattr(self._processor, "image_processor", None) else []
        self.modalities = frozenset(map(str, [*taken, Modality.AUDIO] if self._extractor else taken))

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``; one that cannot be shown to the model, or of which it says nothing, has an error.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        shown, errors = attempt(self._content, enumerate(items))
        prepare = partial(self._prepare, self._prompts[modality])
        written = self._write(ahead(prepare, shown.values(), 1, self._ahead))
        texts: list[str | None] = [None] * len(items)
        for row, text in zip(shown, written, strict=True):
            if text:
                texts[row] = text
            else:
                errors[row] = EmbeddingError(f"{self.name} has no answer for it")
        return Described(texts, errors)

    def _content(self, item: Item) -> Callable[[], list[Part]]:
        """Return what makes the parts of a message that show ``item``, once their turn has come.

        Raises:
            PairError: it cannot be shown.
        """
        if isinstance(item, Audio):
            if not len(item.samples):
                raise EmbeddingError("contains no samples")
            return lambda: [{"type": "audio", "audio": at_rate(item, self._extractor.sampling_rate)}]
        seen = as_images(item)
        if isinstance(item, Video) and self._has_videos:
            return lambda: [{"type": "video", "video": item.frames, "times": item.times, "seconds": item.duration}]
        return lambda: [{"type": "image", "image": self._smaller(picture)} for picture in seen]

    def _smaller(self, picture: PILImage.Image) -> PILImage.Image:
        if max(picture.size) <= self.max_side:
            return picture
        small = picture.copy()
        small.thumbnail((self.max_side, self.max_side), PILImage.Resampling.LANCZOS)
        return small

    def _prepare(self, prompt: str, parts: Callable[[], list[Part]]) -> Features:
        content = [*parts(), {"type": "text", "text": prompt}]
        features: Features = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=_video_settings(content[0]),
        )
        return dict(features)


def _video_settings(part: Part) -> dict[str, Any]:
    """Return what tells the processor of a video that its frames are all there are, and when each was seen."""
    if part["type"] != "video":
        return {}
    milliseconds = [round(1000 * time) for time in part["times"]]
    total = max(round(1000 * part["seconds"]), milliseconds[-1] + 1)
    video = {"total_num_frames": total, "fps": 1000, "duration": part["seconds"], "frames_indices": milliseconds}
    return {"do_sample_frames": False, "video_metadata": [video]}

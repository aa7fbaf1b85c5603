"""Any multimodal language model of the transformers library as a describer of images, videos and sound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError, require
from nemo_mm_rank.media.segment import Audio, Item, Video
from nemo_mm_rank.models.base import Described, support
from nemo_mm_rank.models.batching import Features, ahead
from nemo_mm_rank.models.generation import Prompt, Writer, prompts
from nemo_mm_rank.models.weights import (
    folder_revision,
    load_pretrained,
    loading_arguments,
    opening,
    pick_dtype,
    resolve,
)
from nemo_mm_rank.models.windows import at_rate, pictures
from nemo_mm_rank.schema import Modality

Part = dict[str, Any]


class VisionLanguageDescriber:
    """Describes media by asking a local model that reads a chat with pictures (or sounds) in it.

    It takes what its processor takes: images always, sound where there is a feature extractor. A video goes in as a
    video where the processor knows them, otherwise as one picture per frame. Texts are written greedily, so that equal
    media have equal descriptions, and do not depend on the batch (`equal_shapes`).

    Models that scale pictures to one size fill their batches. For those that keep the shape (Qwen2-VL and its kin)
    only pictures of one shape share a batch, and others fill up: where shapes vary much, a smaller ``batch_size`` is
    faster.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        prompt: what is asked; one for all, or by modality. Default: `prompts.PROMPTS`.
        focus: what all descriptions are to attend to, in plain words.
        max_new_tokens: at which a description ends.
        batch_size: items of a batch; default: 2 on a CPU, 16 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.
        max_side: longer side in pixels that pictures are scaled down to before the model's own processing.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, another kind of model, or one
            without a chat template.
    """

    modalities: frozenset[str] = frozenset({Modality.IMAGE, Modality.AUDIO, Modality.VIDEO})
    """What the class can take; an instance, what its model does."""

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        dtype: str | None = None,
        prompt: Prompt = None,
        focus: str | None = None,
        max_new_tokens: int = 96,
        batch_size: int | None = None,
        max_side: int = 1024,
        trust_remote_code: bool = False,
    ) -> None:
        library = require("transformers", "models")
        folder = resolve(path, revision, code=trust_remote_code)
        self.name = name or path
        self.revision = folder_revision(folder)
        self._prompts = prompts(prompt, focus)
        self._max_side = max_side
        self._processor = _load_processor(library, folder, path, trust_remote_code)
        model = load_pretrained(
            library.AutoModelForMultimodalLM, folder, path, device, pick_dtype(dtype, device), trust_remote_code
        )
        own = 2 if torch.device(device).type == "cpu" else 16
        rows = own if batch_size is None else batch_size
        # A copy: the library's tokenizers serve one thread at a time, and another one prepares the next items.
        self._write = Writer(model, copy.deepcopy(self._processor.tokenizer), rows, max_new_tokens)
        self._ahead = 2 * rows
        self._sees = getattr(self._processor, "image_processor", None) is not None
        self._films = getattr(self._processor, "video_processor", None) is not None
        self._hears: Any = getattr(self._processor, "feature_extractor", None)
        taken = ([Modality.IMAGE, Modality.VIDEO] if self._sees else []) + ([Modality.AUDIO] if self._hears else [])
        self.modalities = frozenset(map(str, taken))

    @staticmethod
    def revision_of(path: str, revision: str | None = None, trust_remote_code: bool = False, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(resolve(path, revision, code=trust_remote_code))

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Describe ``items``; one that cannot be shown to the model, or of which it says nothing, has an error.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        errors: dict[int, PairError] = {}
        shown: dict[int, Callable[[], list[Part]]] = {}
        for row, item in enumerate(items):
            try:
                shown[row] = self._content(item)
            except PairError as error:
                errors[row] = error
        prepare = partial(self._prepare, self._prompts[modality])
        written = self._write(ahead(prepare, shown.values(), 1, self._ahead))
        texts: list[str | None] = [None] * len(items)
        for row, text in zip(shown, written, strict=True):
            if text:
                texts[row] = text
            else:
                errors[row] = EmbeddingError(f"{self.name} says nothing of it")
        return Described(texts, errors)

    def _content(self, item: Item) -> Callable[[], list[Part]]:
        """Return what makes the parts of a message that show ``item``, once their turn has come.

        Raises:
            PairError: it cannot be shown.
        """
        if isinstance(item, Audio):
            if not len(item.samples):
                raise EmbeddingError("holds no samples")
            return lambda: [{"type": "audio", "audio": at_rate(item, self._hears.sampling_rate)}]
        seen = pictures(item)
        if isinstance(item, Video) and self._films:
            return lambda: [{"type": "video", "video": item.frames, "times": item.times, "seconds": item.duration}]
        return lambda: [{"type": "image", "image": self._smaller(picture)} for picture in seen]

    def _smaller(self, picture: PILImage.Image) -> PILImage.Image:
        if max(picture.size) <= self._max_side:
            return picture
        small = picture.copy()
        small.thumbnail((self._max_side, self._max_side), PILImage.Resampling.LANCZOS)
        return small

    def _prepare(self, prompt: str, parts: Callable[[], list[Part]]) -> Features:
        content = [*parts(), {"type": "text", "text": prompt}]
        features: Features = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=_film_settings(content[0]),
        )
        return dict(features)


def _film_settings(part: Part) -> dict[str, Any]:
    """Return what tells the processor of a video that its frames are all there are, and when each was seen."""
    if part["type"] != "video":
        return {}
    milliseconds = [round(1000 * time) for time in part["times"]]
    total = max(round(1000 * part["seconds"]), milliseconds[-1] + 1)
    film = {"total_num_frames": total, "fps": 1000, "duration": part["seconds"], "frames_indices": milliseconds}
    return {"do_sample_frames": False, "video_metadata": [film]}


def _load_processor(library: Any, folder: Path, path: str, trust_remote_code: bool) -> Any:
    arguments = loading_arguments(trust_remote_code)
    arguments.pop("use_safetensors")
    with opening(path):
        processor = library.AutoProcessor.from_pretrained(str(folder), **arguments)
    if getattr(processor, "tokenizer", None) is None or not getattr(processor, "chat_template", None):
        raise ModelError(f"{path}: {type(processor).__name__} has no chat template, so there is no way to ask it")
    return processor

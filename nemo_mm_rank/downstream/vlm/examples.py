"""A pair as a multimodal language model reads it: the data in a chat, and the annotation as what it is to answer."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.media.segment import Audio, Video
from nemo_mm_rank.models.base import Item, Items
from nemo_mm_rank.models.batches import Features
from nemo_mm_rank.models.parts import pictures, shots
from nemo_mm_rank.models.sight import Content, Sight, content

_LINED_UP = "attention_mask"


@dataclass(frozen=True)
class Example:
    """One pair, tokenised.

    Attributes:
        inputs: what the model is called with, a batch of one.
        targets: ``(m,)`` int64, the annotation's tokens and its end: the last of ``input_ids``, and all that counts.
    """

    inputs: Features
    targets: torch.Tensor


class Reader:
    """Makes examples for one model.

    The annotation's tokens are put after the prompt's, rather than both written as one text, so that which tokens are
    the annotation's is beyond doubt. A text that spells one of the model's marks (``<|im_end|>``) is read as text.

    Args:
        processor: of the model.
        model: whose ``forward`` says what it takes; numbers that are not whole are given in its type.
        prompt: follows the data; ``{modality}`` in it is replaced.
        longest: tokens that an annotation is cut to.
        longest_data: characters that a text is cut to.
    """

    def __init__(self, processor: Any, model: Any, prompt: str, longest: int, longest_data: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._prompt, self._longest, self._longest_data = prompt, longest, longest_data
        self._taken, self._dtype = set(inspect.signature(model.forward).parameters), model.dtype
        self._marks = re.compile("|".join(map(re.escape, self._tokenizer.get_added_vocab())) or "(?!)")

    def __call__(self, item: Item | Items, modality: str, annotation: str) -> Example:
        """Return the example of one pair, whose data may have several parts.

        Raises:
            PairError: the model cannot be shown its data.
        """
        shown = [self._shown(part) for part in (item if isinstance(item, tuple) else (item,))]
        parts = [part for own, _ in shown for part in own]
        media = {key: value for _, own in shown for key, value in own.items()}
        asked = {"type": "text", "text": self._prompt.replace("{modality}", " and ".join(modality.split("+")))}
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": [*parts, asked]}], tokenize=False, add_generation_prompt=True
        )
        given = self._processor(text=[chat], return_tensors="pt", **media)
        read = {key: torch.as_tensor(value) for key, value in given.items() if key in self._taken}
        written = self._tokenizer(annotation, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        targets = torch.tensor([*written, self._tokenizer.eos_token_id][: self._longest])
        shape = read["input_ids"].shape
        inputs = {
            key: F.pad(value, (0, len(targets)), value=int(key == _LINED_UP)) if value.shape == shape else value
            for key, value in read.items()
        }
        inputs["input_ids"] = torch.cat([read["input_ids"], targets[None]], dim=1)
        return Example(
            {key: value.to(self._dtype) if value.is_floating_point() else value for key, value in inputs.items()},
            targets,
        )

    def _shown(self, item: Item) -> Content:
        """Return the parts of a message that show ``item``, and the media to put into them.

        Raises:
            PairError: it cannot be shown.
        """
        if isinstance(item, str):
            text = self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", item[: self._longest_data])
            return [{"type": "text", "text": text}], {}
        if isinstance(item, Audio):
            hears = getattr(self._processor, "feature_extractor", None)
            if hears is None:
                raise PairError("the downstream model hears no sound")
            if not len(item.samples):
                raise EmbeddingError("holds no samples")
            return content(item, Sight(), hears.sampling_rate)
        if isinstance(item, Video) and getattr(self._processor, "video_processor", None) is None:
            seen = pictures(item)
            return [{"type": "image", "image": ""}] * len(seen), {"images": seen}
        shots(item)
        return content(item, Sight(), 0)

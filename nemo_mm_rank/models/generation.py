"""How describers are asked, and how models write: greedily, so that equal media have equal descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch

from nemo_mm_rank.errors import ModelError, nearest
from nemo_mm_rank.models.batching import EqualShapes, Features
from nemo_mm_rank.schema import Modality


class Writer:
    """Generates texts from prepared inputs.

    Args:
        model: of transformers, with ``generate``.
        tokenizer: turns its tokens into text.
        rows: of a batch.
        max_new_tokens: at which a text ends.
        settings: further arguments of ``generate``.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: int, max_new_tokens: int, **settings: Any) -> None:
        if max_new_tokens < 1:
            raise ModelError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        self._model = model
        self._tokenizer = tokenizer
        self._batches: EqualShapes[str] = EqualShapes(self._generate, model, rows)
        self._settings = {"max_new_tokens": max_new_tokens, **settings}
        # Greedy, whatever the model's authors prefer.
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        model.generation_config.update(**greedy, max_length=None)

    def __call__(self, prepared: Iterable[Features]) -> list[str]:
        """Return one text per input, in order, whatever stands beside it (see `EqualShapes`)."""
        return self._batches(prepared)

    def _generate(self, batch: Features) -> list[str]:
        with torch.inference_mode():
            tokens = self._model.generate(**batch, **self._settings)
        asked = batch.get("input_ids")
        # A decoder repeats what it was asked; a model with an encoder does not.
        if asked is not None and torch.equal(tokens[:, : asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


PROMPTS: dict[str, str] = {
    Modality.IMAGE: (
        "Describe this image in two or three plain sentences: the objects and people, what they do, the place, "
        "and any text that can be read. Say only what is visible."
    ),
    Modality.AUDIO: (
        "Describe this recording in two or three plain sentences: what is heard, who or what makes the sounds, "
        "where, and what is said, if anything. Say only what is audible."
    ),
    Modality.VIDEO: (
        "These are frames of one video, in order. Describe it in two or three plain sentences: the objects and "
        "people, what happens, and the place. Say only what is visible."
    ),
}
"""The default for each modality."""

FOCUS = "Above all, attend to this: {focus}"

Prompt: TypeAlias = str | Mapping[str, str] | None
"""One prompt for all modalities, prompts by modality, or the default."""


def prompts(prompt: Prompt, focus: str | None = None) -> dict[str, str]:
    """Return what is asked about media of each modality.

    Args:
        prompt: instead of the default; a modality that a mapping does not name keeps it.
        focus: what to attend to, added to each.

    Raises:
        ModelError: a prompt for what is no kind of media, or one without a word.
    """
    asked = dict.fromkeys(PROMPTS, prompt) if isinstance(prompt, str) else {**PROMPTS, **(prompt or {})}
    for modality, text in asked.items():
        if modality not in PROMPTS:
            raise ModelError(f"prompt: {modality!r} is none of {', '.join(PROMPTS)}{nearest(modality, PROMPTS)}")
        if not text.strip():
            raise ModelError(f"prompt: the one for {modality} is empty")
    return {modality: f"{text} {FOCUS.format(focus=focus)}" if focus else text for modality, text in asked.items()}

"""How a model of the transformers library writes: greedily, so that equal media have equal descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.batches import Features
from nemo_mm_rank.models.equal_shapes import EqualShapes


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
            raise ModelError(f"max_new_tokens is at least 1, not {max_new_tokens}")
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

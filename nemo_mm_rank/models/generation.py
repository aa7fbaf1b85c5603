"""How a model writes: greedily, in batches of inputs of one shape and a fixed number of rows.

Padding and the number of rows change the last bits of a model's numbers, and then which word is the likeliest. So only
inputs of equal shape share a batch, and one that is not full is filled up with repetitions: what is said of an item is
the same whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.batches import Features
from nemo_mm_rank.models.weights import one_line

HELD_BYTES = 256 * 2**20
"""Inputs that wait for others of their shape: once they weigh more, the largest group runs as it is."""

SMALL = 16
"""Integers with no more elements than this are sizes and grids, which shape an input as much as its dimensions."""

Shape: TypeAlias = tuple[object, ...]


class Writer:
    """Generates texts from prepared inputs.

    On a CUDA device a batch that runs out of memory is tried again with half the rows, as are those after it.

    Args:
        model: of transformers, with ``generate``.
        tokenizer: turns its tokens into text.
        rows: of a batch.
        max_new_tokens: at which a text ends.
        settings: further arguments of ``generate``.
    """

    def __init__(self, model: Any, tokenizer: Any, rows: int, max_new_tokens: int, **settings: Any) -> None:
        if rows < 1 or max_new_tokens < 1:
            raise ModelError("batch_size and max_new_tokens are at least 1")
        self._model = model
        self._tokenizer = tokenizer
        self._rows = rows
        self._settings = {"max_new_tokens": max_new_tokens, **settings}
        self._found: dict[Shape, int] = {}
        # Greedy, whatever the model's authors prefer: equal media, equal words.
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        model.generation_config.update(**greedy, max_length=None)

    def __call__(self, prepared: Iterable[Features]) -> list[str]:
        """Return one text per input, in order.

        Args:
            prepared: one item's features each, with a first dimension that those of several items are joined along;
                they may be long in the making, and no more of them than `HELD_BYTES` are held.

        Raises:
            ModelError: a single item needs more memory than the device has.
        """
        waiting: dict[Shape, list[tuple[int, Features]]] = {}
        texts: dict[int, str] = {}
        held = 0
        for position, features in enumerate(prepared):
            shape = _shape(features)
            waiting.setdefault(shape, []).append((position, features))
            held += _weight(features)
            full = len(waiting[shape]) == self._rows
            while full or held > HELD_BYTES:
                if not full:
                    shape = max(waiting, key=lambda one: len(waiting[one]))
                group = waiting.pop(shape)
                held -= sum(_weight(features) for _, features in group)
                texts.update(self._write(shape, group))
                full = False
        for shape, group in waiting.items():
            texts.update(self._write(shape, group))
        return [texts[position] for position in range(len(texts))]

    def _write(self, shape: Shape, group: list[tuple[int, Features]]) -> dict[int, str]:
        texts: list[str] = []
        while len(texts) < len(group):
            rows = self._found.get(shape, self._rows)
            taken = [features for _, features in group[len(texts) : len(texts) + rows]]
            try:
                texts += self._generate(taken + taken[-1:] * (rows - len(taken)))[: len(taken)]
                continue
            except torch.cuda.OutOfMemoryError as error:
                said = one_line(error)
            # Not in the handler, whose traceback holds on to the memory of the batch.
            if rows == 1:
                raise ModelError(f"one item is more than {self._model.device} has memory for: {said}")
            self._found[shape] = rows // 2
            torch.cuda.empty_cache()
        return {position: text for (position, _), text in zip(group, texts, strict=True)}

    def _generate(self, rows: list[Features]) -> list[str]:
        batch = {key: torch.cat([row[key] for row in rows]).to(self._model.device) for key in rows[0]}
        cast = {
            key: value.to(self._model.dtype) if value.is_floating_point() else value for key, value in batch.items()
        }
        with torch.inference_mode():
            tokens = self._model.generate(**cast, **self._settings)
        asked = cast.get("input_ids")
        # A decoder repeats what it was asked; a model with an encoder does not.
        if asked is not None and torch.equal(tokens[:, : asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _shape(features: Features) -> Shape:
    return tuple(
        (key, *value.shape, *(value.flatten().tolist() if _is_size(value) else [])) for key, value in features.items()
    )


def _is_size(value: torch.Tensor) -> bool:
    return value.numel() <= SMALL and not value.is_floating_point()


def _weight(features: Features) -> int:
    return sum(value.nbytes for value in features.values())

"""Batches of inputs of one shape and a fixed number of rows, for models whose inputs cannot all be given one.

Padding and the number of rows change the last bits of a model's numbers, and then which word is the likeliest, or
which box is found. So only inputs of equal shape share a batch, and one that is not full is filled up with
repetitions: what becomes of an item is the same whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.batches import Features
from nemo_mm_rank.models.weights import one_line

HELD_BYTES = 256 * 2**20
"""Inputs that wait for others of their shape: once they weigh more, the largest group runs as it is."""

SMALL = 16
"""Integers with no more elements than this are sizes and grids, which shape an input as much as its dimensions."""

Shape: TypeAlias = tuple[object, ...]
R = TypeVar("R")


class EqualShapes(Generic[R]):
    """Runs a model on inputs of several shapes.

    On a CUDA device a batch that runs out of memory is tried again with half the rows, as are those after it.

    Args:
        run: from a batch to one result per row.
        model: of transformers; says where, and in what type, its inputs are wanted.
        rows: of a batch.

    Raises:
        ModelError: less than one row.
    """

    def __init__(self, run: Callable[[Features], Sequence[R]], model: Any, rows: int) -> None:
        if rows < 1:
            raise ModelError(f"batch_size is at least 1, not {rows}")
        self._run = run
        self._model = model
        self._rows = rows
        self._found: dict[Shape, int] = {}

    def __call__(self, prepared: Iterable[Features]) -> list[R]:
        """Return one result per input, in order.

        Args:
            prepared: one item's features each, with a first dimension that those of several items are joined along;
                they may be long in the making, and no more of them than `HELD_BYTES` are held.

        Raises:
            ModelError: a single item needs more memory than the device has.
        """
        waiting: dict[Shape, list[tuple[int, Features]]] = {}
        results: dict[int, R] = {}
        held = 0
        for position, features in enumerate(prepared):
            shape = _shape(features)
            waiting.setdefault(shape, []).append((position, features))
            held += _weight(features)
            if held > HELD_BYTES:
                shape = max(waiting, key=lambda one: len(waiting[one]))
            elif len(waiting[shape]) < self._rows:
                continue
            group = waiting.pop(shape)
            held -= sum(_weight(features) for _, features in group)
            results.update(self._group(shape, group))
        for shape, group in waiting.items():
            results.update(self._group(shape, group))
        return [results[position] for position in range(len(results))]

    def _group(self, shape: Shape, group: list[tuple[int, Features]]) -> dict[int, R]:
        results: list[R] = []
        while len(results) < len(group):
            rows = self._found.get(shape, self._rows)
            taken = [features for _, features in group[len(results) : len(results) + rows]]
            try:
                results += self._run(self._batch(taken + taken[-1:] * (rows - len(taken))))[: len(taken)]
                continue
            except torch.cuda.OutOfMemoryError as error:
                said = one_line(error)
            # Not in the handler, whose traceback holds on to the memory of the batch.
            if rows == 1:
                raise ModelError(f"one item is more than {self._model.device} has memory for: {said}")
            self._found[shape] = rows // 2
            torch.cuda.empty_cache()
        return {position: result for (position, _), result in zip(group, results, strict=True)}

    def _batch(self, rows: list[Features]) -> Features:
        device, dtype = self._model.device, self._model.dtype
        joined = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        return {key: v.to(device, dtype if v.is_floating_point() else None) for key, v in joined.items()}


def _shape(features: Features) -> Shape:
    text = features["input_ids"].shape if "input_ids" in features else None
    return tuple(
        (key, *value.shape, *(value.flatten().tolist() if value.shape != text and _is_size(value) else []))
        for key, value in features.items()
    )


def _is_size(value: torch.Tensor) -> bool:
    return value.numel() <= SMALL and not value.is_floating_point()


def _weight(features: Features) -> int:
    return sum(value.nbytes for value in features.values())

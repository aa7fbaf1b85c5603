"""How a model is run: over batches of a few fixed shapes, with what the next ones need prepared meanwhile.

A matrix product may round differently for another shape. So an input is padded to a length that follows from the input
alone, and a batch always has as many rows as its shape allows, filled up with repetitions: its result is the same to
the bit whatever stands beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import MemoryShortError, ModelError
from nemo_mm_rank.models.weights import one_line

Features: TypeAlias = Mapping[str, torch.Tensor]
"""What a model is called with: tensors whose first dimension is the batch."""

Forward: TypeAlias = Callable[[Features], torch.Tensor]

PROBE_ROWS = 8
MEMORY_SHARE = 0.6
"""Of a device's free memory, what a batch may need: other models and allocations are to come."""

CPU_TEXTS, CPU_TOKENS, DEVICE_TOKENS = 32, 256, 32_768

T = TypeVar("T")
R = TypeVar("R")


class FixedRows:
    """Runs models in batches of a fixed number of rows.

    On a CUDA device the number may turn out lower than asked for: the first batch of each shape is preceded by a
    short probe of what a row needs, and a batch that runs out of memory all the same is tried again with half the
    rows, as are those after it. Both only ever halve, so that one machine comes to the same numbers again and again.

    Args:
        device: where the models run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._found: dict[tuple[tuple[str, tuple[int, ...]], ...], int] = {}

    def __call__(self, forward: Forward, features: Features, rows: int) -> torch.Tensor:
        """Embed all rows of ``features``.

        Args:
            forward: from features on the device to ``(rows, d)`` embeddings, of any length and floating-point type.
            features: ``n`` rows, at least one.
            rows: of a batch, at most; on a CPU exactly.

        Returns:
            ``(n, d)`` float32 on the device, L2-normalised.

        Raises:
            MemoryShortError: a single row needs more memory than the device has.
        """
        n = len(next(iter(features.values())))
        embedded: list[torch.Tensor] = []
        done = 0
        while done < n:
            here = self._rows(forward, features, rows)
            # A copy, even of all: the last bits of a product can depend on where in memory its rows lie.
            taken = torch.arange(done, done + here).clamp(max=n - 1)
            try:
                embedded.append(self.whole(forward, {key: value[taken] for key, value in features.items()}))
                done += here
                continue
            except torch.cuda.OutOfMemoryError as error:
                said = one_line(error)
            # Not in the handler, whose traceback holds on to the memory of the batch.
            if here == 1:
                raise MemoryShortError(f"{self._device} has too little memory for one row: {said}")
            self._found[_shape(features)] = here // 2
            torch.cuda.empty_cache()
        return torch.cat(embedded)[:n]

    def whole(self, forward: Forward, features: Features) -> torch.Tensor:
        """Embed ``features`` in one pass, whatever their shape; the result is as above."""
        with torch.inference_mode():
            batch = {key: value.to(self._device) for key, value in features.items()}
            return F.normalize(forward(batch).float(), dim=1)

    def _rows(self, forward: Forward, features: Features, most: int) -> int:
        shape = _shape(features)
        if self._device.type == "cuda" and shape not in self._found:
            self._found[shape] = self._probe(forward, features, most)
        return min(most, self._found.get(shape, most))

    def _probe(self, forward: Forward, features: Features, most: int) -> int:
        """Return the largest of ``most``, its half, its quarter ... for which there should be memory."""
        n, rows = len(next(iter(features.values()))), min(PROBE_ROWS, most)
        held = torch.cuda.memory_allocated(self._device)
        free = torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device) - held
        torch.cuda.reset_peak_memory_stats(self._device)
        taken = torch.arange(rows).clamp(max=n - 1)
        try:
            self.whole(forward, {key: value[taken] for key, value in features.items()})
        except torch.cuda.OutOfMemoryError:
            return rows  # which are then halved
        row = (torch.cuda.max_memory_allocated(self._device) - held) / rows
        while most > rows and most * row > MEMORY_SHARE * free:
            most //= 2
        return most


def _shape(features: Features) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((key, tuple(value.shape[1:])) for key, value in features.items())


def text_rows(length: int, device: torch.device, tokens: int | None = None) -> int:
    """Return how many texts a forward pass takes.

    Args:
        length: of each, in tokens, padding included.
        device: where they go. On a CPU a product of more than some hundred rows gets no faster, and of short texts
            there are no more than 32, because few of a length come together and the rest would be filling.
        tokens: of a pass, at most (but one text there always is); default: 256 on a CPU, 32,768 elsewhere.
    """
    if device.type == "cpu":
        return max(1, min(CPU_TEXTS, (tokens or CPU_TOKENS) // length))
    return max(1, (tokens or DEVICE_TOKENS) // length)


def padded_lengths(lengths: torch.Tensor, limit: int) -> torch.Tensor:
    """Return the length that a text of so many tokens is padded to, at most ``limit``.

    Eight steps per octave (32, 36, 40 ... 64, 72, 80 ...), none shorter than 4: little is padding, and few lengths
    occur, so that batches get filled.

    Args:
        lengths: ``(n,)`` int64 token counts.
        limit: the most tokens that the model takes.
    """
    step = torch.exp2(torch.ceil(torch.log2(lengths.clamp(min=1).double())) - 4).long().clamp(min=4)
    return ((lengths + step - 1) // step * step).clamp(min=1, max=limit)


def by_length(
    features: Features, limit: int, pad_token: int, left: bool = False
) -> Iterator[tuple[torch.Tensor, Features]]:
    """Group tokenised texts by the length that they are padded to.

    Args:
        features: ``attention_mask`` and what else the tokenizer gave, padded to one length.
        limit: the most tokens that the model takes.
        pad_token: what ``input_ids`` are padded with.
        left: padding stands before the text.

    Yields:
        ``(k,)`` rows, and their features cropped or padded to their length.
    """
    mask = features["attention_mask"]
    lengths = padded_lengths(mask.sum(dim=1), limit)
    for length in sorted(set(lengths.tolist())):
        rows = torch.nonzero(lengths == length).flatten()
        missing = length - mask.shape[1]
        padding = (missing, 0) if left else (0, missing)
        yield (
            rows,
            {
                key: F.pad(value[rows], padding, value=pad_token if key == "input_ids" else 0)
                if value.shape[:2] == mask.shape
                else value[rows]
                for key, value in features.items()
            },
        )


def joined(items: Sequence[Features], pad_token: int) -> Features:
    """Return the features of single items as one batch, padded on the right to the longest.

    Args:
        items: one row of tokens each, and what else the processor gave, joined along its first dimension.
        pad_token: what ``input_ids`` are padded with.
    """
    longest = max(item["input_ids"].shape[1] for item in items)

    def padded(item: Features, key: str) -> torch.Tensor:
        value = item[key]
        if key not in ("input_ids", "attention_mask"):
            return value
        return F.pad(value, (0, longest - value.shape[1]), value=pad_token if key == "input_ids" else 0)

    keys = dict.fromkeys(key for item in items for key in item)
    return {key: torch.cat([padded(item, key) for item in items if key in item]) for key in keys}


def ahead(make: Callable[[T], R], inputs: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """Yield ``make(x)`` for each input, in order, made in threads, at most ``most`` ahead of the consumer.

    None ahead: made in the consumer's own thread, which may hold a device.
    """
    if not most:
        yield from map(make, inputs)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        for one in inputs:
            waiting.append(pool.submit(make, one))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def gathered(items: Iterable[T], weigh: Callable[[T], int], most: int, heaviest: int) -> Iterator[list[T]]:
    """Yield items in lists of at most ``most``, and no more once they weigh ``heaviest``."""
    held: list[T] = []
    weight = 0
    for item in items:
        held.append(item)
        weight += weigh(item)
        if len(held) == most or weight >= heaviest:
            yield held
            held, weight = [], 0
    if held:
        yield held


def stacked(prepared: Iterable[Features], rows: int) -> Iterator[Features]:
    """Yield features of single rows, put together to ``rows`` at a time."""
    waiting = iter(prepared)
    while chunk := list(islice(waiting, rows)):
        yield {key: torch.cat([one[key] for one in chunk]) for key in chunk[0]}


def calls_at_once(device: str) -> int:
    """Return how many calls of models run side by side, each model taking one at a time.

    On a CPU two, since few models fill all of its cores all the time; elsewhere one, because a batch is as large as
    the memory that others leave.
    """
    return 2 if torch.device(device).type == "cpu" else 1


HELD_BYTES = 256 * 2**20
"""Inputs that wait for others of their shape: once they weigh more, the largest group runs as it is."""

SMALL = 16
"""Integers with no more elements than this are sizes and grids, which shape an input as much as its dimensions."""

Shape: TypeAlias = tuple[object, ...]


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
            raise ModelError(f"batch_size must be at least 1, not {rows}")
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
            MemoryShortError: a single item needs more memory than the device has.
        """
        waiting: dict[Shape, list[tuple[int, Features]]] = {}
        results: dict[int, R] = {}
        held = 0
        for position, features in enumerate(prepared):
            shape = _shape_of(features)
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
                raise MemoryShortError(f"{self._model.device} has too little memory for one item: {said}")
            self._found[shape] = rows // 2
            torch.cuda.empty_cache()
        return {position: result for (position, _), result in zip(group, results, strict=True)}

    def _batch(self, rows: list[Features]) -> Features:
        device, dtype = self._model.device, self._model.dtype
        joined = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        return {key: v.to(device, dtype if v.is_floating_point() else None) for key, v in joined.items()}


def _shape_of(features: Features) -> Shape:
    text = features["input_ids"].shape if "input_ids" in features else None
    return tuple(
        (key, *value.shape, *(value.flatten().tolist() if value.shape != text and _is_size(value) else []))
        for key, value in features.items()
    )


def _is_size(value: torch.Tensor) -> bool:
    return value.numel() <= SMALL and not value.is_floating_point()


def _weight(features: Features) -> int:
    return sum(value.nbytes for value in features.values())

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
from typing import TypeAlias, TypeVar

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.weights import one_line

Features: TypeAlias = Mapping[str, torch.Tensor]
"""What a model is called with: tensors whose first dimension is the batch."""

Forward: TypeAlias = Callable[[Features], torch.Tensor]

PROBE_ROWS = 8
MEMORY_SHARE = 0.6
"""Of a device's free memory, what a batch may need: other models and allocations are to come."""

CPU_TEXTS, CPU_TOKENS, DEVICE_TOKENS = 32, 1024, 32_768

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
            ModelError: a single row needs more memory than the device has.
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
                raise ModelError(f"one row is more than {self._device} has memory for: {said}")
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
        device: where they go. On a CPU a product of more than a thousand rows gets no faster, and of short texts there
            are no more than 32, because few of a length come together and the rest would be filling.
        tokens: of a pass, at most (but one text there always is); default: 1,024 on a CPU, 32,768 elsewhere.
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
    """Yield ``make(x)`` for each input, in order, made in threads, at most ``most`` ahead of the consumer."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        for one in inputs:
            waiting.append(pool.submit(make, one))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def stacked(prepared: Iterable[Features], rows: int) -> Iterator[Features]:
    """Yield features of single rows, put together to ``rows`` at a time."""
    waiting = iter(prepared)
    while chunk := list(islice(waiting, rows)):
        yield {key: torch.cat([one[key] for one in chunk]) for key in chunk[0]}

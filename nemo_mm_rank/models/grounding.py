"""Where in media a phrase is spoken of, without a detector: cut into parts, embed them all, compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.media.segment import Audio, Image, Segment
from nemo_mm_rank.models.base import Encoded, Encoder, Grounded, Item
from nemo_mm_rank.models.contract import support, usable
from nemo_mm_rank.schema import Modality

PARTS_AT_ONCE, BYTES_AT_ONCE = 512, 256 * 2**20
"""Parts in one call of the encoder: at most this many, and no more once their pixels or samples weigh this much."""


class PartsGrounder:
    """Scores regions of images and windows of audio and video against phrases by one encoder's similarity.

    Regions are the squares, in cells, of every size on a ``grid x grid`` division of the picture, the whole included
    (14 for 3 x 3). Windows are ``window`` seconds long and overlap by half; the last one ends with the recording.

    Args:
        encoder: embeds text and the media into one space.
        grid: cells a side.
        window: seconds; a shorter recording is one window.
        max_windows: in a recording that would have more, windows are longer instead.

    Raises:
        ModelError: the encoder takes no text, or nothing else.
    """

    def __init__(self, encoder: Encoder, grid: int = 3, window: float = 2.0, max_windows: int = 64) -> None:
        support(encoder, Modality.TEXT)
        self.name = f"parts of {encoder.name}"
        self.revision = encoder.revision
        self.modalities = encoder.modalities & {Modality.IMAGE, Modality.AUDIO, Modality.VIDEO}
        if not self.modalities:
            raise ModelError(f"{encoder.name} takes no media, so it cannot say where a phrase is spoken of")
        self._encoder = encoder
        self._grid = grid
        self._window = window
        self._max_windows = max_windows

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Score each item's parts against its own phrases.

        All parts of all items are embedded in as few calls as their number allows, and each distinct phrase once. A
        part or a phrase that has no embedding has scores of NaN. An item none of whose parts, or none of whose
        phrases, has one fails.

        Args:
            items: ``n`` images, sounds or videos.
            phrases: for each item, what to look for.
            modality: of the items.
        """
        support(self, modality)
        segments = [_segment(item) for item in items]
        candidates = [self._candidates(segment) for segment in segments]
        parts = self._embed_parts(segments, candidates, modality)
        distinct = {phrase: row for row, phrase in enumerate(dict.fromkeys(p for own in phrases for p in own))}
        words = usable(self._encoder.encode(list(distinct), Modality.TEXT), self._encoder, len(distinct))
        grounded: list[Grounded | PairError] = []
        first = 0
        for spans, own in zip(candidates, phrases, strict=True):
            rows, columns = range(first, first + len(spans)), [distinct[phrase] for phrase in own]
            first += len(spans)
            if error := _fault(parts, rows) or _fault(words, columns):
                grounded.append(error)
                continue
            # A copy, because the last bits of a product depend on where in memory its rows lie.
            scores = parts.vectors[rows.start : rows.stop].clone() @ words.vectors[columns].T
            grounded.append(Grounded(torch.tensor(spans, dtype=torch.float64), scores))
        return grounded

    def _candidates(self, segment: Segment) -> list[tuple[float, ...]]:
        if isinstance(segment, Image):
            return [*regions(*segment.pixels.size, self._grid)]
        start = segment.start if isinstance(segment, Audio) else 0.0
        return [*windows(start, start + segment.duration, self._window, self._max_windows)]

    def _embed_parts(
        self, segments: Sequence[Segment], candidates: Sequence[Sequence[tuple[float, ...]]], modality: str
    ) -> Encoded:
        vectors = [torch.empty((0, self._encoder.dim))]
        errors: dict[int, PairError] = {}
        done = 0
        parts = (segment.part(span) for segment, spans in zip(segments, candidates, strict=True) for span in spans)
        for chunk in _chunks(parts):
            encoded = usable(self._encoder.encode(chunk, modality), self._encoder, len(chunk))
            vectors.append(encoded.vectors)
            errors.update({done + row: error for row, error in encoded.errors.items()})
            done += len(chunk)
        return Encoded(torch.cat(vectors[1:] or vectors), errors)


def _segment(item: Item) -> Segment:
    if isinstance(item, str):
        raise ModelError("media were expected, not text")
    return item


def regions(width: int, height: int, grid: int) -> Iterator[tuple[float, ...]]:
    """Yield the squares of every size, in cells of a ``grid x grid`` division, as ``(x, y, w, h)`` whole pixels.

    Smaller ones first; none without a pixel, none twice.
    """
    across = [round(width * cell / grid) for cell in range(grid + 1)]
    down = [round(height * cell / grid) for cell in range(grid + 1)]
    boxes = {
        (across[x], down[y], across[x + size] - across[x], down[y + size] - down[y]): None
        for size in range(1, grid + 1)
        for y in range(grid - size + 1)
        for x in range(grid - size + 1)
    }
    yield from ((float(x), float(y), float(w), float(h)) for x, y, w, h in boxes if w and h)


def windows(start: float, end: float, length: float, most: int) -> Iterator[tuple[float, ...]]:
    """Yield windows ``(start, end)`` in seconds: ``length`` long, overlapping by half, the last flush with the end.

    Where that were more than ``most``, they are as much longer as it takes.
    """
    length = max(length, 2 * (end - start) / (most + 1))
    if end - start <= length:
        yield start, end
        return
    # A rounding error is no reason for one more window.
    steps = math.ceil(round((end - start - length) / (length / 2), 6))
    for step in range(steps):
        yield start + step * length / 2, start + step * length / 2 + length
    yield end - length, end


def _fault(encoded: Encoded, rows: Sequence[int]) -> PairError | None:
    """Return the first error of ``rows`` where all of them (and there are any) have failed."""
    if rows and all(row in encoded.errors for row in rows):
        return EmbeddingError(f"nothing to compare: {encoded.errors[rows[0]]}")
    return None


def _chunks(parts: Iterable[Segment]) -> Iterator[list[Item]]:
    """Gather parts until they are many or heavy."""
    chunk: list[Item] = []
    weight = 0
    for part in parts:
        chunk.append(part)
        weight += part.nbytes
        if len(chunk) == PARTS_AT_ONCE or weight >= BYTES_AT_ONCE:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk

"""Sides that are embedded whole and in parts, and trimmed to the parts that matter: texts, code, images, recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mm_rank.arrays import Bools, Floats, Vectors
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.rows import in_chunks
from nemo_mm_rank.media.segment import Item, Segment
from nemo_mm_rank.media.spans import kept_text, merge
from nemo_mm_rank.modality import Medium, of
from nemo_mm_rank.models.base import Encoded, Encoder, Grounded, Grounder
from nemo_mm_rank.models.batching import ahead, gathered
from nemo_mm_rank.sns.parts import Parts, Scored, across, best_match, host, mean_match
from nemo_mm_rank.sns.selection import select_windows, union_box
from nemo_mm_rank.sns.sides import ALL, NONE, ONE, UNTOUCHED, Cut, Selector, Side, Spans, make_cut, per_pair
from nemo_mm_rank.text.split import CharSpan, merge_neighbours

MAX_PARTS = 256
"""Parts of a text; one with more sentences is cut into groups of neighbouring ones."""


@dataclass(frozen=True)
class Texts:
    """One side of ``n`` pairs that is text (or code), embedded whole and in parts.

    Attributes:
        texts: as they are.
        spans: of the parts of each.
        whole: ``(n, d)`` float32, NaN where a text has no vector.
        parts: the parts' vectors.
        errors: position -> why a text has no vector.
    """

    texts: Sequence[str]
    spans: list[list[CharSpan]]
    whole: Vectors
    parts: Parts
    errors: dict[int, PairError]

    @classmethod
    def embed(
        cls, texts: Sequence[str], split: Callable[[str], list[CharSpan]], encoder: Encoder, modality: str
    ) -> Texts:
        """Split and embed ``texts``: wholes and parts in one call."""
        spans = [merge_neighbours(split(text), MAX_PARTS) for text in texts]
        pieces = [text[start:end] for text, own in zip(texts, spans, strict=True) for start, end in own]
        encoded = encoder.encode([*texts, *pieces], modality)
        vectors, n = host(encoded), len(texts)
        errors = {row: error for row, error in encoded.errors.items() if row < n}
        counts = np.array([len(own) for own in spans], dtype=np.int64)
        return cls(texts, spans, vectors[:n], Parts(vectors[n:], counts), errors)

    def untrimmed(self) -> Side:
        """Return the side with no cut in it."""
        return Side(self.whole, [UNTOUCHED] * len(self.texts), np.full_like(self.whole, np.nan), self.errors)

    def trim(
        self, others: Parts, every: bool, select: Selector, noun: str, joint: str, encoder: Encoder, modality: str
    ) -> Side:
        """Keep the parts that fit the other side's parts, and embed what is left of each text, in one call.

        Args:
            others: the parts of the other side.
            every: whether a part is as relevant as it is close to all of these in the mean, or to the closest.
            select: which parts to keep.
            noun: what the parts are called.
            joint: what kept parts are joined by.
            encoder: the one that the texts were embedded by.
            modality: text or code.
        """
        parts = self.parts
        relevance = mean_match(parts, others) if every else best_match(parts, others)
        mask = select(Scored(relevance, parts.owner, across(parts, select.bank, every), parts.vectors))
        cuts = []
        for own, keep in zip(self.spans, per_pair(mask, self.parts.counts), strict=True):
            kept = [[float(start), float(end)] for (start, end), keeps in zip(own, keep, strict=True) if keeps]
            cuts.append(make_cut(kept, len(kept), len(own), noun))
        rows = [row for row, cut in enumerate(cuts) if cut.spans is not None]
        left = [kept_text(self.texts[row], cuts[row].spans, joint, len(self.texts[row])) for row in rows]
        trimmed = np.full_like(self.whole, np.nan)
        if rows:
            trimmed[rows] = host(encoder.encode(left, modality))
        return Side(self.whole, cuts, trimmed, self.errors)


CHUNK_ITEMS, CHUNK_BYTES = 128, 64 * 2**20
"""Decoded media in a call: at most this many, and no more once they weigh this much (their parts weigh more).

A model's batches have a fixed number of rows, filled up: the more items in a call, the less filling."""


def media_side(
    decoded: Iterable[Item | PairError],
    phrases: Sequence[Sequence[str]],
    modality: str,
    encoder: Encoder,
    grounder: Grounder | None,
    select: Selector,
    at_once: int = 1,
) -> Side:
    """Embed media whole and trimmed, decoding each once and holding a bounded number of them.

    Args:
        decoded: the media, or why one cannot be decoded.
        phrases: what each one's annotation speaks of (for the grounder).
        modality: one that comes as files.
        encoder: shares a space with text.
        grounder: scores parts against phrases, or finds what they speak of; None leaves all media whole.
        select: which parts to keep.
        at_once: calls that run side by side, in threads: what is said of some is embedded while others are described.
    """
    n = len(phrases)
    whole = np.full((n, encoder.dim), np.nan, dtype=np.float32)
    trimmed = whole.copy()
    cuts = [UNTOUCHED] * n
    errors: dict[int, PairError] = {}
    others = [phrase for one in select.phrases for phrase in one]
    medium = of(modality)

    def look(chunk: tuple[list[int], list[Item]]) -> tuple[list[int], list[Segment], Encoded, list[Cut]]:
        rows, items = chunk[0], [item for item in chunk[1] if not isinstance(item, str)]
        encoded = encoder.encode(items, modality)
        if grounder is None:
            return rows, items, encoded, [UNTOUCHED] * len(items)
        grounded = grounder.ground(items, [[*phrases[row], *others] for row in rows], modality)
        return rows, items, encoded, _cut_media(rows, items, grounded, select, medium)

    def lefts() -> Iterator[tuple[int, Segment, int]]:
        """Yield what is left of each item that is cut, and the weight of what it may be a view of."""
        chunks = in_chunks(enumerate(decoded), errors, CHUNK_ITEMS, CHUNK_BYTES)
        for rows, items, encoded, found in ahead(look, chunks, at_once, at_once - 1):
            whole[rows] = host(encoded)
            errors.update((rows[i], error) for i, error in encoded.errors.items())
            for row, item, cut in zip(rows, items, found, strict=True):
                cuts[row] = cut
                if cut.spans:
                    yield row, medium.cut(item, cut.spans), item.nbytes

    for some in gathered(lefts(), lambda left: left[2], CHUNK_ITEMS, CHUNK_BYTES):
        trimmed[[row for row, _, _ in some]] = host(encoder.encode([left for _, left, _ in some], modality))
    return Side(whole, cuts, trimmed, errors)


def _cut_media(
    rows: Sequence[int],
    items: Sequence[Segment],
    grounded: Sequence[Grounded | PairError],
    select: Selector,
    medium: Medium,
) -> list[Cut]:
    """Select among the candidate parts of all ``items`` at once; where grounding failed, there is nothing to cut."""
    found = [one.scores.cpu().numpy() for one in grounded if isinstance(one, Grounded)]
    counts = np.array([len(one.spans) if isinstance(one, Grounded) else 0 for one in grounded], dtype=np.int64)
    sizes = np.array([len(one) for one in select.phrases], dtype=np.int64)
    # The last columns are those of the bank's phrases.
    bank = [
        np.maximum.reduceat(one[:, -sizes.sum() :], np.cumsum(sizes) - sizes, axis=1) for one in found if len(sizes)
    ]
    best = [np.fmax.reduce(one[:, : one.shape[1] - sizes.sum()], axis=1, initial=np.nan) for one in found]
    relevance = np.concatenate([np.zeros(0, dtype=np.float32), *best])
    others = np.concatenate([np.zeros((0, len(sizes)), dtype=np.float32), *bank])
    mask = select(Scored(relevance, np.repeat(np.asarray(rows, dtype=np.int64), counts), others))
    return [
        Cut(None, f"{type(one).__name__}: {one}")
        if isinstance(one, PairError)
        else _cut(item, one, scores, keep | one.found, select.settings, medium)
        for item, one, scores, keep in zip(
            items, grounded, per_pair(relevance, counts), per_pair(mask, counts), strict=True
        )
    ]


def _cut(item: Segment, one: Grounded, scores: Vectors, keep: Bools, settings: SNSSettings, medium: Medium) -> Cut:
    """Return what the candidates to keep leave of ``item``; their scores are ``(c,)``."""
    if len(one.spans) < 2 and not one.found:
        return ONE
    if medium.parts == "boxes" and settings.chosen_by == "pool":
        keep = keep & ~_holding(one.spans.cpu().double().numpy(), ~keep)
    if not keep.any():
        return NONE
    candidates: Spans = one.spans.cpu().double().numpy()[keep].tolist()
    if medium.parts == "boxes":
        width, height = medium.extent(item)
        return _cut_boxes(int(width), int(height), candidates, len(one.spans), settings)
    start, end = medium.extent(item)
    return _cut_windows(end - start, candidates, scores[keep].tolist(), len(one.spans), settings)


def _holding(boxes: Floats, cut: Bools) -> Bools:
    """Return which of ``(c, 4)`` boxes hold one that is cut: what is foreign is so in a larger region, too."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = np.all((low[:, None] <= low[None, cut]) & (high[:, None] >= high[None, cut]), axis=2)
    holding: Bools = np.any(inside, axis=1)
    return holding


def _cut_boxes(width: int, height: int, boxes: Spans, candidates: int, settings: SNSSettings) -> Cut:
    tight = union_box(boxes, width, height, 0)
    if tight is None:
        return NONE
    padding = settings.padding * max(tight[2] - tight[0], tight[3] - tight[1])
    left, upper, right, lower = union_box(boxes, width, height, padding) or tight
    if (left, upper, right, lower) == (0, 0, width, height):
        return ALL
    return Cut([[left, upper, right - left, lower - upper]], _share(len(boxes), candidates, "region"))


def _cut_windows(
    duration: float, windows: Spans, scores: Sequence[float], candidates: int, settings: SNSSettings
) -> Cut:
    """Keep runs of relevant windows: those that touch or overlap are one, as relevant as the best of them."""
    runs = [
        (start, end, max(score for window, score in zip(windows, scores, strict=True) if start <= window[0] < end))
        for start, end in merge(windows)
    ]
    # Ends computed from starts may fall short of the shortest window by a rounding error.
    chosen = select_windows(runs, settings.max_segments, settings.min_duration - 1e-9)
    if not chosen:
        return NONE
    if sum(end - start for start, end in chosen) >= duration - 1e-6:
        return ALL
    kept = sum(any(start <= window[0] < end for start, end in chosen) for window in windows)
    return Cut([list(window) for window in chosen], _share(kept, candidates, "window"))


def _share(kept: int, of: int, noun: str) -> str:
    """Say how much is kept; of what a detector has found that may be all."""
    return f"{kept} of {of} {noun}s" if kept < of else f"{of} {noun}{'s' if of > 1 else ''}"

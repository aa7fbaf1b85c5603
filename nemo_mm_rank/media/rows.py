"""The two sides of a frame's pairs as the models take them: media decoded ahead in threads, texts trimmed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, overload

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, PairError, TextError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Span
from nemo_mm_rank.media.spans import kept_text
from nemo_mm_rank.models.base import Item, Items
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_SPANS,
    MEDIA_ROOT,
    MODALITY,
    Modality,
)


def iter_data(
    rows: Frame,
    opener: Opener,
    positions: Sequence[int] | None = None,
    use_spans: bool = True,
    threads: int = 2,
) -> Iterator[Item | PairError]:
    """Yield the data side of ``rows``, decoded, in order; in place of one that cannot be, its error.

    Media are decoded in ``threads`` threads, at most twice as many items ahead of the consumer; the threads end with
    the iterator, also where the consumer stops early. Texts keep their parts joined by line ends.

    Args:
        rows: a frame with ``modality`` and ``data``, and where they are there ``data_bytes``, ``media_root`` and
            ``sns_data_spans``.
        opener: how media are opened; its root is for rows that have none of their own.
        positions: which rows, by position; default: all.
        use_spans: only the parts that SNS kept.
        threads: how many decode.
    """
    references = frames.strings(rows, DATA)
    modalities = frames.strings(rows, MODALITY)
    roots = frames.strings(rows, MEDIA_ROOT) if MEDIA_ROOT in rows.columns else None
    spans = _spans(rows, DATA_SPANS if use_spans else None)
    # Row by row: all contents of a shard as one Arrow array can be more than it holds.
    contents = rows[DATA_BYTES] if DATA_BYTES in rows.columns else None

    def decode(position: int, content: bytes | None) -> Item | PairError:
        ref, modality = references[position], modalities[position]
        kept = spans[position]
        try:
            if modality in (Modality.TEXT, Modality.CODE):
                return kept_text(ref, kept, "\n", opener.settings.max_text_chars)
            if modality not in set(Modality):
                raise PairError(f"modality {modality!r} is not one of {', '.join(Modality)}")
            if not ref and content is None:
                raise MediaError("the media reference is missing")
            return opener.open(ref or "data_bytes", modality, kept, roots[position] if roots else None, content)
        except PairError as error:
            return error

    order = range(len(references)) if positions is None else positions
    waiting: deque[Callable[[], Item | PairError]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for position in order:
            content = None if contents is None else _content(contents.iloc[position])
            ahead = modalities[position] not in (Modality.TEXT, Modality.CODE)
            waiting.append(pool.submit(decode, position, content).result if ahead else partial(decode, position, None))
            if len(waiting) > 2 * threads:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@overload
def in_chunks(  # type: ignore[overload-overlap]  # nothing but errors would fit both
    decoded: Iterable[tuple[int, Item | PairError]], errors: dict[int, PairError], most: int, weight: int
) -> Iterator[tuple[list[int], list[Item]]]: ...


@overload
def in_chunks(
    decoded: Iterable[tuple[int, Items | PairError]], errors: dict[int, PairError], most: int, weight: int
) -> Iterator[tuple[list[int], list[Items]]]: ...


def in_chunks(
    decoded: Iterable[tuple[int, Any]], errors: dict[int, PairError], most: int, weight: int
) -> Iterator[tuple[list[int], list[Any]]]:
    """Gather decoded items until they are many or heavy, so that a bounded number of them is held at a time.

    Args:
        decoded: rows, each with its item (or the items of its parts), or why it has none.
        errors: takes in the rows that have none.
        most: items of a chunk; a text counts as a sixteenth of one.
        weight: bytes that end a chunk.

    Yields:
        The rows of a chunk, and their items.
    """
    rows: list[int] = []
    items: list[Any] = []
    bulk, held = 0.0, 0
    for row, item in decoded:
        if isinstance(item, PairError):
            errors[row] = item
            continue
        rows.append(row)
        items.append(item)
        for part in item if isinstance(item, tuple) else (item,):
            bulk += 1 / 16 if isinstance(part, str) else 1
            held += len(part) if isinstance(part, str) else part.nbytes
        if bulk >= most or held >= weight:
            yield rows, items
            rows, items, bulk, held = [], [], 0.0, 0
    if items:
        yield rows, items


def annotation_text(text: str | None, spans: Sequence[Span] | None = None, limit: int | None = None) -> str:
    """Return an annotation, or the parts of it that SNS kept, joined by spaces.

    Args:
        text: the annotation.
        spans: ``[start, end]`` in characters; None keeps all.
        limit: characters of the longest one allowed; default: that of the default settings.

    Raises:
        TextError: missing, empty, too long, or not text.
    """
    return kept_text(text, spans, " ", MediaSettings().max_text_chars if limit is None else limit)


def annotation_texts(rows: Frame, settings: MediaSettings, use_spans: bool = True) -> list[str | TextError]:
    """Return the annotation side of ``rows``, in order; in place of one that is not usable, its error."""
    texts: list[str | TextError] = []
    for text, kept in zip(
        frames.strings(rows, ANNOTATION), _spans(rows, ANNOTATION_SPANS if use_spans else None), strict=True
    ):
        try:
            texts.append(annotation_text(text, kept, settings.max_text_chars))
        except TextError as error:
            texts.append(error)
    return texts


def _spans(rows: Frame, name: str | None) -> list[list[list[float]] | None]:
    if name is None or name not in rows.columns:
        return [None] * len(rows)
    spans: list[list[list[float]] | None] = frames.array(rows, name).to_pylist()
    return spans


def _content(value: Any) -> bytes | None:
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None

"""The two sides of a frame's pairs as models take them: media decoded ahead, texts trimmed, parts taken apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import EmbeddingError, MediaError, PairError, TextError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Item, Items, Span
from nemo_mm_rank.media.spans import kept_text
from nemo_mm_rank.modality import is_media, known_class, modalities_of, names, one_of
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_BYTES,
    DATA_PARTS,
    DATA_SPANS,
    MEDIA_ROOT,
    MODALITY,
    PARTS,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SPANS,
)
from nemo_mm_rank.steps import by_value


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

    def decode(position: int, content: bytes | None) -> Item | PairError:
        ref, modality = references[position], modalities[position]
        kept = spans[position]
        try:
            if as_files[modality] is None:
                raise PairError(one_of(modality))
            if not as_files[modality]:
                return kept_text(ref, kept, "\n", opener.settings.max_text_chars)
            if not ref and content is None:
                raise MediaError("the media reference is missing")
            if not isinstance(ref or "", str):
                raise MediaError(f"the media reference is {str(ref)[:60]!r}, a {type(ref).__name__} and not a text")
            return opener.open(ref or "data_bytes", str(modality), kept, roots[position] if roots else None, content)
        except PairError as error:
            return error

    as_files = {modality: is_media(modality) if modality in names() else None for modality in set(modalities)}
    order = range(len(references)) if positions is None else positions
    waiting: deque[Callable[[], Item | PairError]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for position in order:
            content = _content(rows, position, references[position])
            ahead = as_files[modalities[position]]
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


def _content(rows: Frame, position: int, reference: str | None) -> bytes | None:
    """Return what a row carries of a medium: row by row, because a shard's may be more than one Arrow array holds."""
    if SOURCE_CONTENTS in rows.columns and isinstance(rows[SOURCE_CONTENTS].iloc[position], (list, np.ndarray)):
        every = zip(rows[SOURCE_MEDIA].iloc[position], rows[SOURCE_CONTENTS].iloc[position], strict=True)
        return next((_bytes(content) for medium, content in every if medium[DATA] == reference), None)
    return _bytes(rows[DATA_BYTES].iloc[position]) if DATA_BYTES in rows.columns else None


def _bytes(value: Any) -> bytes | None:
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None


def with_several(rows: Frame) -> list[int]:
    """Return the positions of rows that have more than one medium of a modality (`SOURCE_MEDIA`)."""
    every = frames.array(rows, SOURCE_MEDIA) if SOURCE_MEDIA in rows.columns else pa.nulls(0)
    if pa.types.is_null(every.type):
        return []
    long = np.flatnonzero(pc.fill_null(pc.greater(pc.list_value_length(every), 1), False))
    media = every.take(pa.array(long)).to_pylist()
    return [row for row, own in zip(long.tolist(), media, strict=True) if len(_by_kind(own)) < len(own)]


def views(rows: Frame, positions: Sequence[int], most: int) -> tuple[Frame, list[int]]:
    """Return rows that have several media of a modality once for each: in a row's i-th view, its i-th of each modality.

    A modality with fewer media than another begins again; of more than ``most`` those are shown that lie in the middle
    of as many equal slices, as the frames of a video do.

    Args:
        rows: as for `take_apart`, with ``source_media``.
        positions: of rows that have several (`with_several`).
        most: views of a row.

    Returns:
        A frame of all views, those of a row side by side, and how many each of ``positions`` has.
    """
    table = frames.to_table(rows.iloc[list(positions)])
    names = [name for name in (MODALITY, DATA, DATA_PARTS, SOURCE_MEDIA) if name in table.column_names]
    owner: list[int] = []
    shown: list[list[dict[str, str]]] = []
    for at, row in enumerate(table.select(names).to_pylist()):
        media = {kind: [one[DATA] for one in own] for kind, own in _by_kind(row[SOURCE_MEDIA]).items()}
        media = {kind: [own[i] for i in _spread(len(own), most)] for kind, own in media.items()}
        parts = row.get(DATA_PARTS) or [{MODALITY: row[MODALITY], DATA: row[DATA]}]
        choices = [media.get(part[MODALITY], [part[DATA]]) for part in parts]
        for view in range(max(map(len, choices))):
            owner.append(at)
            shown.append([{**part, DATA: own[view % len(own)]} for part, own in zip(parts, choices, strict=True)])
    columns = dict(zip(table.column_names, table.take(pa.array(owner, pa.int64())).columns, strict=True))
    columns[DATA] = pa.array(["\n".join(part[DATA] for part in parts) for parts in shown], pa.string())
    if DATA_PARTS in columns:
        columns[DATA_PARTS] = pa.array([parts if len(parts) > 1 else None for parts in shown], PARTS)
    return frames.from_table(pa.table(columns)), np.bincount(owner).tolist()


def _by_kind(media: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for one in media:
        found.setdefault(one[MODALITY], []).append(one)
    return found


def _spread(n: int, most: int) -> Sequence[int]:
    """Return which of ``n`` are taken where ``most`` may be: the middles of as many equal slices."""
    return range(n) if n <= most else [(2 * i + 1) * n // (2 * most) for i in range(most)]


@dataclass(frozen=True)
class Apart:
    """Rows whose data is of one class, taken apart.

    Attributes:
        kinds: what the parts are.
        rows: positions of the rows.
        frames: for each part a frame of these rows, with ``modality``, ``data`` and what else decoding needs.
        errors: position -> why this row cannot be taken apart.
    """

    kinds: tuple[str, ...]
    rows: list[int]
    frames: list[Frame]
    errors: dict[int, PairError]

    def decoded(self, opener: Opener, threads: int) -> Iterator[Items | PairError]:
        """Yield the parts of each row; in place of a row of which one cannot be decoded, its error."""
        for row in zip(*(iter_data(part, opener, threads=threads) for part in self.frames), strict=True):
            items = [item for item in row if not isinstance(item, PairError)]
            errors = [self.named(number, item) for number, item in enumerate(row) if isinstance(item, PairError)]
            yield errors[0] if errors else tuple(items)

    def named(self, number: int, error: PairError) -> PairError:
        """Return the error of a part as the row's own, with the part in its message."""
        return type(error)(f"{self.kinds[number]} part: {error}")


def by_class(rows: Frame, errors: dict[int, PairError]) -> Iterator[tuple[str, list[int]]]:
    """Yield the classes of the data of ``rows`` with their positions; to ``errors`` go those that are none."""
    for name, positions in by_value([str(value) for value in frames.strings(rows, MODALITY)]).items():
        if known_class(name):
            yield name, positions
        else:
            errors.update(dict.fromkeys(positions, EmbeddingError(one_of(name))))


def iter_class(
    rows: Frame, modality: str, positions: Sequence[int], opener: Opener, threads: int = 2
) -> Iterator[Item | Items | PairError]:
    """Yield the data at ``positions``, all of one class: items, or where it has several parts tuples of them.

    Args:
        rows: as for `iter_data` and `take_apart`.
        modality: the class.
        positions: which rows.
        opener: how media are opened.
        threads: how many decode, for each part.
    """
    if not known_class(modality) or len(modalities_of(modality)) == 1:
        yield from iter_data(rows, opener, positions, threads=threads)
        return
    apart = take_apart(rows, modality, positions)
    good = apart.decoded(opener, threads)
    for row in positions:
        yield apart.errors[row] if row in apart.errors else next(good)


def take_apart(rows: Frame, modality: str, positions: Sequence[int]) -> Apart:
    """Take the data at ``positions`` apart, all of which is of one class.

    Args:
        rows: with ``data_parts``, and where they are there ``media_root`` and ``sns_data_spans``.
        modality: the class, of several parts.
        positions: which rows.
    """
    kinds = modalities_of(modality)
    if DATA_PARTS not in rows.columns:
        error = EmbeddingError(f"data of class {modality} has its parts in a column {DATA_PARTS!r}, and there is none")
        return Apart(kinds, [], [], dict.fromkeys(positions, error))
    wanted = pa.array(positions, pa.int64())
    lists = frames.array(rows, DATA_PARTS).take(wanted)
    found = [None if parts is None else [part["modality"] for part in parts] for parts in lists.to_pylist()]
    good = [at for at, kinds_there in enumerate(found) if kinds_there == list(kinds)]
    errors: dict[int, PairError] = {
        positions[at]: EmbeddingError(f"parts of {names} are no data of class {modality}")
        for at, names in enumerate(found)
        if names != list(kinds)
    }
    kept = pa.array([positions[at] for at in good], pa.int64())
    flat = pc.struct_field(lists.take(pa.array(good, pa.int64())).flatten(), DATA)
    shared = {MEDIA_ROOT: frames.array(rows, MEDIA_ROOT).take(kept)} if MEDIA_ROOT in rows.columns else {}
    spans = frames.array(rows, DATA_SPANS).take(kept).to_pylist() if DATA_SPANS in rows.columns else None
    for name in (DATA_BYTES, SOURCE_MEDIA, SOURCE_CONTENTS):  # of the one part that comes as a file, or of each
        if name in rows.columns:
            shared[name] = frames.array(rows, name).take(kept)
    parts = []
    for number, kind in enumerate(kinds):
        columns = {
            MODALITY: pa.array([kind] * len(good), pa.string()),
            DATA: flat.take(pa.array(range(number, len(flat), len(kinds)), pa.int64())),
            **shared,
        }
        if spans is not None:
            columns[DATA_SPANS] = pa.array([spans_of(own, number) for own in spans], SPANS)
        parts.append(frames.from_table(pa.table(columns)))
    return Apart(kinds, kept.to_pylist(), parts, errors)


def spans_of(spans: Sequence[Sequence[float]] | None, number: int) -> list[list[float]] | None:
    """Return the spans of one part among those of a row (`SPANS`), None where it is whole."""
    own = [list(span[1:]) for span in spans or () if span[0] == number]
    return own or None

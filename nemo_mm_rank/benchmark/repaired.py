"""Which spoilt pairs SNS has repaired: the foreign sentence is cut away, and nearly all of the own ones are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_mm_rank.benchmark.planting.donors import joined
from nemo_mm_rank.media.segment import Span
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, PAIR_ID
from nemo_mm_rank.text.split import sentence_spans, split_sentences

KEPT = 0.9
"""The share of the own sentences that has to be left."""


def repaired(own: str, spoilt: str, spans: Sequence[Span] | None) -> bool:
    """Whether what is kept of an annotation with a foreign sentence is as good as the annotation was.

    >>> repaired("A dog runs", "A dog runs. Fish swim.", [[0, 11]])
    True
    >>> repaired("A dog runs", "A dog runs. Fish swim.", None)
    False

    Args:
        own: the annotation before the sentence was planted.
        spoilt: the annotation with it.
        spans: characters of ``spoilt`` that are kept; None is all.
    """
    mine = set(split_sentences(joined(split_sentences(own))))
    whole = [(0, len(spoilt))] if spans is None else spans
    left = {True: 0, False: 0}
    for start, end in sentence_spans(spoilt):
        left[spoilt[start:end] in mine] += any(begin <= start and end <= stop for begin, stop in whole)
    return not left[False] and left[True] >= KEPT * sum(spoilt[a:b] in mine for a, b in sentence_spans(spoilt))


def repaired_pairs(originals: Mapping[str, str], trimmed: ShardStore) -> set[str]:
    """Return the ids of the pairs that are repaired.

    Args:
        originals: pair id -> its annotation before a foreign sentence was planted in it.
        trimmed: the pool as a run has trimmed it.
    """
    found = set()
    for part in range(trimmed.count):
        for row in trimmed.read(part, [PAIR_ID, ANNOTATION, ANNOTATION_SPANS]).to_pylist():
            own = originals.get(row[PAIR_ID])
            if own is not None and repaired(own, row[ANNOTATION], row[ANNOTATION_SPANS]):
                found.add(row[PAIR_ID])
    return found

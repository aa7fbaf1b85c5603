"""The cut scores of a pool (`standards`), learnt from a sample of its pairs by the very step that will cut them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.arrays import Bools
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Encoder
from nemo_mm_rank.schema import ERROR, MODALITY
from nemo_mm_rank.sns.parts import Parts, Scored, across, embed_parts
from nemo_mm_rank.sns.sides import Selector, Side
from nemo_mm_rank.sns.standards import ANNOTATION_SIDE, BANK, DATA_SIDE, Standard, Standards, fit, key
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.sns.trimming import Texts
from nemo_mm_rank.steps import columns_added
from nemo_mm_rank.text.phrases import components
from nemo_mm_rank.text.split import text_medium

VERSION = 1
"""Of what is learnt here: what is kept of another version is made anew."""

PAIRS = 256
"""Bound on the pairs of each modality that are looked at."""


@dataclass(frozen=True)
class _Listener(Selector):
    """Keeps everything, and how it scores."""

    heard: list[Scored] = field(default_factory=list)

    def __call__(self, scored: Scored) -> Bools:
        self.heard.append(scored)
        return np.ones(len(scored.relevance), dtype=bool)


class _Listening(SNSStep):
    """The step, which cuts nothing and learns what there is to compare."""

    def start(self, banks: Standards) -> None:
        """Forget what was heard; from now on parts are held against ``banks``."""
        self.banks = banks
        self.encoders: dict[str, tuple[str, str]] = {}
        self._listeners: dict[str, _Listener] = {}
        self.others: dict[str, Parts] = {}
        self.phrases: dict[str, list[list[str]]] = {}

    def _selector(self, modality: str, side: str) -> Selector:
        name = key(modality, side)
        listener = _Listener(self.settings, 0.0, None, self.banks.banks.get(name), self.banks.phrases.get(name, ()))
        # Of two pictures in a pair the first stands for both.
        self._listeners.setdefault(name, listener)
        return listener

    def heard(self, name: str) -> Scored:
        """Return all that was scored of one side, in the order of the pairs."""
        first, *more = self._listeners[name].heard
        for one in more:  # media come by chunks, numbered throughout
            first = Scored(
                *(np.concatenate([getattr(s, n) for s in (first, one)]) for n in ("relevance", "owner", "across"))
            )
        return first

    @property
    def names(self) -> list[str]:
        """The sides of which anything was scored."""
        return [name for name, one in self._listeners.items() if one.heard]

    def _cut_annotations(self, sentences: Texts, parts: Parts, modality: str, encoder: Encoder) -> Side:
        self.others.setdefault(key(modality, ANNOTATION_SIDE), parts)
        self.encoders.setdefault(key(modality, ANNOTATION_SIDE), (encoder.name, encoder.revision))
        return super()._cut_annotations(sentences, parts, modality, encoder)

    def _cut_media(
        self,
        decoded: Iterable[Item | PairError],
        annotations: Sequence[str],
        modality: str,
        encoder: Encoder,
        select: Selector,
    ) -> Side:
        phrases = components(annotations, self.settings.components, self._parser)
        self.phrases.setdefault(key(modality, DATA_SIDE), phrases)
        return super()._cut_media(decoded, annotations, modality, encoder, select)

    def _cut_texts(
        self, document: Texts, annotations: Sequence[str], modality: str, encoder: Encoder, select: Selector
    ) -> Side:
        if not self._forward:
            return document.untrimmed()
        # What is one part is looked through as well: it says how own parts score.
        phrases = embed_parts(components(annotations, self.settings.components, self._parser), encoder)
        self.others.setdefault(key(modality, DATA_SIDE), phrases)
        return document.trim(phrases, True, select, text_medium(modality).noun, "\n", encoder, modality)


def fit_standards(rows: pa.Table, step: SNSStep, seed: int) -> Standards:
    """Return the cut scores of every modality and side that the step trims.

    Args:
        rows: a sample of the pool: what the step reads, in an order that does not depend on how the pool lies.
        step: as it will trim; whether there are cut scores already does not matter.
        seed: of what is planted.
    """
    modalities = sorted(pc.unique(rows[MODALITY]).to_pylist(), key=lambda name: ("+" in name, name))
    heard = [_heard(rows.filter(pc.equal(rows[MODALITY], modality)), step) for modality in modalities]
    standards: dict[str, Standard] = {}
    banks: dict[str, Parts] = {}
    phrases: dict[str, Sequence[Sequence[str]]] = {}
    for one in heard:
        for name in one.names:
            if name in standards:  # parts in pairs of their own have come first
                continue
            strangers = None if name.endswith(DATA_SIDE) else _strangers(one, name, heard)
            # Of data, another paragraph or clip; of an annotation, a sentence.
            blocks = name.endswith(DATA_SIDE)
            standards[name] = fit(one.heard(name), blocks, step.settings.lost, seed, strangers)
            banks |= {name: one.banks.banks[name]} if name in one.banks.banks else {}
            phrases |= {name: one.banks.phrases[name]} if name in one.banks.phrases else {}
    return Standards(standards, banks, phrases)


def _strangers(one: _Listening, name: str, heard: Sequence[_Listening]) -> Scored | None:
    """Return the sentences of other modalities' annotations beside a modality's bank."""
    found = [
        other.heard(sentences).vectors
        for other in heard
        if other is not one
        for sentences, encoder in other.encoders.items()
        if encoder == one.encoders[name] and sentences in other.names
    ]
    if not found or name not in one.banks.banks:
        return None
    vectors = np.concatenate([own for own in found if own is not None])
    vectors = vectors[~np.isnan(vectors).any(axis=1)]
    parts = Parts(vectors, np.ones(len(vectors), dtype=np.int64))
    nowhere = np.full(len(vectors), np.nan, dtype=np.float32)
    return Scored(nowhere, parts.owner, across(parts, one.banks.banks[name], mean=False), vectors)


def _heard(rows: pa.Table, step: SNSStep) -> _Listening:
    """Return what the step hears of pairs of one modality, those left out that fail."""
    settings = step.settings.model_copy(update={"cuts": None})
    listening = _Listening(settings, step.expert, step.models, step.media)
    listening.device = step.device
    banks = Standards({}, {}, {})
    while True:
        for first in (True, False):
            listening.start(Standards({}, {}, {}) if first else banks)
            if not rows.num_rows:
                return listening
            failed = columns_added(listening, rows)[ERROR].is_valid()
            if pc.any(failed).as_py():
                break
            banks = Standards(
                {},
                {name: _first(parts) for name, parts in listening.others.items()},
                {name: [own or [_NOTHING] for own in phrases[:BANK]] for name, phrases in listening.phrases.items()},
            )
        else:
            return listening
        rows = rows.filter(pc.invert(failed))  # the bank's pairs have to be the first ones that are scored


_NOTHING = "."


def _first(parts: Parts) -> Parts:
    """Return the parts of the first pairs; a pair without any, and a part without a vector, is close to nothing."""
    counts = parts.counts[:BANK]
    vectors = np.split(np.nan_to_num(parts.vectors), np.cumsum(parts.counts)[:-1])[: len(counts)]
    nothing = np.zeros((1, parts.vectors.shape[1]), dtype=np.float32)
    return Parts(np.concatenate([own if len(own) else nothing for own in vectors]), np.maximum(counts, 1))

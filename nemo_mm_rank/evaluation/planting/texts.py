"""Sentences added to a text and taken from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nemo_mm_rank.schema import Modality
from nemo_mm_rank.sns.split import block_spans, sentence_spans

_WORD = re.compile(r"\w+")


def words(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return set(_WORD.findall(text.lower()))


def rarity(texts: Sequence[str]) -> dict[str, float]:
    """Return of each word ``log(n / texts that have it)``: the inverse document frequency (Sparck Jones, 1972)."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(words(text))
    return {word: float(np.log(len(texts) / count)) for word, count in found.items()}


def with_sentence(own: Sequence[str], foreign: str, rng: np.random.Generator) -> str:
    """Return a text of its own sentences, and a foreign one before, between or behind them."""
    place = int(rng.integers(len(own) + 1))
    return _joined([*own[:place], foreign, *own[place:]])


def with_replaced(own: Sequence[str], foreign: str, rng: np.random.Generator) -> str:
    """Return a text of its own sentences, one of which has given its place to a foreign one."""
    place = int(rng.integers(len(own)))
    return _joined([*own[:place], foreign, *own[place + 1 :]])


def without_one(own: Sequence[str], rng: np.random.Generator) -> str:
    """Return a text of its own sentences but one."""
    place = int(rng.integers(len(own)))
    return _joined([*own[:place], *own[place + 1 :]])


def with_word(text: str, old: str, new: str) -> str:
    """Return a text in which every ``old`` is ``new``, with a capital where ``old`` had one."""

    def changed(match: re.Match[str]) -> str:
        word = match.group()
        if word.lower() != old:
            return word
        return new[:1].upper() + new[1:] if word[:1].isupper() else new

    return _WORD.sub(changed, text)


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(sentence if sentence[-1] in ".!?" else f"{sentence}." for sentence in sentences)


def parts(text: str, modality: str) -> list[str]:
    """Return the sentences of a text, the blocks of code."""
    spans = block_spans(text) if modality == Modality.CODE else sentence_spans(text)
    return [text[start:end] for start, end in spans]


def divisible(modality: str, data: str) -> bool:
    """Whether a key sentence can be taken away and something is left."""
    return modality in (Modality.TEXT, Modality.CODE) and len(parts(data, modality)) > 1


def without_key(modality: str, data: str, annotation: str, rare: Mapping[str, float]) -> str:
    """Return a text or code without the part that has most in common with the annotation, by the rarity of words."""
    asked = words(annotation)
    there = parts(data, modality)
    key = int(np.argmax([_weight(words(part) & asked, rare) for part in there]))
    between = "\n" if modality == Modality.CODE else " "
    return between.join(part for place, part in enumerate(there) if place != key)


def nearly(modality: str, data: str, rng: np.random.Generator) -> str:
    """Return a text or code with a change that no reader would notice."""
    if modality == Modality.CODE:
        return f"\n{data}\n"
    found = data.split(" ")
    if len(found) > 3:
        del found[int(rng.integers(len(found)))]
    return " ".join(found) + " "


def _weight(found: Iterable[str], rare: Mapping[str, float]) -> float:
    return sum(rare.get(word, 0.0) for word in sorted(found))

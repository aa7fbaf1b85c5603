"""Pairs of text whose parts are told from others' by their words."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_mm_rank.text.split import split_sentences

NOUNS = [f"{first}{second}" for first in ("rim", "tol", "bax", "kiv", "mun", "sep", "gor") for second in "aeiou"]


def said(words: list[str], rng: np.random.Generator) -> str:
    a, b, c = rng.choice(words, 3, replace=False)
    return f"The {a} beside a {b} and a {c}."


def rows_of(count: int, seed: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs of few words each: data of four sentences, annotations of three, all of the pair's own words."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(first, first + count):
        words = [str(word) for word in rng.choice(NOUNS, 5, replace=False)]
        data, annotation = (" ".join(said(words, rng) for _ in range(n)) for n in (4, 3))
        rows.append(
            {"pair_id": f"p{number:04d}", "pool": "t", "modality": "text", "data": data, "annotation": annotation}
        )
    return rows


def planted(rows: list[dict[str, Any]], side: str) -> list[dict[str, Any]]:
    """Give every pair what another has: an annotation a sentence behind its first, data all of it before."""
    made = []
    for row, other in zip(rows, [*rows[7:], *rows[:7]], strict=True):
        own, foreign = split_sentences(row[side]), split_sentences(other[side])
        text = [own[0], foreign[0], *own[1:]] if side == "annotation" else [*foreign, *own]
        made.append({**row, side: " ".join(text)})
    return made

"""Texts, code and captions of the demo pool: patterns from a file, filled with words by chance."""

from __future__ import annotations

from pathlib import Path
from random import Random

import yaml

WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))


def _filled(random: Random, pattern: dict[str, str]) -> list[str]:
    words = {slot: random.choice(choices) for slot, choices in WORDS["slots"].items()}
    return [part.format(**words) for part in pattern.values()]


def text(random: Random, outdoors: bool, number: int) -> tuple[str, str]:
    """Return a passage, and a question about it with its answer; kinds take turns by ``number``."""
    kinds = WORDS["outdoors" if outdoors else "indoors"]
    passage, question, answer = map(capital, _filled(random, kinds[number % len(kinds)]))
    return passage, f"{question} {answer}"


def code(random: Random, number: int) -> tuple[str, str]:
    """Return a Python snippet, and what it is for; kinds take turns by ``number``."""
    snippet, intent = _filled(random, WORDS["snippets"][number % len(WORDS["snippets"])])
    return snippet, intent


def caption(random: Random, kind: str, **words: str | None) -> str:
    """Return one of the captions of a kind of image, audio or video."""
    pattern: str = random.choice(WORDS["captions"][kind])
    return pattern.format(**words)


def capital(sentence: str) -> str:
    """Return a sentence with its first letter in capitals."""
    return sentence[0].upper() + sentence[1:]

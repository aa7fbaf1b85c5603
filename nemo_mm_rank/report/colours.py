"""Which of the style's colours stand for what, so that a modality has one colour in every drawing."""

from __future__ import annotations

from nemo_mm_rank.schema import Modality

COLOURS = 10
"""Colours of the style, ``c0`` to ``c9``; the first five are told apart without red or green."""

_OF_STRATEGY = {
    "ranked": 0,
    "ranked-forward": 3,
    "ranked-backward": 8,
    "ranked-bidirectional": 5,
    "ranked-quality": 9,
    "random": 7,
    "stratified": 2,
    "traditional": 1,
    "best-expert": 6,
    "ecodatum": 4,
}
_OF_MODALITY = {str(modality): place for place, modality in enumerate(Modality)}


def colour(modality: str, place: int) -> int:
    """Return the number of a modality's colour; one of no name of ours takes a spare one, by its ``place``."""
    spare = len(_OF_MODALITY) + place % (COLOURS - len(_OF_MODALITY))
    return _OF_MODALITY.get(modality, spare)


def strategy_colour(strategy: str) -> int:
    """Return the number of a strategy's colour."""
    return _OF_STRATEGY.get(strategy, COLOURS - 1)

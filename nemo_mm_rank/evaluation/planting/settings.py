"""What is planted, and how much of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.config import Settings, Share


class Kind(StrEnum):
    """What can be wrong with a pair."""

    SWAP_WITHIN = "swap-within"
    """The annotation of another pair of the same modality: the hardest to find."""
    SWAP_ACROSS = "swap-across"
    """The annotation of a pair of another modality."""
    FOREIGN_SENTENCE = "foreign-sentence"
    """A sentence of another pair's annotation among the own ones."""
    KEY_SENTENCE = "key-sentence"
    """The part of the data that the annotation speaks of is gone (text and code; what is left of a caption when a
    sentence is taken away is still true)."""
    CROPPED = "cropped"
    """Only a small window of the medium is left."""
    PADDED = "padded"
    """The medium is followed by another pair's (pictures: beside it)."""
    NEAR_DUPLICATE = "near-duplicate"
    """The pair is replaced by a slightly changed copy of another, whole one."""
    CORRUPT = "corrupt"
    """The medium's file breaks off after its first bytes."""
    OFF_TOPIC = "off-topic"
    """The pair is replaced by one that agrees in itself and is about nothing that the pool is about."""


SWAPS: dict[Kind, float] = {Kind.SWAP_WITHIN: 1.0}

ALL: dict[Kind, float] = {
    Kind.SWAP_WITHIN: 10,
    Kind.SWAP_ACROSS: 5,
    Kind.FOREIGN_SENTENCE: 5,
    Kind.KEY_SENTENCE: 5,
    Kind.CROPPED: 4,
    Kind.PADDED: 4,
    Kind.NEAR_DUPLICATE: 3,
    Kind.CORRUPT: 2,
    Kind.OFF_TOPIC: 2,
}

PRESETS: dict[str, dict[Kind, float]] = {"swaps": SWAPS, "all": ALL}


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"kinds: a mapping of kinds to weights, or one of {', '.join(PRESETS)}, not {value!r}")
        return PRESETS[value]
    return value


class PlantSettings(Settings):
    """How a pool is spoilt: how much of each modality, and with what."""

    total: Share = Field(0.4, description="share of each modality's pairs that something is planted in")
    kinds: Annotated[dict[Kind, Annotated[float, Field(ge=0)]], BeforeValidator(_named)] = Field(
        default_factory=lambda: dict(ALL),
        description="kind -> weight among the planted, or a preset: swaps (within a modality alone), all",
    )
    keep: float = Field(0.3, gt=0, lt=1, description="of each side (pictures) or of the duration that cropping leaves")

    @model_validator(mode="after")
    def _something(self) -> PlantSettings:
        if self.total and not any(self.kinds.values()):
            raise ValueError("kinds: at least one needs a positive weight")
        return self

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
    REPLACED_SENTENCE = "replaced-sentence"
    """A sentence of another pair's annotation in the place of one of several own ones."""
    REMOVED_SENTENCE = "removed-sentence"
    """One of several sentences of the annotation is gone: what is left is true, and says less."""
    EXCHANGED_WORD = "exchanged-word"
    """One of the annotation's rarer words gives way to one of another pair's, of the same modality where it can be."""
    KEY_SENTENCE = "key-sentence"
    """The part of the data that the annotation speaks of is gone (text and code)."""
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
"""The mix that results are reported on. Kinds that are not in it are planted where they are named."""

PRESETS: dict[str, dict[Kind, float]] = {
    **{str(kind): {kind: 1.0} for kind in Kind},
    "swaps": {Kind.SWAP_WITHIN: 1.0},
    "media": {Kind.CROPPED: 1.0, Kind.PADDED: 1.0, Kind.CORRUPT: 1.0},
    "all": ALL,
}
"""What a name alone stands for: a kind by itself, or several."""


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"kinds: a mapping of kinds to weights, or one of {', '.join(PRESETS)}, not {value!r}")
        return dict(PRESETS[value])
    return value


class PlantSettings(Settings):
    """How a pool is spoilt: how much of each modality, and with what."""

    total: Share = Field(0.4, description="share of each modality's pairs that something is planted in")
    kinds: Annotated[dict[Kind, Annotated[float, Field(ge=0)]], BeforeValidator(_named)] = Field(
        default_factory=lambda: dict(ALL),
        description="kind -> weight among the planted; or a name: a kind by itself, swaps (within a modality), "
        "media (cropped, padded, corrupt), all (the usual mix)",
    )
    keep: float = Field(0.3, gt=0, lt=1, description="of each side (pictures) or of the duration that cropping leaves")

    @property
    def weights(self) -> dict[Kind, float]:
        """The kinds that have a weight, in the order of `Kind`."""
        return {kind: self.kinds[kind] for kind in Kind if self.kinds.get(kind)}

    @model_validator(mode="after")
    def _something(self) -> PlantSettings:
        if self.total and not any(self.kinds.values()):
            raise ValueError("kinds: at least one needs a positive weight")
        return self

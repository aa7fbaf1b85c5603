"""What counts as a duplicate, and which of them stays."""

from __future__ import annotations

from pydantic import Field

from nemo_mm_rank.config import Settings


class DuplicateSettings(Settings):
    """Quality-guided deduplication."""

    by: tuple[str, ...] = Field(
        ("quality__agreement",), description="columns that say which stays, higher is better: the first that a pair has"
    )
    text: bool | None = Field(
        None,
        description="duplicates have the same annotation too; default: of text and code, since a passage may be asked "
        "several things, while of media the data alone counts",
    )
    radius: int = Field(0, ge=0, le=16, description="bits in which fingerprints of media may differ; 0: equal keys")

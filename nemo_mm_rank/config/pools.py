"""Where pairs come from: pools, how their records are read, and how their media are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from nemo_mm_rank.config.base import Carrying, ModalityName, Settings, listed
from nemo_mm_rank.errors import nearest
from nemo_mm_rank.schema import CANONICAL, DATA_BYTES

FIELDS = (*CANONICAL, DATA_BYTES, "data_path", "annotation_path")
"""What a pool's field map may name; ``data_path`` and ``annotation_path`` point to text files."""


# fmt: off
PoolFormat = Literal["rows", "llava", "sharegpt", "alpaca", "swift", "messages",
                     "nemo-manifest", "coco", "img2dataset", "captions", "urls", "hf"]
# fmt: on
POOL_FORMATS: tuple[str, ...] = get_args(PoolFormat)
"""What the records of a pool may be written in; ``rows`` are pairs by our own names."""


class PoolSource(Settings):
    """One pool: a manifest file, a folder or a glob of them, local or any fsspec URL."""

    path: str = Field(description="The manifest: a file, a folder, a glob pattern or any fsspec URL.")
    fields: dict[str, str] = Field(
        default_factory=dict, description="Field map: our name of a field, and the name it has in the manifest."
    )
    modality: ModalityName | None = Field(None, description="Modality of the rows that do not name one.")
    format: PoolFormat | None = Field(
        None, description="Format of the records. Default: it is recognised from the records."
    )
    turns: Literal["all", "first", "last"] = Field(
        "all", description="Which turns of a conversation make the two sides of a pair."
    )
    system: Literal["keep", "drop"] = Field(
        "drop", description="Whether the system prompt of a conversation is kept as part of the data."
    )
    captions: Literal["each", "join", "first"] = Field(
        "each",
        description="What a list of captions becomes: a pair for each caption, one pair with all of them joined, "
        "or one pair with the first.",
    )
    name: str | None = Field(
        None,
        description="The `pool` of rows that do not name one. Default: the name of the manifest without its ending.",
    )
    rename: dict[str, str] = Field(
        default_factory=dict,
        description="Columns of yours to rename: the name in the manifest, and the name to keep it under.",
    )
    root: str | None = Field(
        None, description="Folder that media references are relative to. Default: the folder of the manifest."
    )
    trusted_roots: list[str] = Field(
        default_factory=list, description="More folders, besides the root, that references and links may lead to."
    )
    download_seconds: float = Field(
        300, gt=0, description="Most seconds that one read of a manifest behind a URL may take in total."
    )

    @model_validator(mode="after")
    def _known_fields(self) -> PoolSource:
        for ours in self.fields:
            if ours not in FIELDS:
                raise ValueError(f"field map: there is no field {ours!r}{nearest(ours, FIELDS)}")
        if "\n" in (self.root or "") or any("\n" in root or "://" in root for root in self.trusted_roots):
            raise ValueError(
                "root and trusted_roots must not contain line breaks, and trusted_roots must be local folders"
            )
        return self


MEDIA_NO_MATTER = {"threads", "decode_seconds", "download_seconds", "cache_bytes"}
"""Settings of media that say what the work may take, and change nothing of what comes out."""


class MediaSettings(Carrying, Settings):
    """How media are opened, and the bounds that protect a run from hostile files."""

    max_pixels: int = Field(
        100_000_000, gt=0, description="Most pixels of an image; a larger one is refused before it is decoded."
    )
    max_side: int = Field(
        65_535,
        gt=0,
        description="Most pixels of the longer side of an image; a longer one is refused before it is decoded.",
    )
    max_bytes: int = Field(2_000_000_000, gt=0, description="Most bytes of a file; a larger one is refused.")
    max_text_chars: int = Field(
        200_000, gt=0, description="Most characters of a text or of code; a longer one is quarantined."
    )
    max_seconds: float = Field(
        3600, gt=0, description="Most seconds of a recording that are decoded; the rest is not read."
    )
    sample_rate: int = Field(
        16_000, ge=8_000, le=192_000, description="Sample rate in Hz that audio is decoded to (one channel)."
    )
    video_frames: int = Field(
        8, ge=1, le=512, description="Number of frames that are sampled evenly from the kept part of a video."
    )
    video_side: int = Field(
        256, ge=16, le=4096, description="Longer side in pixels that the frames of a video are scaled down to."
    )
    several: int = Field(
        8,
        ge=1,
        le=512,
        description="Most media of one modality that a pair is embedded from; of more, so many evenly spread ones.",
    )
    allow_urls: bool = Field(False, description="Open references that are URLs (any fsspec URL that a row may name).")
    threads: int = Field(2, ge=1, le=64, description="Number of threads that decode ahead of the models.")
    decode_seconds: float = Field(60, gt=0, description="Most seconds of CPU time that decoding one file may take.")
    download_seconds: float = Field(300, gt=0, description="Most seconds that downloading one file may take.")
    cache_bytes: int = Field(
        0, ge=0, description="Most bytes of media from URLs that are kept on this machine to be opened again; 0: none."
    )

    def identity(self) -> dict[str, Any]:
        """Return what a decoded file depends on (for fingerprints)."""
        return self.model_dump(mode="json", exclude=MEDIA_NO_MATTER)


def _pools(value: Any) -> Any:
    return [{"path": str(item)} if isinstance(item, (str, Path)) else item for item in listed(value)]


Pools = Annotated[tuple[PoolSource, ...], BeforeValidator(_pools)]
"""One pool or several; a plain path is a pool."""

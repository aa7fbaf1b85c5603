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
                     "nemo-manifest", "coco", "img2dataset", "captions", "urls"]
# fmt: on
POOL_FORMATS: tuple[str, ...] = get_args(PoolFormat)
"""What the records of a pool may be written in; ``rows`` are pairs by our own names."""


class PoolSource(Settings):
    """One pool: a manifest file, a folder or a glob of them, local or any fsspec URL."""

    path: str = Field(description="a file, a folder, a glob pattern or any fsspec URL")
    fields: dict[str, str] = Field(default_factory=dict, description="ours -> the manifest's own name")
    modality: ModalityName | None = Field(None, description="for pools whose rows do not say")
    format: PoolFormat | None = Field(None, description="what the records are written in; default: as they look")
    turns: Literal["all", "first", "last"] = Field("all", description="of a conversation, that make its two sides")
    system: Literal["keep", "drop"] = Field("drop", description="whether a conversation's system prompt is of the data")
    captions: Literal["each", "join", "first"] = Field(
        "each", description="of a list of captions: each makes a pair, all of them do, or the first does"
    )
    name: str | None = Field(None, description="the `pool` of rows that do not say; default: the manifest's stem")
    rename: dict[str, str] = Field(default_factory=dict, description="your own columns: name -> name to keep it under")
    root: str | None = Field(None, description="what media references are relative to; default: the manifest's folder")
    trusted_roots: list[str] = Field(
        default_factory=list, description="folders besides the root that references and links may lead to"
    )
    download_seconds: float = Field(300, gt=0, description="to wait for one read of a manifest behind a URL, in all")

    @model_validator(mode="after")
    def _known_fields(self) -> PoolSource:
        for ours in self.fields:
            if ours not in FIELDS:
                raise ValueError(f"field map: no field {ours!r}{nearest(ours, FIELDS)}")
        if "\n" in (self.root or "") or any("\n" in root or "://" in root for root in self.trusted_roots):
            raise ValueError("root and trusted_roots: names on one line, and those that are trusted folders on a disk")
        return self


MEDIA_NO_MATTER = {"threads", "decode_seconds", "download_seconds"}
"""Settings of media that say how long the work may take, and change nothing of what comes out."""


class MediaSettings(Carrying, Settings):
    """How media are opened, and the bounds that protect a run from hostile files."""

    max_pixels: int = Field(100_000_000, gt=0, description="an image with more is refused before it is decoded")
    max_side: int = Field(65_535, gt=0, description="pixels; an image with a longer side is refused, too")
    max_bytes: int = Field(2_000_000_000, gt=0, description="a larger file is refused")
    max_text_chars: int = Field(200_000, gt=0, description="a longer text or code is quarantined")
    max_seconds: float = Field(3600, gt=0, description="only this much of a recording is decoded")
    sample_rate: int = Field(16_000, ge=8_000, le=192_000, description="Hz that audio is decoded to, mono")
    video_frames: int = Field(8, ge=1, le=512, description="frames sampled evenly over the kept part of a video")
    video_side: int = Field(256, ge=16, le=4096, description="longer side in pixels that frames are scaled down to")
    allow_urls: bool = Field(False, description="open references that are fsspec URLs")
    threads: int = Field(2, ge=1, le=64, description="threads that decode ahead of the models")
    decode_seconds: float = Field(60, gt=0, description="of CPU that decoding one file may take")
    download_seconds: float = Field(300, gt=0, description="that fetching one file may take")

    def identity(self) -> dict[str, Any]:
        """Return what a decoded file depends on (for fingerprints)."""
        return self.model_dump(mode="json", exclude=MEDIA_NO_MATTER)


def _pools(value: Any) -> Any:
    return [{"path": str(item)} if isinstance(item, (str, Path)) else item for item in listed(value)]


Pools = Annotated[tuple[PoolSource, ...], BeforeValidator(_pools)]
"""One pool or several; a plain path is a pool."""

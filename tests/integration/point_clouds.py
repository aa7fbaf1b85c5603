"""A modality of a user's own, found by import path: point clouds as ``.npy`` of n x 3, and an encoder of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.preview import Preview, image_preview
from nemo_mm_rank.media.segment import Span, content_key
from nemo_mm_rank.modality import Medium
from nemo_mm_rank.models.base import FeatureEncoder

MAX_POINTS = 100_000


@dataclass(frozen=True)
class Cloud:
    """Points in space: ``(n, 3)`` float32."""

    key: str
    points: npt.NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return int(self.points.nbytes)


class PointCloud(Medium):
    """Arrays as NumPy writes them, of three finite numbers a point."""

    extensions = "npy"

    def decode(self, file: IO[bytes], settings: MediaSettings, spans: Sequence[Span] | None = None) -> Cloud:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise MediaError(f"is an .npy file of version {version[0]}.{version[1]}, not 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind != "f" or len(shape) != 2 or shape[1] != 3:
            raise MediaError(f"holds {dtype} of shape {shape}, not n x 3 numbers with a point")
        if not 0 < shape[0] <= MAX_POINTS:
            raise MediaError(f"has {shape[0]:,} points, not 1 to {MAX_POINTS:,}")
        file.seek(0)
        points = np.load(file, allow_pickle=False).astype(np.float32)
        if not np.isfinite(points).all():
            raise MediaError("has points that are not finite")
        return Cloud(content_key(file, self.name), points)

    def preview(self, segment: Cloud, spans: Sequence[Span] | None) -> Preview:
        flat = segment.points[:, :2] - segment.points[:, :2].min(axis=0)
        places = np.minimum(flat / max(float(flat.max()), 1e-6) * 64, 63).astype(int)
        pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
        pixels[63 - places[:, 1], places[:, 0]] = 0
        return image_preview(PILImage.fromarray(pixels))


class PlainCloud(PointCloud):
    """Writes no preview of its own."""

    preview = Medium.preview


class NoDecoder(Medium):
    """Forgets what has to be written."""


class Spread(FeatureEncoder):
    """Embeds clouds by how far they spread along their principal axes."""

    name = "spread"
    modalities = frozenset({"point-cloud"})
    dim = 4

    def _features(self, item: Any) -> npt.NDArray[np.float64]:
        assert isinstance(item, Cloud)
        spread = np.linalg.svd(item.points - item.points.mean(axis=0), compute_uv=False).astype(np.float64)
        return np.append(spread / max(spread[0], 1e-9), 0.1)

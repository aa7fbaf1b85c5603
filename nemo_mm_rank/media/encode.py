"""Audio as a WAV file and pixels as a PNG file, for what takes nothing else."""

from __future__ import annotations

import io
import wave

import numpy as np
import numpy.typing as npt
from PIL import Image

from nemo_mm_rank.errors import MediaError


def wav(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """Return 16-bit PCM.

    Args:
        samples: ``(n,)``, or ``(channels, n)``; what lies outside [-1, 1] is clipped.
        rate: samples per second.

    Raises:
        MediaError: no such array, numbers that are none, or no rate.
    """
    if samples.ndim not in (1, 2) or not samples.size or not np.isfinite(samples).all():
        raise MediaError(f"samples in shape {samples.shape}, or not all of them finite")
    if not 1_000 <= rate <= 1_000_000:
        raise MediaError(f"a sample rate of {rate} Hz")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(np.clip(samples.T, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def png(pixels: npt.NDArray[np.generic]) -> bytes:
    """Return an image without loss.

    Args:
        pixels: ``(height, width)``, or ``(height, width, 1, 3 or 4)`` for grey, RGB and RGBA; numbers from 0 to 255.

    Raises:
        MediaError: no such array.
    """
    shape = pixels.shape
    if pixels.dtype.kind not in "uif" or not pixels.size or not (len(shape) == 2 or shape[2:] in ((1,), (3,), (4,))):
        raise MediaError(f"an array of {pixels.dtype} in shape {shape}")
    if pixels.dtype.kind == "f" and (not np.isfinite(pixels).all() or 0 < pixels.max() <= 1):
        raise MediaError("numbers that are none, or from 0 to 1, not to 255")
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

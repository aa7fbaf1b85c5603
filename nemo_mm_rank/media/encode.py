"""Audio as a WAV file and pixels as a PNG file, for what takes nothing else."""

from __future__ import annotations

import io
import wave

import numpy as np
import numpy.typing as npt
from PIL import Image

from nemo_mm_rank.errors import MediaError


def wav(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """Return mono 16-bit PCM.

    Args:
        samples: ``(n,)``; what lies outside [-1, 1] is clipped.
        rate: samples per second.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
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
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.nan_to_num(pixels), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[2:] == (1,) else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

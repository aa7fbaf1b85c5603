"""Small real recordings and pictures, written as tests need them: sound, damaged and just odd."""

from __future__ import annotations

import struct
import wave
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt


def level(index: int) -> int:
    """Brightness that stands for the frame of this number: far enough apart to survive lossy coding."""
    return 16 + 4 * (index % 55)


def write_video(
    folder: Path,
    name: str = "clip.mp4",
    count: int = 50,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    pictures: npt.NDArray[np.uint8] | None = None,
) -> Path:
    """Write a video, frame i of brightness ``16 + 4 * (i % 55)`` or as in ``pictures``, shown at ``i / rate``."""
    path = folder / name
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 8_000_000
        stream.codec_context.time_base = Fraction(1, rate)
        out.start_encoding()
        for index in range(count):
            array = np.full((size[1], size[0], 3), level(index), np.uint8) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = ticks[index] if ticks is not None else index
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        if count:
            out.mux(stream.encode(None))
    return path


def write_wav(
    folder: Path, samples: npt.NDArray[np.int16] | npt.NDArray[np.uint8], rate: int = 16_000, name: str = "a.wav"
) -> Path:
    """Write PCM samples ``(n,)`` or ``(n, channels)`` (int16, or uint8 for 8 bits)."""
    path = folder / name
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(samples.dtype.itemsize)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return path


def png_header(width: int, height: int) -> bytes:
    """Return how a PNG of this size begins: all of it but the pixels."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))


def boxes(content: bytes, name: bytes) -> list[int]:
    """Return where the bodies of MP4 boxes of this name begin."""
    found, place = [], content.find(name)
    while place >= 0:
        found.append(place + 4)
        place = content.find(name, place + 4)
    return found

"""Small real recordings, written as the tests need them."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

WriteVideo = Callable[..., Path]
WriteSound = Callable[..., Path]


def level(index: int) -> int:
    """Brightness that stands for the frame of this number: far enough apart to survive lossy coding."""
    return 16 + 4 * (index % 55)


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Return a function that writes a video, frame i of brightness ``16 + 4 * (i % 55)``, shown at ``i / rate``."""

    def write(
        name: str = "clip.mp4",
        count: int = 50,
        rate: int = 10,
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        ticks: Sequence[int] | None = None,
        options: dict[str, str] | None = None,
        pictures: npt.NDArray[np.uint8] | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream(codec, rate=rate, options=options or {})
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.bit_rate = 8_000_000
            stream.codec_context.time_base = Fraction(1, rate)
            for index in range(count):
                if pictures is None:
                    array = np.full((size[1], size[0], 3), level(index), dtype=np.uint8)
                else:
                    array = pictures[index]
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts = ticks[index] if ticks is not None else index
                frame.time_base = Fraction(1, rate)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def write_wav(tmp_path: Path) -> WriteSound:
    """Return a function that writes PCM samples ``(n,)`` or ``(n, channels)`` (int16, or uint8 for 8 bits)."""

    def write(samples: npt.NDArray[np.int16] | npt.NDArray[np.uint8], rate: int = 16_000, name: str = "a.wav") -> Path:
        path = tmp_path / name
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
            out.setsampwidth(samples.dtype.itemsize)
            out.setframerate(rate)
            out.writeframes(samples.tobytes())
        return path

    return write


@pytest.fixture
def indices() -> Callable[[npt.NDArray[np.uint8]], list[int]]:
    """Return a function that reads the numbers of frames back from their brightness."""

    def read(frames: npt.NDArray[np.uint8]) -> list[int]:
        means = frames.reshape(len(frames), -1).mean(axis=1)
        return [int(number) for number in np.rint((means - 16) / 4)]

    return read

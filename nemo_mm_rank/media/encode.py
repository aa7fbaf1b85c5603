"""Sound as a WAV file, for what takes nothing else."""

from __future__ import annotations

import io
import wave

import numpy as np
import numpy.typing as npt


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

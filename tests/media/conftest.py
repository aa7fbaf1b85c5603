"""Small real recordings, written into the test's own folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests import media_files

WriteVideo = Callable[..., Path]
WriteSound = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Return `media_files.write_video` for the test's own folder."""
    return partial(media_files.write_video, tmp_path)


@pytest.fixture
def write_wav(tmp_path: Path) -> WriteSound:
    """Return `media_files.write_wav` for the test's own folder."""
    return partial(media_files.write_wav, tmp_path)


@pytest.fixture
def indices() -> Callable[[npt.NDArray[np.uint8]], list[int]]:
    """Return a function that reads the numbers of frames back from their brightness."""

    def read(frames: npt.NDArray[np.uint8]) -> list[int]:
        means = frames.reshape(len(frames), -1).mean(axis=1)
        return [int(number) for number in np.rint((means - 16) / 4)]

    return read

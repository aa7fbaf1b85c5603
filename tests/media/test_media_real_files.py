"""Recordings as cameras and the web make them, against decoding every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Video

POOL = Path(__file__).parents[3] / "shared" / "data" / "real_pool"

pytestmark = pytest.mark.skipif(not POOL.is_dir(), reason="the folder of real pairs is not beside the project")

VIDEOS = [
    "video/misc/Video-Captioning_j2Dhf-xFUxU_13_20.avi",
    "video/misc/Video-Captioning_WTf5EgVY5uU_124_128.avi",
    "video/misc/Video-LLaMA_boat.mp4",
    "video/audiocaps/YS5uKWoB6g_30.mp4",
]


@pytest.mark.parametrize("ref", VIDEOS)
def test_the_frames_shown_at_the_middles_of_slices(ref: str) -> None:
    settings = MediaSettings(video_side=64)
    videos = [Opener(settings, str(POOL), frames=count).open(ref, "video") for count in (5, 29)]
    with av.open(str(POOL / ref)) as container:
        stream: Any = container.streams.video[0]
        frames: list[Any] = sorted(container.decode(stream), key=lambda frame: frame.pts or 0)
        starts = np.array([float((frame.pts - frames[0].pts) * stream.time_base) for frame in frames])
    for video in videos:
        assert isinstance(video, Video)
        count, height, width, _ = video.frames.shape
        middles = (np.arange(count) + 0.5) / count * video.duration
        shown = np.searchsorted(starts, middles + 1e-6, side="right") - 1
        np.testing.assert_allclose(video.times, starts[shown], atol=1e-6)
        for number, pixels in zip(shown, video.frames, strict=True):
            expected = frames[number].to_ndarray(format="rgb24", width=width, height=height)
            np.testing.assert_array_equal(pixels, expected)

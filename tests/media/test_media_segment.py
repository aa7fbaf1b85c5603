from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PILImage

from nemo_mm_rank.media.segment import Audio, Image, Span, Video

PICTURE = Image("picture", PILImage.new("RGB", (8, 6)))
SOUND = Audio("sound", np.zeros(100, dtype=np.float32), 10, start=2.0)
SCENE = Video("scene", np.zeros((4, 2, 2, 3), dtype=np.uint8), np.arange(0.5, 4.0), 4.0)


@pytest.mark.parametrize(
    ("segment", "everything", "something"),
    [(PICTURE, [-1, 0, 20, 6], [0, 0, 8, 5]), (SOUND, [0, 12], [2, 11.9]), (SCENE, [0.5, 3.5], [0, 3])],
)
def test_the_part_that_is_all_of_a_segment_is_the_segment_itself(
    segment: Image | Audio | Video, everything: Span, something: Span
) -> None:
    assert segment.part(everything) is segment
    assert segment.part(something).key != segment.key

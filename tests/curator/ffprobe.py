"""What Curator asks of FFmpeg's `ffprobe`, for machines that have PyAV alone: `ffprobe ... -of json FILE`."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import av


def streams(file: str) -> dict[str, object]:
    """Return what `extract_video_metadata` reads of a video."""
    with av.open(file) as container:
        video = container.streams.video[0]
        rate = video.average_rate or Fraction(0)
        told = {
            "codec_type": "video",
            "codec_name": video.codec_context.name,
            "width": video.codec_context.width,
            "height": video.codec_context.height,
            "pix_fmt": video.codec_context.pix_fmt,
            "avg_frame_rate": f"{rate.numerator}/{rate.denominator}",
        }
        seconds = float(container.duration or 0) / 1e6
    return {"streams": [told], "format": {"duration": f"{seconds:.6f}"}}


if __name__ == "__main__":
    print(json.dumps(streams(sys.argv[-1])))

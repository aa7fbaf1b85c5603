"""A part of a video as a file of its own: decoded, cut to the frame and the sample, and encoded again (H.264, AAC)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from typing import IO, Any

import av
import av.error
import numpy as np

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.audio import decode_audio, to_samples
from nemo_mm_rank.media.container import frames, open_stream, packets
from nemo_mm_rank.media.limits import cpu_limit
from nemo_mm_rank.media.segment import Span
from nemo_mm_rank.media.spans import merge

_CODEC, _SOUND = "libx264", "aac"
_TICKS = 90_000
_RATE = 48_000


def film(file: IO[bytes], windows: Sequence[Span], settings: MediaSettings) -> IO[bytes]:
    """Return what windows keep of a video as MP4, end to end, with its sound where it has any.

    A frame belongs to the window in which it begins to be shown. Pixels are those of the file, without a side's odd
    last one; sound is mono.

    Args:
        file: seekable.
        windows: ``[start, end]`` in seconds from the first frame.
        settings: bounds of what is decoded.

    Raises:
        MediaError: nothing decodes or lies within the windows, or the library cannot encode.
    """
    kept = merge(windows)
    target = io.BytesIO()
    with cpu_limit(settings.decode_seconds):
        try:
            with av.open(target, "w", format="mp4") as out:
                _film(file, kept, settings, out)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"cannot be cut: encoding it failed with {' '.join(str(error).split())}") from error
    target.seek(0)
    return target


def _film(file: IO[bytes], windows: Sequence[tuple[float, float]], settings: MediaSettings, out: Any) -> None:
    try:
        sound = decode_audio(file, _RATE, to_samples(windows, _RATE, settings.max_seconds))
    except MediaError:  # a film without sound
        sound = None
    with open_stream(file, "video", settings.max_pixels) as (container, stream):
        context = stream.codec_context
        if context.width * context.height > settings.max_pixels:
            raise MediaError(f"has frames of {context.width} x {context.height} pixels")
        picture = out.add_stream(_CODEC, rate=stream.average_rate or Fraction(25), options={"crf": "18"})
        picture.width, picture.height = context.width // 2 * 2, context.height // 2 * 2
        picture.pix_fmt, picture.time_base = "yuv420p", Fraction(1, _TICKS)
        picture.codec_context.time_base = picture.time_base
        picture.codec_context.thread_count = 1
        heard = None if sound is None else out.add_stream(_SOUND, rate=_RATE, layout="mono")
        first: float | None = None
        last = -1
        starts = np.cumsum([0.0, *(end - start for start, end in windows)])
        for packet in chain(packets(container, stream), [None]):
            for frame in frames(stream, packet):
                shown = frame.pts if frame.pts is not None else frame.dts
                if shown is None:
                    raise MediaError("has frames that do not say when they are shown")
                seconds = float(shown * stream.time_base)
                first = seconds if first is None else first
                at = seconds - first
                number = next((n for n, (start, end) in enumerate(windows) if start <= at < end), None)
                if number is None:
                    continue
                tick = max(last + 1, round((starts[number] + at - windows[number][0]) * _TICKS))
                last = tick
                scaled = frame.reformat(picture.width, picture.height, "yuv420p")
                scaled.pts, scaled.time_base, scaled.pict_type = tick, picture.time_base, 0
                out.mux(picture.encode(scaled))
            if packet is None or packet.dts is None or first is None:
                continue
            if float(packet.dts * stream.time_base) - first > windows[-1][1] + 1:
                break
        if last < 0:
            raise MediaError("has no frame within the windows that are kept of it")
        out.mux(picture.encode(None))
    if heard is not None and sound is not None:
        for start in range(0, len(sound), 1024):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = _RATE, start, Fraction(1, _RATE)
            out.mux(heard.encode(block))
        out.mux(heard.encode(None))

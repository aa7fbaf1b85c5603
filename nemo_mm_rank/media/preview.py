"""Media as a page can carry them: small, bounded copies in ``data:`` URIs, made by the project's own decoders."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from io import BytesIO
from typing import IO, Any, TypedDict

import av
import numpy as np
from PIL import Image as PILImage

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import ConfigError, MediaError, PairError
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Audio, Span, Video
from nemo_mm_rank.modality import of

SIDE = 240
"""Pixels of the longer side of a thumbnail and of a video."""
SECONDS = 8.0
"""Length of what is played of a recording."""
FRAMES_PER_SECOND = 8
RATE = 24_000
"""Samples per second of what is heard."""
MAX_BYTES = 300_000
"""A copy that comes out larger (noise, say) is left out."""

_LEAD_IN = 0.5  # seconds played before the first kept part

_SOUND = (("libmp3lame", "mp3", "audio/mpeg", 40_000), ("libopus", "ogg", "audio/ogg", 24_000))
_PICTURES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("libx264", "mp4", "video/mp4", {"crf": "30", "preset": "veryfast", "profile": "baseline"}),
    ("libvpx", "webm", "video/webm", {"crf": "36", "b": "200k", "deadline": "good", "cpu-used": "4"}),
)
"""Codings that browsers play, the most widely understood first: encoder, container, type, and its settings."""


class Preview(TypedDict, total=False):
    """What a page shows of one file.

    ``kind`` (image, audio, video) and ``src``, the ``data:`` URI; of an image, ``boxes`` are the kept parts as
    ``[x, y, w, h]`` shares of its sides; of a recording, ``start`` and ``end`` are the seconds that are played, and
    ``windows`` the kept parts in seconds. Or ``missing``, why there is nothing to see.
    """

    kind: str
    src: str
    boxes: list[list[float]]
    start: float
    end: float
    windows: list[list[float]]
    missing: str


def copy(
    ref: str, modality: str, spans: Sequence[Span] | None, root: str, content: bytes | None, settings: MediaSettings
) -> Preview:
    """Return a small copy of one file, its kept parts marked.

    An image is scaled down; of a recording a few seconds are taken, from shortly before the first kept part, a video
    without its audio. The same file gives the same bytes. What cannot be opened says why.

    Args:
        ref: as the pair names it.
        modality: one that comes as files.
        spans: what SNS kept of it; None is all.
        root: what ``ref`` is below.
        content: the bytes themselves, where the row has them.
        settings: bounds, as the run had them.
    """
    small = settings.model_copy(
        update={"sample_rate": RATE, "video_frames": round(SECONDS * FRAMES_PER_SECOND), "video_side": SIDE}
    )
    try:
        medium = of(modality)
        segment = Opener(small).open(ref, modality, medium.shown(spans), root, content)
        return _checked(medium.preview(segment, spans))
    except (PairError, ConfigError) as error:
        return {"missing": str(error)}


def _checked(found: Preview) -> Preview:
    if len(found.get("src", "")) > MAX_BYTES * 4 // 3:
        return {"missing": f"not shown, because a copy of it would take more than {MAX_BYTES:,} bytes of this page"}
    return found


def image_preview(pixels: PILImage.Image, spans: Sequence[Span] | None = None) -> Preview:
    """Return an image scaled down, as a JPEG.

    Args:
        pixels: RGB.
        spans: boxes that were kept of it, to be marked; None is all.
    """
    width, height = pixels.size
    thumbnail = pixels.copy()
    thumbnail.thumbnail((SIDE, SIDE))
    file = BytesIO()
    thumbnail.save(file, "JPEG", quality=72, optimize=True)
    found: Preview = {"kind": "image", "src": _uri("image/jpeg", file)}
    if spans:
        sides = (width, height, width, height)
        found["boxes"] = [[round(edge / side, 4) for edge, side in zip(box, sides, strict=True)] for box in spans]
    return found


def played(spans: Sequence[Span] | None) -> list[list[float]]:
    """Return the window of a recording that is played: from shortly before what was kept, where that ends late."""
    start = 0.0
    if spans:
        first, last = min(span[0] for span in spans), max(span[1] for span in spans)
        start = max(0.0, first - _LEAD_IN) if last > SECONDS else 0.0
    return [[start, start + SECONDS]]


def audio_preview(audio: Audio, spans: Sequence[Span] | None) -> Preview:
    """Return the played window of a recording, in a coding that browsers know."""
    codec, container, kind, rate = _SOUND[_first([coding[0] for coding in _SOUND])]
    file = BytesIO()
    with _written(file, container) as out:
        stream: Any = out.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = rate
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, "mono", RATE, context.frame_size)
        frame = av.AudioFrame.from_ndarray(audio.samples[None], format="flt", layout="mono")
        frame.sample_rate = audio.rate
        _mux(out, stream, [*resampler.resample(frame), *resampler.resample(None)])
    return _timed({"kind": "audio", "src": _uri(kind, file), "end": audio.duration}, audio.duration, spans)


def video_preview(video: Video, spans: Sequence[Span] | None) -> Preview:
    """Return the played window of a video without its audio, in a coding that browsers know."""
    codec, container, kind, options = _PICTURES[_first([coding[0] for coding in _PICTURES])]
    height, width = (side - side % 2 for side in video.frames.shape[1:3])  # both must be even
    if not height or not width:
        raise MediaError("its frames are a single line")
    file = BytesIO()
    with _written(file, container) as out:
        stream: Any = out.add_stream(codec, rate=1000, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # or else the bytes may differ
        stream.codec_context.time_base = Fraction(1, 1000)
        out.start_encoding()
        _mux(out, stream, _frames(video, height, width))
    seconds = min(SECONDS, video.duration - played(spans)[0][0])
    return _timed({"kind": "video", "src": _uri(kind, file)}, seconds, spans)


def _timed(found: Preview, seconds: float, spans: Sequence[Span] | None) -> Preview:
    start = played(spans)[0][0]
    found |= {"start": start, "end": round(start + seconds, 2)}
    if spans:
        found["windows"] = [[round(float(edge), 2) for edge in span] for span in spans]
    return found


def _frames(video: Video, height: int, width: int) -> Iterable[Any]:
    """Yield frames at their times from the first; a short recording has its frames several times, shown once."""
    ticks = np.round((video.times - video.times[0]) * 1000).astype(int)
    for number in np.unique(ticks, return_index=True)[1].tolist():
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(video.frames[number, :height, :width]), format="rgb24")
        frame.pts, frame.time_base = int(ticks[number]), Fraction(1, 1000)
        yield frame


def _written(file: IO[bytes], container: str) -> Any:
    # Without bitexact, containers carry random serials and the library's version.
    return av.open(file, "w", format=container, options={"fflags": "+bitexact"})


def _mux(out: Any, stream: Any, made: Iterable[Any]) -> None:
    for frame in made:
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _first(codecs: Sequence[str]) -> int:
    """Return the place of the first coding that this build of FFmpeg can write."""
    for place, codec in enumerate(codecs):
        if _available(codec):
            return place
    raise MediaError(f"this installation of PyAV can write neither {' nor '.join(codecs)}")


@cache
def _available(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _uri(kind: str, file: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

"""Video through PyAV: a few frames at even distances, chosen by the packets' own times.

A first pass reads the packets without decoding them; their times and key frames, not the header, say how long the
recording is and which frames to take. A second pass decodes no more than it must: from the last key frame before
each chosen frame up to it. Only the chosen frames are kept, scaled down at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from nemo_mm_rank.arrays import Pixels
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.container import frames, open_stream, packets
from nemo_mm_rank.media.spans import clip, slice_middles


@dataclass(frozen=True)
class Timeline:
    """When the frames of a stream are shown, by packet in the file's order.

    Attributes:
        ticks: ``(n,)`` int64, the first frame shown being 0.
        key: ``(n,)`` bool, whether decoding can start there.
        shown: ``(n,)`` bool, false for packets that are only there to be decoded from.
        second: ticks per second.
        length: ticks from the first frame to the end of the last.
        first: what the file calls tick 0.
    """

    ticks: npt.NDArray[np.int64]
    key: npt.NDArray[np.bool_]
    shown: npt.NDArray[np.bool_]
    second: float
    length: int
    first: int


def decode_video(
    file: IO[bytes],
    count: int,
    side: int,
    windows: Sequence[tuple[float, float]] | None,
    max_seconds: float,
    max_pixels: int,
    max_side: int = 65_535,
) -> tuple[Pixels, npt.NDArray[np.float64], float]:
    """Decode the frames shown in the middle of ``count`` equal slices of the kept windows (None: of all of it).

    Frames come upright (quarter turns and mirrors as the file says), with square pixels, scaled down to ``side``
    pixels on the longer side. A recording that is cut short or damaged gives what decodes of it: in place of a frame
    that does not, the last one before it that was decoded. Where there are fewer frames than slices they come again.

    Returns:
        ``(count, h, w, 3)`` uint8 RGB, ``(count,)`` seconds from the first frame, and the duration in seconds.

    Raises:
        MediaError: no video, none that decodes, too many pixels, or nothing within the windows.
    """
    with open_stream(file, "video", max_pixels) as (container, stream):
        _check_pixels(stream.codec_context, max_pixels, max_side)
        timeline = _read_timeline(container, stream, max_seconds)
    duration = min(timeline.length / timeline.second, max_seconds)
    kept = clip(windows if windows is not None else [(0.0, duration)], duration)
    shown = np.sort(timeline.ticks[timeline.shown])
    # A thousandth of a tick more: rounding must not turn a moment on a frame's start into one before it.
    middles = slice_middles(kept, count) * timeline.second + 1e-3
    wanted = shown[np.maximum(np.searchsorted(shown, middles, side="right") - 1, 0)]
    for sparing in (True, False):
        with open_stream(file, "video", max_pixels) as (container, stream):
            taken = _decode_at(container, stream, timeline, wanted.tolist(), side, sparing)
        ticks = np.array([tick for tick, _ in taken], dtype=np.float64)
        if np.array_equal(ticks, wanted):  # or else the file is not what its packets say
            break
    if not taken:
        raise MediaError("contains no frame that can be decoded")
    return np.stack([pixels for _, pixels in taken]), ticks / timeline.second, duration


def _check_pixels(context: Any, limit: int, max_side: int) -> None:
    frames_of = f"has frames of {context.width} x {context.height} pixels"
    if context.width * context.height > limit:
        raise MediaError(f"{frames_of}, more than the {limit:,} allowed")
    if max(context.width, context.height) > max_side:
        raise MediaError(f"{frames_of}, a side longer than the {max_side:,} allowed")


def _read_timeline(container: Any, stream: Any, max_seconds: float) -> Timeline:
    second = float(1 / stream.time_base)
    ticks, key, shown = array("q"), bytearray(), bytearray()
    length_of_last = 0
    for packet in packets(container, stream):
        tick = packet.pts if packet.pts is not None else packet.dts
        if tick is None:  # never seen with the containers above; the decoder gets it with its neighbour's time
            tick = ticks[-1] if ticks else 0
        ticks.append(tick)
        key.append(packet.is_keyframe)
        shown.append(not packet.is_discard)
        length_of_last = packet.duration or 0
        # Packets come in the order of decoding, and no frame is shown before it is decoded.
        if packet.dts is not None and packet.dts - ticks[0] > (max_seconds + 1) * second:
            break
    if not any(shown):
        raise MediaError("contains no frames")
    times = np.array(ticks)
    visible = np.frombuffer(shown, dtype=np.bool_)
    ordered = np.sort(times[visible])
    gaps = np.diff(ordered)
    # How long the last frame stays is what the header says: believed up to the longest stay that was seen.
    longest = int(gaps.max()) if len(gaps) else int(second / float(stream.guessed_rate or 25))
    last = max(1, min(length_of_last or longest, longest))
    return Timeline(
        ticks=times - ordered[0],
        key=np.frombuffer(key, dtype=np.bool_),
        shown=visible,
        second=second,
        length=int(ordered[-1] - ordered[0]) + last,
        first=int(ordered[0]),
    )


def _decode_at(
    container: Any, stream: Any, timeline: Timeline, wanted: list[int], side: int, sparing: bool
) -> list[tuple[int, Pixels]]:
    """Decode the frames shown at the ``wanted`` ticks (ascending, some perhaps equal), with the ticks that they have.

    ``sparing`` leaves out frames that are neither wanted nor needed for others: exact in H.264, where it saves a
    third of the time (in HEVC a frame can be marked so and yet be needed).
    """
    sparing = sparing and stream.codec_context.name == "h264"
    chosen = set(wanted)
    picture = _Picture(stream, side)
    starts = [_start(timeline, tick) for tick in wanted]
    taken: list[tuple[int, Pixels]] = []
    before: Any = None  # the last frame that came out of the decoder

    def tick_of(frame: Any) -> int:
        shown = frame.pts if frame.pts is not None else frame.dts
        if shown is None:
            raise MediaError("has frames that do not say when they are shown")
        return int(shown) - timeline.first

    def take(frame: Any) -> None:
        tick = tick_of(frame)
        taken.append((tick, taken[-1][1] if taken and taken[-1][0] == tick else picture(frame)))

    def look(decoded: list[Any]) -> None:
        nonlocal before
        for frame in decoded:
            tick = tick_of(frame)
            while len(taken) < len(wanted) and tick >= wanted[len(taken)]:
                take(frame if before is None or tick == wanted[len(taken)] else before)
            before = frame

    resume = starts[0]
    for number, packet in zip(range(len(timeline.ticks)), packets(container, stream), strict=False):
        if number < resume:
            continue
        if sparing:
            stream.codec_context.skip_frame = "DEFAULT" if int(timeline.ticks[number]) in chosen else "NONREF"
        look(frames(stream, packet))
        if len(taken) == len(wanted):
            break
        if starts[len(taken)] > number + 1:
            resume = starts[len(taken)]
            stream.codec_context.flush_buffers()
    else:
        look(frames(stream, None))
    while before is not None and len(taken) < len(wanted):
        take(before)
    return taken


def _start(timeline: Timeline, tick: int) -> int:
    """Return the number of the packet to decode from for the frame at ``tick``: a key frame shown no later."""
    number = int(np.argmax(timeline.ticks == tick))
    keys = np.flatnonzero(timeline.key[: number + 1] & (timeline.ticks[: number + 1] <= tick))
    return int(keys[-1]) if len(keys) else 0


class _Picture:
    """Turns frames of one stream into RGB arrays of one size, which the first of them sets."""

    def __init__(self, stream: Any, side: int) -> None:
        self.aspect = float(stream.sample_aspect_ratio or 1)
        self.side = side
        self.size: tuple[int, int] | None = None
        self.matrix: npt.NDArray[np.int32] | None = None
        self.scaler = VideoReformatter()

    def __call__(self, frame: Any) -> Pixels:
        if self.size is None:
            width, height = frame.width * self.aspect, float(frame.height)
            scale = min(1.0, self.side / max(width, height))
            self.size = max(1, round(width * scale)), max(1, round(height * scale))
            self.matrix = _display_matrix(frame)
        scaled = self.scaler.reformat(frame, *self.size, format="rgb24", threads=1)
        return np.ascontiguousarray(_upright(np.asarray(scaled.to_ndarray(), np.uint8), self.matrix))


def _display_matrix(frame: Any) -> npt.NDArray[np.int32] | None:
    """Return how a frame is to be shown, ``(3, 3)`` as FFmpeg writes it: ``(x, y, 1) @ matrix``; None: as it is."""
    found = frame.side_data.get("DISPLAYMATRIX")
    return None if found is None else np.frombuffer(found, dtype=np.int32, count=9).reshape(3, 3)


def _upright(pixels: Pixels, matrix: npt.NDArray[np.int32] | None) -> Pixels:
    """Turn and mirror ``(h, w, 3)`` by the quarter turn that is nearest to a display matrix."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

"""Audio through PyAV: mono, at one rate, only the kept windows held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

import av
import numpy as np

from nemo_mm_rank.arrays import Samples
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.container import frames, open_stream, packets

_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}

_CANCELLED = 0.01
"""Share of the loudest channel's energy (-20 dB) below which a mean of channels does not represent them."""
_RATES = range(1_000, 1_000_001)
"""Hz. Outside of it a file lies: at 1 Hz, one packet would be resampled to hours of audio."""


def to_samples(windows: Sequence[tuple[float, float]] | None, rate: int, max_seconds: float) -> list[tuple[int, int]]:
    """Return windows in seconds as ranges of samples, nothing beyond ``max_seconds``; None is all up to there."""
    limit = int(max_seconds * rate)
    if windows is None:
        return [(0, limit)]
    return [(min(round(start * rate), limit), min(round(end * rate), limit)) for start, end in windows]


def decode_audio(file: IO[bytes], rate: int, ranges: Sequence[tuple[int, int]]) -> Samples:
    """Decode to mono at ``rate`` Hz and put the kept ranges of samples end to end.

    Mono is the mean of the channels or, for any second in which they cancel each other out, the loudest of them.
    The file is decoded from its start to the last range's end, so that a range holds the same samples, whatever
    else is kept. What is claimed in headers is not used. A recording that is cut short or damaged gives what
    decodes of it.

    Returns:
        ``(n,)`` float32 in [-1, 1].

    Raises:
        MediaError: no audio, nothing that decodes, nothing within the ranges, or samples that are not numbers.
    """
    kept: list[Samples] = []
    position = 0
    for block in _resampled(file, rate):
        for first, last in ranges:
            piece = block[max(0, first - position) : max(0, last - position)]
            if len(piece):
                kept.append(piece)
        position += len(block)
        if position >= ranges[-1][1]:
            break
    if not position:
        raise MediaError("holds no audio that can be decoded")
    if not kept:
        raise MediaError(f"the kept windows lie behind its end at {position / rate:.3f} s")
    samples = np.concatenate(kept)
    if not np.isfinite(samples).all():
        raise MediaError("contains samples that are not numbers")
    return np.clip(samples, -1.0, 1.0, out=samples)


def _resampled(file: IO[bytes], rate: int) -> Iterator[Samples]:
    resampler, source = None, 0
    for block, block_rate in _blocks(file):
        if resampler is None or block_rate != source:
            if resampler is not None:
                yield from map(_waveform, resampler.resample(None))
            resampler, source = av.AudioResampler("flt", "mono", rate), block_rate
        frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
        frame.sample_rate = block_rate
        yield from map(_waveform, resampler.resample(frame))
    if resampler is not None:
        yield from map(_waveform, resampler.resample(None))


def _waveform(frame: Any) -> Samples:
    return np.asarray(frame.to_ndarray()[0], dtype=np.float32)


def _blocks(file: IO[bytes]) -> Iterator[tuple[Samples, int]]:
    """Yield mono at the source's own rate, about a second at a time: frames are too small to handle one by one."""
    with open_stream(file, "audio") as (container, stream):
        waiting: list[Samples] = []
        length, rate = 0, 0
        for frame in _frames(container, stream):
            channels = _channels(frame)
            if waiting and (length >= rate or frame.sample_rate != rate or len(channels) != len(waiting[0])):
                yield _mono(np.concatenate(waiting, axis=1)), rate
                waiting, length = [], 0
            rate = frame.sample_rate
            if rate not in _RATES:
                raise MediaError(f"claims a sample rate of {rate} Hz")
            waiting.append(channels)
            length += frame.samples
        if waiting:
            yield _mono(np.concatenate(waiting, axis=1)), rate


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in packets(container, stream):
        yield from frames(stream, packet)
    yield from frames(stream, None)


def _channels(frame: Any) -> Samples:
    """Return ``(channels, n)`` float32."""
    kind = frame.format.name.removesuffix("p")
    if kind == "s64":  # which PyAV makes no array of
        count = frame.samples * (1 if frame.format.is_planar else frame.layout.nb_channels)
        values = np.stack([np.frombuffer(plane, np.int64, count) for plane in frame.planes])
    else:
        values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number any more is refused in the end
        channels: Samples = np.array(values, dtype=np.float32, order="C")
    if kind == "u8":
        channels -= 128
    channels /= _FULL_SCALE[kind]
    return channels


def _mono(channels: Samples) -> Samples:
    """Return the mean of ``(channels, n)``, or the loudest where that has lost nearly all of its energy."""
    mono: Samples = channels.mean(axis=0)
    if len(channels) > 1:
        energy = np.square(channels, dtype=np.float64).mean(axis=1)
        if np.square(mono, dtype=np.float64).mean() < _CANCELLED * energy.max():
            return np.asarray(channels[energy.argmax()])
    return mono

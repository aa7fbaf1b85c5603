"""References to a part of a recording: ``talk.wav#t=12.5,30``, as media fragments are written (W3C)."""

from __future__ import annotations

import re

from nemo_mm_rank.media.segment import Span

_WINDOW = re.compile(r"(?s)(.+)#t=([0-9]{1,9}(?:\.[0-9]{1,9})?),([0-9]{1,9}(?:\.[0-9]{1,9})?)?")
_NO_END = 1e6


def without_window(reference: str) -> str:
    """Return a reference without the window that it may name.

    >>> without_window("talk.wav#t=12.5,30"), without_window("talk.wav")
    ('talk.wav', 'talk.wav')
    """
    match = _WINDOW.fullmatch(reference) if "#t=" in reference else None
    return match[1] if match else reference


def window_of(reference: str) -> list[Span] | None:
    """Return the one window that a reference names, in seconds; None where it is for all of a recording.

    >>> window_of("talk.wav#t=12.5,30"), window_of("talk.wav")
    ([[12.5, 30.0]], None)
    """
    match = _WINDOW.fullmatch(reference) if "#t=" in reference else None
    return [[float(match[2]), float(match[3] or _NO_END)]] if match else None


def with_window(reference: str, start: float, seconds: float | None) -> str:
    """Return a reference to ``seconds`` of a recording from ``start`` on, or to all that follows.

    >>> with_window("talk.wav", 12.5, 17.5), with_window("talk.wav", 1, None)
    ('talk.wav#t=12.5,30', 'talk.wav#t=1,')
    """
    end = "" if seconds is None else _number(start + seconds)
    return f"{reference}#t={_number(start)},{end}"


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")

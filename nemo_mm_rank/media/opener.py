"""From a reference and its kept spans to a decoded segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from av.error import FFmpegError

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.errors import MediaError, PairError, TransientError, UserError
from nemo_mm_rank.media.limits import cpu_limit
from nemo_mm_rank.media.pretenders import pretender
from nemo_mm_rank.media.segment import Segment, Span
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.window import window_of
from nemo_mm_rank.modality import is_media, media_names, of


@dataclass(frozen=True)
class Opener:
    """Opens media references one by one; cheap to make and to pickle, safe for several threads.

    Attributes:
        settings: bounds, rate and sampling.
        root: the folder or URL that references are below, where `open` is not told; default: the current folder.
        frames: frames of a video, in place of ``settings.video_frames``.
    """

    settings: MediaSettings = field(default_factory=MediaSettings)
    root: str | None = None
    frames: int | None = None

    def open(
        self,
        ref: str,
        modality: str,
        spans: Sequence[Span] | None = None,
        root: str | None = None,
        content: bytes | None = None,
    ) -> Segment:
        """Decode what ``ref`` names, or the parts of it that ``spans`` keep.

        The segment's ``key`` is a digest (BLAKE2b, 128 bits) of the content, the modality, what decoding depends on
        and the spans: equal bytes under two names have one key.

        Args:
            ref: a path below the root, an fsspec URL where the settings allow it, or with ``content`` just a name.
            modality: one that comes as files.
            spans: ``[x, y, w, h]`` boxes in pixels of the upright image, of which the union is cropped to, or
                ``[start, end]`` windows in seconds (`Medium.parts`). None keeps all, or the window that ``ref`` names.
            root: the folder or URL that ``ref`` is below.
            content: the bytes themselves.

        Raises:
            PairError: one line that names ``ref`` as it was given; transient where a network or memory is at fault.
        """
        name = without_passwords(repr(ref if len(ref) <= 200 else f"{ref[:200]}..."))
        try:
            with open_source(ref, root or self.root or ".", self.settings, content) as file:
                if not is_media(modality):
                    raise MediaError(f"cannot be opened as {modality!r}: media are {', '.join(media_names())}")
                update = {} if self.frames is None else {"video_frames": self.frames}
                kept = window_of(ref) if spans is None else spans
                return _decode(file, modality, self.settings.model_copy(update=update), kept)
        except PairError as error:
            raise type(error)(f"{name}: {error}") from error


def _decode(file: IO[bytes], modality: str, settings: MediaSettings, spans: Sequence[Span] | None) -> Segment:
    """Decode an open file; whatever a decoder raises over it is a `MediaError`."""
    try:
        with cpu_limit(settings.decode_seconds):
            return of(modality).decode(file, settings, spans)
    except UserError:
        raise
    except MemoryError as error:
        raise TransientError("there is too little memory to decode it") from error
    except Exception as error:
        file.seek(0)
        if what := pretender(file.read(64)):
            raise MediaError(f"cannot be decoded as {modality}: it is {what}") from error
        if isinstance(error, PairError):
            raise
        raise MediaError(_why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, FFmpegError):  # before OSError: some of FFmpeg's are both, and name files
        return f"cannot be decoded: {error.strerror}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    said = " ".join(str(error).split())[:200]
    return (
        f"cannot be decoded: {said}"
        if isinstance(error, ValueError)
        else (f"cannot be decoded: {type(error).__name__}{said and ': '}{said}")
    )

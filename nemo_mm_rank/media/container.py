"""Audio and video files through PyAV: which are opened at all, and their packets and frames as streams."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import av
import av.error
import av.stream
from av.container import InputContainer

from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.limits import check_cpu

CONTAINERS = (
    "3gp,aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,flv,gif,ivf,loas,m4a,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,"
    "w64,wav,webm,wv"
)
"""FFmpeg's names of what is opened. Playlists and lists of files (HLS, DASH, concat) are not among them: they could
make FFmpeg open other files and addresses."""


@contextmanager
def open_stream(
    file: IO[bytes], kind: Literal["audio", "video"], max_pixels: int | None = None
) -> Iterator[tuple[InputContainer, Any]]:
    """Open the main stream of one kind; every other stream is passed over by the demuxer.

    Decoders run on one thread each: files are what is decoded in parallel.

    Raises:
        MediaError: not a known container, or it has no such stream.
    """
    options = {"format_whitelist": CONTAINERS}
    if max_pixels is not None:
        options["max_pixels"] = str(min(max_pixels, 2**31 - 1))
    file.seek(0)
    try:
        # Bytes that are no UTF-8 in a title are no reason to refuse the recording.
        container = av.open(file, "r", options=options, metadata_errors="replace", buffer_size=1 << 17)
    except av.error.FFmpegError as error:
        # What is not on the list of formats FFmpeg calls an invalid argument.
        why = "its format is none that is read" if error.errno == errno.EINVAL else error.strerror
        raise MediaError(f"cannot be opened as {kind}: {why}") from error
    with container:
        stream = container.streams.best(kind)
        # A cover image in a song is stored as a video stream.
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise MediaError(f"has no {kind} stream")
        if stream.codec_context is None:
            raise MediaError(f"has {kind} in a coding that is not known")
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        stream.codec_context.thread_count = 1
        stream.codec_context.options = options
        yield container, stream


MAX_PACKETS = 4_000_000
"""Of a stream. An hour of audio in the shortest packets has 1.5 million."""
MAX_SCANS = 100
"""Of a frame in Motion JPEG, as of an image (`media.image`)."""


def packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yield the stream's packets up to the file's end, or to where the file is cut short.

    Empty packets (dropped frames in AVI) are left out: a decoder takes one for the end.

    Raises:
        MediaError: there are too many, one would take too long, or time is up.
    """
    jpeg = stream.codec_context.name == "mjpeg"
    try:
        for number, packet in enumerate(container.demux(stream)):
            check_cpu()
            if number >= MAX_PACKETS:
                raise MediaError(f"has more than {MAX_PACKETS:,} packets")
            if jpeg and bytes(packet).count(b"\xff\xda") > MAX_SCANS:
                raise MediaError(f"has a frame of more than {MAX_SCANS} JPEG scans, which no image needs")
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        return  # what came before is kept; that nothing came at all is for the caller to refuse


def frames(stream: Any, packet: Any | None) -> list[Any]:
    """Decode one packet (None: what the decoder still holds). A damaged packet gives no frames."""
    check_cpu()
    try:
        return list(stream.codec_context.decode(packet))
    except av.error.FFmpegError:
        return []

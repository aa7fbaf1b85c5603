"""Images, audio and video, opened safely and decoded as streams."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.segment import Segment, Span
from nemo_mm_rank.modality import by_extension, media_names

if TYPE_CHECKING:
    from nemo_mm_rank.config import MediaSettings


def open(  # noqa: A001 (reads as media.open)
    ref: str,
    spans: Sequence[Span] | None = None,
    modality: str | None = None,
    root: str = ".",
    settings: MediaSettings | None = None,
) -> Segment:
    """Decode one file, or the parts of it that ``spans`` keep: `Opener.open` for use by hand.

    Args:
        ref: a path below ``root``, or an fsspec URL where the settings allow it.
        spans: ``[x, y, w, h]`` boxes in pixels (image) or ``[start, end]`` windows in seconds (audio, video).
        modality: one that comes as files, such as image; default: what the file's name says.
        root: the folder or URL that ``ref`` is below.
        settings: bounds, rate and sampling; default: `MediaSettings`.

    Raises:
        MediaError: one line that names ``ref`` as it was given.
    """
    # Here and not above: decoders are not loaded by those who only need the segments' types.
    from nemo_mm_rank.config import MediaSettings
    from nemo_mm_rank.media.opener import Opener

    if modality is None:
        kind = (mimetypes.guess_type(ref)[0] or "").split("/")[0]
        modality = kind if kind in media_names() else by_extension(os.path.splitext(ref)[1].removeprefix(".").lower())
        if modality is None:
            raise MediaError(f"{ref!r}: its name does not say whether it is image, audio or video: pass the modality")
    return Opener(settings or MediaSettings(), root).open(ref, modality, spans)

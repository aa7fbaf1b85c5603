"""The built-in modalities that come as files. What decodes and encodes is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.media.segment import Audio, Image, Span, Video, content_key, part_key
from nemo_mm_rank.media.spans import merge, union
from nemo_mm_rank.modality import Medium

if TYPE_CHECKING:
    from nemo_mm_rank.media.preview import Preview


class ImageMedium(Medium):
    """Images."""

    extensions = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif jp2 ppm pgm pbm"
    parts = "boxes"

    def decode(self, file: IO[bytes], settings: MediaSettings, spans: Sequence[Span] | None = None) -> Image:
        """Decode an image, cropped to what lies in all boxes together."""
        from nemo_mm_rank.media.image import decode_image

        image = Image(content_key(file, self.name), decode_image(file, settings.max_pixels, settings.max_side))
        return image if spans is None else self.cut(image, spans)

    def extent(self, segment: Image) -> tuple[float, float]:
        """Return width and height."""
        return segment.pixels.size

    def cut(self, segment: Image, spans: Sequence[Span]) -> Image:
        """Crop to the union of the boxes."""
        return segment.part(union(spans))

    def fingerprint(self, segment: Image) -> int:
        """Return the perceptual hash."""
        from nemo_mm_rank.media.fingerprint import phash

        return int(phash(segment.pixels))

    def preview(self, segment: Image, spans: Sequence[Span] | None) -> Preview:
        """Return a thumbnail of the whole, so that what was cut off can be seen."""
        from nemo_mm_rank.media.preview import image_preview

        return image_preview(segment.pixels, spans)


class _Recording(Medium):
    """What has a length."""

    parts = "windows"
    arrays: ClassVar[tuple[str, ...]]
    """Attributes of a segment that run along its length."""

    def cut(self, segment: Any, spans: Sequence[Span]) -> Any:
        """Return the windows end to end."""
        pieces = [segment.part(span) for span in spans]
        if len(pieces) == 1:
            return pieces[0]
        key = part_key(segment.key, *self._ends(pieces, spans))
        joined = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in self.arrays}
        return replace(pieces[0], key=key, **joined)

    def _ends(self, pieces: Sequence[Any], spans: Sequence[Span]) -> list[float]:
        """Return what tells these windows from others."""
        return [bound for span in spans for bound in span]

    def shown(self, spans: Sequence[Span] | None) -> Sequence[Span]:
        """Return some seconds."""
        from nemo_mm_rank.media.preview import played

        return played(spans)


class AudioMedium(_Recording):
    """Recordings of audio."""

    extensions = "wav flac mp3 ogg oga opus m4a aac wma aif aiff au"
    arrays = ("samples",)

    def decode(self, file: IO[bytes], settings: MediaSettings, spans: Sequence[Span] | None = None) -> Audio:
        """Decode to mono at the rate of the settings; of several windows the samples stand end to end."""
        from nemo_mm_rank.media.audio import decode_audio, to_samples

        rate, limit = settings.sample_rate, settings.max_seconds
        windows = None if spans is None else merge(spans)
        ranges = to_samples(windows, rate, limit)
        samples = decode_audio(file, rate, ranges)
        key = content_key(file, self.name, rate, limit)
        if windows is None:
            return Audio(key, samples, rate)
        return Audio(part_key(key, *_bounds(ranges, len(samples))), samples, rate, ranges[0][0] / rate)

    def _ends(self, pieces: Sequence[Audio], spans: Sequence[Span]) -> list[float]:
        """Return the first and last samples, as decoding these windows alone does: what was made of them is known."""
        firsts = [round(piece.start * piece.rate) for piece in pieces]
        return [end for first, piece in zip(firsts, pieces, strict=True) for end in (first, first + len(piece.samples))]

    def extent(self, segment: Audio) -> tuple[float, float]:
        """Return when it starts and ends."""
        return segment.start, segment.start + segment.duration

    def fingerprint(self, segment: Audio) -> int:
        """Return the perceptual hash."""
        from nemo_mm_rank.media.fingerprint import audio_hash

        return int(audio_hash(segment))

    def preview(self, segment: Audio, spans: Sequence[Span] | None) -> Preview:
        """Return these seconds, to be heard."""
        from nemo_mm_rank.media.preview import audio_preview

        return audio_preview(segment, spans)


class VideoMedium(_Recording):
    """Video, as frames sampled evenly; their audio is no part of them."""

    extensions = "mp4 m4v mov mkv webm avi mpg mpeg ogv flv wmv 3gp"
    arrays = ("frames", "times")

    def decode(self, file: IO[bytes], settings: MediaSettings, spans: Sequence[Span] | None = None) -> Video:
        """Decode as many frames as the settings say, over the windows laid end to end."""
        from nemo_mm_rank.media.video import decode_video

        count, side, limit = settings.video_frames, settings.video_side, settings.max_seconds
        windows = None if spans is None else merge(spans)
        bounds = (settings.max_pixels, settings.max_side)
        frames, times, duration = decode_video(file, count, side, windows, limit, *bounds)
        key = content_key(file, self.name, count, side, limit)
        if windows is not None:
            key = part_key(key, "seconds", *(bound for window in windows for bound in window))
        return Video(key, frames, times, duration)

    def extent(self, segment: Video) -> tuple[float, float]:
        """Return 0 and how long it is."""
        return 0.0, segment.duration

    def fingerprint(self, segment: Video) -> int:
        """Return the perceptual hash."""
        from nemo_mm_rank.media.fingerprint import video_hash

        return int(video_hash(segment.frames))

    def preview(self, segment: Video, spans: Sequence[Span] | None) -> Preview:
        """Return these seconds, to be seen."""
        from nemo_mm_rank.media.preview import video_preview

        return video_preview(segment, spans)


def _bounds(ranges: Sequence[tuple[int, int]], total: int) -> list[int]:
    """Return the ends of ``ranges`` as they came out: ``total`` samples, so that the last may have been shorter."""
    bounds: list[int] = []
    for first, last in ranges:
        taken = min(last - first, total)
        if taken > 0:
            bounds += [first, first + taken]
        total -= taken
    return bounds

"""Between Curator's video tasks and pairs: clips into pairs, and low ones among those that are filtered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from nemo_curator.tasks.video import Clip, VideoTask

from nemo_mm_rank.curator.pairs import Bridge, Found, PairsStage
from nemo_mm_rank.curator.scorer import Scorer
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, ERROR, PAIR_ID, Modality


def clip_rows(clips: Sequence[Clip], caption_model: str | None = None) -> Found:
    """Return clips as rows: their encoded bytes, and the captions of their windows, one after the other.

    Args:
        clips: as any of Curator's stages leaves them, before `ClipWriterStage` empties them.
        caption_model: whose captions; default: the first that there is, enhanced ones before others.
    """
    content = [_content(clip.buffer) for clip in clips]
    spans = [_seconds(clip.span) for clip in clips]
    columns: dict[str, Any] = {
        PAIR_ID: [str(clip.uuid) for clip in clips],
        DATA: [f"{clip.uuid}.mp4" if there else None for clip, there in zip(clips, content, strict=True)],
        DATA_BYTES: pa.array(content, pa.large_binary()),
        ANNOTATION: [clip_caption(clip, caption_model) for clip in clips],
        "source_video": [str(clip.source_video) for clip in clips],
        "start": [start for start, _ in spans],
        "end": [end for _, end in spans],
        "motion_score": [clip.motion_score_global_mean for clip in clips],
        "aesthetic_score": [clip.aesthetic_score for clip in clips],
    }
    found = Found(columns, vectors=[clip.cosmos_embed1_embedding for clip in clips])
    found.faults |= {row: (DATA, "a clip with its bytes", "none") for row, there in enumerate(content) if not there}
    return found


def _content(buffer: Any) -> bytes | None:
    return bytes(buffer) or None if isinstance(buffer, (bytes, bytearray, memoryview, np.ndarray)) else None


def _seconds(span: Any) -> tuple[float | None, float | None]:
    try:
        start, end = map(float, span)
    except (TypeError, ValueError):  # nobody needs them
        return None, None
    return start, end


def clip_caption(clip: Clip, model: str | None = None) -> str | None:
    """Return the captions of a clip's windows by one model, None where it has none."""
    for kind in ("enhanced_caption", "caption"):
        windows = [
            {name: text.strip() for name, text in (getattr(window, kind) or {}).items() if isinstance(text, str)}
            for window in clip.windows or ()
        ]
        chosen = model or next((name for window in windows for name, text in window.items() if text), None)
        texts = [window[chosen] for window in windows if window.get(chosen)]
        if texts:
            return "\n".join(texts)
    return None


@dataclass(kw_only=True, repr=False)
class ClipRows(Bridge):
    """How a stage reads video tasks.

    Args:
        caption_model: whose captions; default: the first that there is, enhanced ones before others.
    """

    kind = VideoTask
    modality = Modality.VIDEO

    caption_model: str | None = None

    def rows(self, tasks: Sequence[VideoTask]) -> Found:
        """See `clip_rows`."""
        return clip_rows([clip for task in tasks for clip in task.data.clips], self.caption_model)


@dataclass(kw_only=True, repr=False)
class ClipPairsStage(ClipRows, PairsStage):
    """Makes pairs of the clips of a video: see `clip_rows`, and `PairColumnsStage` for what comes out."""

    name: str = "clip_pairs"


@dataclass(kw_only=True, repr=False)
class ClipScoreFilterStage(ClipRows, Scorer):
    """Moves clips with a low score to ``filtered_clips``, so that `ClipWriterStage` writes them apart.

    A clip that cannot be scored stays, with the reason in its ``errors``; with ``quarantine``, it moves, too.

    Args:
        least: the least score of clips that stay.
    """

    name: str = "clip_score_filter"
    least: float

    def process(self, task: VideoTask) -> VideoTask:
        """Return ``task`` with its clips divided.

        Raises:
            ConfigError: a task of another kind, or no such score.
        """
        table, video = self.scored([task]), task.data
        kept: list[Clip] = []
        for clip, score, error in zip(
            video.clips, table[self.column].to_pylist(), table[ERROR].to_pylist(), strict=True
        ):
            if error is not None:
                clip.errors[self.name] = error
            stays = self.keeps_failed if error is not None else score is not None and score >= self.least
            (kept if stays else video.filtered_clips).append(clip)
        video.clips = kept
        return task

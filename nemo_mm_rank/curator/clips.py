"""Between Curator's video tasks and pairs: clips into pairs, and low ones among those that are filtered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    columns: dict[str, Any] = {
        PAIR_ID: [str(clip.uuid) for clip in clips],
        DATA: [f"{clip.uuid}.mp4" if clip.buffer else None for clip in clips],
        DATA_BYTES: pa.array([bytes(clip.buffer) if clip.buffer else None for clip in clips], pa.large_binary()),
        ANNOTATION: [clip_caption(clip, caption_model) for clip in clips],
        "source_video": [str(clip.source_video) for clip in clips],
        "start": [float(clip.span[0]) for clip in clips],
        "end": [float(clip.span[1]) for clip in clips],
        "motion_score": [clip.motion_score_global_mean for clip in clips],
        "aesthetic_score": [clip.aesthetic_score for clip in clips],
    }
    found = Found(columns, vectors=[clip.cosmos_embed1_embedding for clip in clips])
    found.faults |= {row: (DATA, "a clip with its bytes", "none") for row, clip in enumerate(clips) if not clip.buffer}
    return found


def clip_caption(clip: Clip, model: str | None = None) -> str | None:
    """Return the captions of a clip's windows by one model, None where it has none."""
    said = [said for kind in ("enhanced_caption", "caption") for said in [[getattr(w, kind) for w in clip.windows]]]
    for windows in said:
        chosen = model or next((name for window in windows for name, text in window.items() if text), None)
        texts = [window[chosen].strip() for window in windows if window.get(chosen)]
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

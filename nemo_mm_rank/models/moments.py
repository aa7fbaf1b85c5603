"""A place for moment-retrieval models, as a grounder of sound and video: those of lighthouse, or any made like them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError, nearest
from nemo_mm_rank.media.segment import Audio, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded, Item
from nemo_mm_rank.models.contract import support
from nemo_mm_rank.models.wav import wav
from nemo_mm_rank.models.weights import PICKLES
from nemo_mm_rank.schema import Modality

PICKLE_ENDINGS = tuple(pattern.removeprefix("*") for pattern in PICKLES)


class MomentRetriever(Protocol):
    """What is used of a predictor of lighthouse 1.1 (https://github.com/line/lighthouse).

    One of ``encode_audio(path)`` and ``encode_video(path)``, whose result ``predict`` takes.
    """

    def predict(self, query: str, inputs: Any) -> Mapping[str, Any] | None:
        """Return ``pred_relevant_windows``: ``[start, end, score]`` in seconds of the file; None for none."""
        ...


class MomentGrounder:
    """Finds the moments of recordings that phrases speak of.

    The interface takes a file and one query at a time: a recording is encoded once, and asked for each of its phrases.
    Sound goes in as WAV. A video goes in as the frames that were sampled of it, without loss, which is what features
    of a frame every other second need (``clip``); features of motion (``slowfast``) would need more than there are.

    Args:
        predictor: import path of its class, such as ``lighthouse.models:CGDETRPredictor``.
        arguments: the class's own, without ``device``.
        modality: ``audio`` or ``video``.
        name: what the configuration calls it; default: ``predictor``.
        device: where it runs.
        threshold: least score of a moment.
        max_seconds: a longer recording has an error; lighthouse's models end at 150.
        allow_pickle: open checkpoints that are pickles, as lighthouse's are. They can run code: only where you trust
            whoever made them.

    Raises:
        ModelError: a checkpoint that is a pickle, or a class without that interface.
    """

    modalities: frozenset[str] = frozenset({Modality.AUDIO, Modality.VIDEO})
    """What the class can take; an instance, the one that it is told."""

    def __init__(
        self,
        predictor: str,
        arguments: Mapping[str, Any],
        modality: str,
        name: str | None = None,
        device: str = "cpu",
        threshold: float = 0.5,
        max_seconds: float = 150.0,
        allow_pickle: bool = False,
    ) -> None:
        if modality not in self.modalities:
            takes = sorted(self.modalities)
            raise ModelError(f"modality is audio or video, not {modality!r}{nearest(modality, takes)}")
        self.name = name or predictor
        self.modalities = frozenset({modality})
        self.revision = self.revision_of(arguments)
        for key, value in arguments.items():
            if not allow_pickle and isinstance(value, str) and value.endswith(PICKLE_ENDINGS):
                raise ModelError(f"{self.name}: {key} is a pickle, which can run code: allow_pickle says that it may")
        self._threshold = threshold
        self._max_seconds = max_seconds
        self._retriever: MomentRetriever = loader.find_class(predictor)(**{"device": device, **arguments})
        self._encode: Any = getattr(self._retriever, f"encode_{modality}", None)
        for method in (f"encode_{modality}", "predict"):
            if not callable(getattr(self._retriever, method, None)):
                raise ModelError(f"{predictor} has no {method}()")

    @staticmethod
    def revision_of(arguments: Mapping[str, Any], **_: Any) -> str:
        """Return a digest of the files that the arguments name."""
        digest = hashlib.sha256()
        for key, value in sorted(arguments.items()):
            if isinstance(value, str) and Path(value).is_file():
                with Path(value).open("rb") as file:
                    digest.update(f"{key} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    def ground(
        self, items: Sequence[Item], phrases: Sequence[Sequence[str]], modality: str
    ) -> list[Grounded | PairError]:
        """Find the moments; ``spans`` are what was ``found``, in seconds of the recording, and may be none.

        Raises:
            ModelError: a modality that it was not made for.
        """
        support(self, modality)
        results: list[Grounded | PairError] = []
        for item, own in zip(items, phrases, strict=True):
            try:
                results.append(self._ground(item, own))
            except PairError as error:
                results.append(error)
        return results

    def _ground(self, item: Item, phrases: Sequence[str]) -> Grounded:
        if not isinstance(item, Audio | Video):
            raise ModelError(f"sound or a video is expected, not {type(item).__name__}")
        if item.duration > self._max_seconds:
            raise EmbeddingError(f"{item.duration:,.0f} s are more than {self.name} takes ({self._max_seconds:,.0f})")
        spans: list[list[float]] = []
        scores: list[list[float]] = []
        with TemporaryDirectory(prefix="moments-") as folder:
            if isinstance(item, Audio):
                path, start = Path(folder) / "sound.wav", item.start
                path.write_bytes(wav(item.samples, item.rate))
            else:
                path = Path(folder) / "video.mkv"
                start = _write_video(path, item)
            inputs = self._encode(str(path))
            for number, phrase in enumerate(phrases):
                found = (self._retriever.predict(phrase, inputs) or {}).get("pred_relevant_windows", [])
                for first, last, score in found:
                    begin, end = max(0.0, float(first)), min(float(last), item.duration)
                    if score >= self._threshold and begin < end:
                        spans.append([start + begin, start + end])
                        scores.append(
                            [float(score) if other == number else float("nan") for other in range(len(phrases))]
                        )
        return Grounded(
            torch.tensor(spans, dtype=torch.float64).reshape(-1, 2),
            torch.tensor(scores).reshape(len(spans), len(phrases)),
            found=True,
        )


def _write_video(path: Path, video: Video) -> float:
    """Write the frames of ``video`` at their pace, without loss; return the second that the file begins at."""
    import av

    count = len(video.frames)
    step = (video.times[-1] - video.times[0]) / (count - 1) if count > 1 else video.duration
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(1 / step).limit_denominator(1000))
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return max(0.0, float(video.times[0] - step / 2))

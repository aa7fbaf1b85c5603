"""Whisper, of the transformers library, as a describer of audio: what is said in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nemo_mm_rank.arrays import Samples
from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models.base import Described, support
from nemo_mm_rank.models.batching import Features, ahead
from nemo_mm_rank.models.generation import Writer
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.windows import at_rate
from nemo_mm_rank.schema import Modality

SEARCHED = 1 / 6
"""Share of a window, at its end, in which a quiet place to cut is looked for: five seconds of thirty."""
FRAME = 0.1
"""Seconds over which it is to be quiet."""


@dataclass(eq=False)
class WhisperDescriber(HubModel):
    """Writes down what is said in a recording.

    Whisper hears 30 seconds at a time. A longer recording is cut into windows, each at the quietest place of its last
    five seconds, so that few words are cut in two; windows of all recordings go through the model in batches, all of
    one shape. Texts are written greedily. A recording of which nothing is understood has an error, not an empty text.

    Args:
        language: that is spoken; default: what the model takes it for, window by window.
        task: ``transcribe``, or ``translate`` into English.
        max_new_tokens: at which a window's text ends; default: half of what the decoder holds, as in Whisper's own
            code (``sample_len`` in openai/whisper, decoding.py).
        batch_size: windows of a batch; default: 4 on a CPU, 32 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.

    Raises:
        ModelError: a language that it does not know.
    """

    language: str | None = None
    task: str = "transcribe"
    max_new_tokens: int | None = None
    batch_size: int | None = None

    modalities = frozenset({Modality.AUDIO})

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        processor = self._load_processor(self._library.AutoProcessor)
        if not isinstance(processor, self._library.WhisperProcessor):
            raise ModelError(f"{self.path}: {type(processor).__name__} is not Whisper's")
        self._extractor: Any = processor.feature_extractor
        model = self._load(self._library.WhisperForConditionalGeneration)
        rows = self._rows(4, 32)
        spoken = _spoken(model.generation_config, self.path, self.language, self.task)
        most = self.max_new_tokens or model.config.max_target_positions // 2
        self._write = Writer(model, processor.tokenizer, rows, most, **spoken)
        self._ahead = 2 * rows

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        """Write down what is said in ``items``.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        rate = self._extractor.sampling_rate
        cut = partial(windows, length=self._extractor.n_samples, frame=round(FRAME * rate))
        heard = [cut(at_rate(item, rate)) if isinstance(item, Audio) and len(item.samples) else [] for item in items]
        written = iter(self._write(ahead(self._prepare, [one for own in heard for one in own], 1, self._ahead)))
        said = [" ".join(filter(None, [next(written) for _ in own])) for own in heard]
        errors: dict[int, PairError] = {
            row: EmbeddingError(f"{self.name} recognises no speech in it" if heard[row] else "contains no samples")
            for row, text in enumerate(said)
            if not text
        }
        return Described([text or None for text in said], errors)

    def _prepare(self, samples: Samples) -> Features:
        features: Features = self._extractor(
            samples, sampling_rate=self._extractor.sampling_rate, return_attention_mask=True, return_tensors="pt"
        ).data
        return features


def _spoken(config: Any, path: str, language: str | None, task: str) -> dict[str, Any]:
    """Return the arguments of ``generate`` that say what is spoken, and what to write."""
    if task not in ("transcribe", "translate"):
        raise ModelError(f"task is 'transcribe' or 'translate', not {task!r}")
    if not getattr(config, "is_multilingual", False):
        if language is not None or task == "translate":
            raise ModelError(f"{path} knows one language only: leave out language and task")
        return {}
    known = getattr(config, "lang_to_id", {})
    if language is not None and f"<|{language}|>" not in known:
        raise ModelError(f"{path} does not know the language {language!r}: give its code, such as 'en'")
    return {"language": language, "task": task}


def windows(samples: Samples, length: int, frame: int) -> list[Samples]:
    """Cut a recording into windows of at most ``length`` samples, each at the quietest place of its last sixth.

    Args:
        samples: ``(n,)``.
        length: samples.
        frame: samples over which it is to be quiet, at most a sixth of ``length``.

    Returns:
        Views that are ``samples``, end to end.
    """
    found: list[Samples] = []
    frames = max(1, round(length * SEARCHED) // frame)
    while len(samples) > length:
        searched = samples[length - frames * frame : length].reshape(frames, frame)
        quietest = int(np.einsum("ij,ij->i", searched, searched).argmin())
        cut = length - frames * frame + quietest * frame + frame // 2
        found.append(samples[:cut])
        samples = samples[cut:]
    return [*found, samples]

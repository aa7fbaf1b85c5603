"""Whisper, of the transformers library, as a describer of sound: what is said in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from nemo_mm_rank.arrays import Samples
from nemo_mm_rank.errors import EmbeddingError, ModelError, PairError, require
from nemo_mm_rank.media.segment import Audio, Item
from nemo_mm_rank.models.base import Described, support
from nemo_mm_rank.models.batching import Features, ahead
from nemo_mm_rank.models.generation import Writer
from nemo_mm_rank.models.weights import (
    folder_revision,
    load_pretrained,
    loading_arguments,
    opening,
    pick_dtype,
    resolve,
)
from nemo_mm_rank.models.windows import at_rate
from nemo_mm_rank.schema import Modality

SEARCHED = 1 / 6
"""Share of a window, at its end, in which a quiet place to cut is looked for: five seconds of thirty."""
FRAME = 0.1
"""Seconds over which it is to be quiet."""


class WhisperDescriber:
    """Writes down what is said in a recording.

    Whisper hears 30 seconds at a time. A longer recording is cut into windows, each at the quietest place of its last
    five seconds, so that few words are cut in two; windows of all recordings go through the model in batches, all of
    one shape. Texts are written greedily. A recording of which nothing is understood has an error, not an empty text.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        language: that is spoken; default: what the model takes it for, window by window.
        task: ``transcribe``, or ``translate`` into English.
        max_new_tokens: at which a window's text ends; default: half of what the decoder holds, as in Whisper's own
            code (``sample_len`` in openai/whisper, decoding.py).
        batch_size: windows of a batch; default: 4 on a CPU, 32 (or what the memory allows) elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, another kind of model, or a
            language that it does not know.
    """

    modalities: ClassVar[frozenset[str]] = frozenset({Modality.AUDIO})

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        dtype: str | None = None,
        language: str | None = None,
        task: str = "transcribe",
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        library = require("transformers", "models")
        folder = resolve(path, revision)
        self.name = name or path
        self.revision = folder_revision(folder)
        arguments = loading_arguments()
        arguments.pop("use_safetensors")
        with opening(path):
            processor = library.AutoProcessor.from_pretrained(str(folder), **arguments)
        if not isinstance(processor, library.WhisperProcessor):
            raise ModelError(f"{path}: {type(processor).__name__} is not Whisper's")
        self._extractor: Any = processor.feature_extractor
        model = load_pretrained(
            library.WhisperForConditionalGeneration, folder, path, device, pick_dtype(dtype, device)
        )
        own = 4 if torch.device(device).type == "cpu" else 32
        rows = own if batch_size is None else batch_size
        spoken = _spoken(model.generation_config, path, language, task)
        most = max_new_tokens or model.config.max_target_positions // 2
        self._write = Writer(model, processor.tokenizer, rows, most, **spoken)
        self._ahead = 2 * rows

    @staticmethod
    def revision_of(path: str, revision: str | None = None, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(resolve(path, revision))

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
            row: EmbeddingError(f"{self.name} understands nothing in it" if heard[row] else "holds no samples")
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

"""How much an annotation needs its data: what a multimodal language model loses where the data is taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import attempt, support
from nemo_mm_rank.models.vision_language import Part, VisionLanguageDescriber


@dataclass(eq=False)
class VisualDependency(VisionLanguageDescriber):
    """Scores pairs by the loss of the annotation without the data less that with it, in nats a token.

    The model is asked about the data (`prompt`), and the annotation is the answer whose tokens are judged; then it is
    asked the same and shown nothing. High: the annotation needs the data. About 0: it could be of anything, which
    no embedding tells. As a quality operator: ``operators.own: {needs_data: {class: visual-dependency, path: ...}}``.

    Every pair is read by itself, twice, so that no score depends on what shares a batch.

    Args:
        longest: tokens that an annotation is cut to.
    """

    longest: int = 512

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            ModelError: as for a describer, or less than a token to be judged.
        """
        if self.longest < 1:
            raise ModelError(f"longest is at least 1, not {self.longest}")
        super().__post_init__()

    def score(self, items: Sequence[Item], texts: Sequence[str], modality: str) -> npt.NDArray[np.float32]:
        """Return ``(n,)`` scores; NaN where the data cannot be shown, or the annotation has no token.

        Raises:
            ModelError: a modality that is not listed.
        """
        support(self, modality)
        found = np.full(len(items), np.nan, dtype=np.float32)
        shown, _ = attempt(self._content, enumerate(items))
        for row, parts in shown.items():
            answer = self._processor.tokenizer(texts[row], add_special_tokens=False)["input_ids"][: self.longest]
            if answer:
                prompt = self._prompts[modality]
                found[row] = self._loss(prompt, list, answer) - self._loss(prompt, parts, answer)
        return found

    def _loss(self, prompt: str, parts: Callable[[], list[Part]], answer: Sequence[int]) -> float:
        """Return the mean negative log-likelihood of an answer's tokens, in nats."""
        asked = self._prepare(prompt, parts)
        ids = torch.tensor([list(answer)])
        length = asked["input_ids"].shape[1]
        inputs = dict(asked)
        # What there is of each token goes on over the answer: its id, that it is there, and that it is text.
        for name, value in asked.items():
            if isinstance(value, torch.Tensor) and value.shape == (1, length):
                more = ids if name == "input_ids" else torch.full_like(ids, int(name == "attention_mask"))
                inputs[name] = torch.cat([value, more.to(value.dtype)], dim=1)
        on = {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        with torch.inference_mode():
            logits = self._model(**on, use_cache=False).logits[0, length - 1 : -1]
        return float(F.cross_entropy(logits.float(), ids[0].to(logits.device)))

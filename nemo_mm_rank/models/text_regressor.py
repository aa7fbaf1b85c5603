"""A model of the transformers library that rates texts by one number, such as ICC's of how concrete a caption is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.models.batching import EqualShapes, Features, padded_lengths, text_rows
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.schema import Modality


@dataclass(eq=False)
class TextRegressor(HubModel):
    """Rates texts: the one output of a sequence classifier, as it is.

    Longer texts than the model reads are cut. Texts are padded to a few lengths, and batches have a fixed number of
    rows, so that a rating does not depend on a text's neighbours.

    Args:
        max_tokens: of a text; default: what the model takes.
        batch_size: texts of a batch; default: as many as make 1,024 tokens on a CPU, 32,768 elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.

    Raises:
        ModelError: one with several outputs.
    """

    max_tokens: int | None = None
    batch_size: int | None = None

    modalities = frozenset({Modality.TEXT})

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        self._tokenizer = self._load_processor(self._library.AutoTokenizer)
        self._model = self._load(self._library.AutoModelForSequenceClassification)
        if self._model.config.num_labels != 1:
            raise ModelError(
                f"{self.path}: has {self._model.config.num_labels} outputs, and a rating needs exactly one"
            )
        limits = [self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", None)]
        self._longest = min(limit for limit in (*limits, self.max_tokens) if limit is not None)
        rows = self.batch_size or text_rows(self._longest, self._device)
        self._batches: EqualShapes[float] = EqualShapes(self._rate, self._model, rows)

    def score(self, texts: Sequence[str]) -> Floats:
        """Return ``(n,)`` ratings."""
        return np.array(self._batches(self._prepared(texts)), dtype=np.float64)

    def _prepared(self, texts: Sequence[str]) -> Iterator[Features]:
        if not texts:
            return
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._longest)
        lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])
        fill = {"input_ids": self._tokenizer.pad_token_id}
        for row, length in enumerate(padded_lengths(lengths, self._longest).tolist()):
            yield {
                key: F.pad(torch.tensor([rows[row]]), (0, length - len(rows[row])), value=fill.get(key, 0))
                for key, rows in encoded.items()
            }

    def _rate(self, batch: Features) -> list[float]:
        with torch.inference_mode():
            ratings: list[float] = self._model(**batch).logits.float().flatten().tolist()
        return ratings

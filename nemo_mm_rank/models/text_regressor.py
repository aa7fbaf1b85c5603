"""A model of the transformers library that rates texts by one number, such as ICC's of how concrete a caption is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.models.batching import EqualShapes, Features, padded_lengths, text_rows
from nemo_mm_rank.models.weights import (
    folder_revision,
    load_pretrained,
    loading_arguments,
    opening,
    pick_dtype,
    resolve,
)
from nemo_mm_rank.schema import Modality


class TextRegressor:
    """Rates texts: the one output of a sequence classifier, as it is.

    Longer texts than the model reads are cut. Texts are padded to a few lengths, and batches have a fixed number of
    rows, so that a rating does not depend on a text's neighbours.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        max_tokens: of a text; default: what the model takes.
        batch_size: texts of a batch; default: as many as make 1,024 tokens on a CPU, 32,768 elsewhere. A part of what
            decides the last bits, so it belongs to the configuration.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or one with several outputs.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT})

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        dtype: str | None = None,
        max_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        library = require("transformers", "models")
        folder = resolve(path, revision)
        self.name = name or path
        self.revision = folder_revision(folder)
        arguments = loading_arguments()
        arguments.pop("use_safetensors")
        with opening(path):
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(str(folder), **arguments)
        self._model = load_pretrained(
            library.AutoModelForSequenceClassification, folder, path, device, pick_dtype(dtype, device)
        )
        if self._model.config.num_labels != 1:
            raise ModelError(f"{path}: has {self._model.config.num_labels} outputs; a rating is one")
        limits = [self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", None)]
        self._longest = min(limit for limit in (*limits, max_tokens) if limit is not None)
        self._rows = batch_size or text_rows(self._longest, torch.device(device))
        self._batches: EqualShapes[float] = EqualShapes(self._rate, self._model, self._rows)

    @staticmethod
    def revision_of(path: str, revision: str | None = None, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(resolve(path, revision))

    def score(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
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

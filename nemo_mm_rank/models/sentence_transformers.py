"""Any sentence-transformers model, from the hub or a folder, as an encoder of text and code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError, nearest, require
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.base import Encoded, support, usable
from nemo_mm_rank.models.batching import Features, FixedRows, by_length, text_rows
from nemo_mm_rank.models.hub import HubModel
from nemo_mm_rank.models.weights import opening
from nemo_mm_rank.schema import Modality

UNLIMITED = 2**20
"""Tokens; stands for no limit, which models give as none, infinity or a huge number."""
TOKENIZED_AT_ONCE = 2048


@dataclass(eq=False)
class SentenceTransformersEncoder(HubModel):
    """Embeds text and code with a sentence-transformers model, or any transformers model and a pooling.

    A text's vector is the same to the bit whatever else is in the batch, because the model only ever sees a few fixed
    shapes: a text is padded to a length that follows from its own token count (`batches.padded_lengths`), and for each
    length the number of rows is fixed, filled up with repetitions.

    Args:
        max_length: tokens that a text is cut to; default: the model's own limit.
        pooling: of the tokens' vectors: ``mean``, ``cls``, ``lasttoken`` ...; default: the model's own, or else the
            last token of a decoder and the mean of anything else.
        prompt: put before every text (``"passage: "``); default: the model's own prompt for documents, where it has
            one.
        query_prompt: put before queries instead (``"query: "``); default: the model's own prompt for queries, or else
            ``prompt``.
        batch_tokens: padded tokens per forward pass; default: 256 on a CPU, 32,768 (or what the memory allows)
            elsewhere. A part of what decides the last bits, so it belongs to the configuration.
        trust_remote_code: run the code that comes with the model.

    Raises:
        ModelError: a model that takes no text, or a pooling that it does not have.
    """

    max_length: int | None = None
    pooling: str | None = None
    prompt: str | None = None
    query_prompt: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False

    modalities = frozenset({Modality.TEXT, Modality.CODE})
    _library_name = "sentence_transformers"

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        if not self.trust_remote_code:
            refuse_code(self._folder, self.path, self._library.__version__)
        with opening(self.path):
            self._model: Any = self._library.SentenceTransformer(
                str(self._folder),
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        if "text" not in self._model.modalities:
            raise ModelError(f"{self.path}: this model takes {', '.join(map(str, self._model.modalities))}, not text")
        if self.pooling is not None:
            _repool(self._model, self.path, self.pooling)
        self._model.eval().to(self._dtype)
        if self.max_length is not None:
            self._model.max_seq_length = self.max_length
        self._limit = int(min(self._model.max_seq_length or UNLIMITED, UNLIMITED))
        # Variable-length attention would make the shapes depend on the batch again.
        if hasattr(self._model[0], "unpad_inputs"):
            self._model[0].unpad_inputs = False
        self._run = FixedRows(self._device)
        self._pad_left = getattr(self._model.tokenizer, "padding_side", "right") == "left"
        self._pad_token = getattr(self._model.tokenizer, "pad_token_id", None) or 0
        own = self._model.prompts
        default = own.get("document") or own.get(self._model.default_prompt_name)
        self._prompt = default if self.prompt is None else self.prompt
        self._query_prompt = own.get("query") or self._prompt if self.query_prompt is None else self.query_prompt
        self.dim = int(self._model.get_embedding_dimension())

    @classmethod
    def _find(cls, path: str, *arguments: Any, **named: Any) -> Path:
        # A name without an owner is one of the library's own models, as it is to the library.
        bare = "/" not in path and not Path(path).is_dir()
        return super()._find(f"sentence-transformers/{path}" if bare else path, *arguments, **named)

    def encode(self, items: Sequence[Item], modality: str) -> Encoded:
        """Embed texts; ``vectors`` is on the model's device."""
        support(self, modality)
        return self._encode(items, self._prompt)

    def encode_queries(self, texts: Sequence[str]) -> Encoded:
        """Embed search queries, with the prompt that is theirs."""
        return self._encode(texts, self._query_prompt)

    def _encode(self, items: Sequence[Item], prompt: str | None) -> Encoded:
        texts = [str(item) for item in items]
        vectors = torch.empty((len(texts), self.dim), device=self._device)
        # Neighbours by length are tokenised together: short padding, and few lengths that leave a batch unfilled.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), TOKENIZED_AT_ONCE):
            rows = torch.tensor(order[start : start + TOKENIZED_AT_ONCE])
            vectors[rows.to(self._device)] = self._embed([texts[row] for row in rows], prompt)
        return usable(Encoded(vectors), self, len(texts))

    def _embed(self, texts: list[str], prompt: str | None) -> torch.Tensor:
        tokenised = self._model.preprocess(texts, prompt=prompt)
        features = {key: value for key, value in tokenised.items() if isinstance(value, torch.Tensor)}
        settings = {key: value for key, value in tokenised.items() if key not in features}

        def forward(batch: Features) -> torch.Tensor:
            embedded: torch.Tensor = self._model({**batch, **settings})["sentence_embedding"]
            return embedded

        if "attention_mask" not in features:  # a bag of embeddings, summed text by text: it knows no shape
            return self._run.whole(forward, features)
        vectors = torch.empty((len(texts), self.dim), device=self._device)
        for chosen, batch in by_length(features, self._limit, self._pad_token, self._pad_left):
            rows = text_rows(batch["attention_mask"].shape[1], self._device, self.batch_tokens)
            vectors[chosen.to(self._device)] = self._run(forward, batch, rows)
        return vectors


def refuse_code(folder: Path, path: str, version: str) -> None:
    """Refuse a folder whose code the library would run untold: before 6 it does, where the folder is a local one.

    Args:
        folder: of the model.
        path: what the user calls it.
        version: of the library.

    Raises:
        ModelError: there is code in the folder, or it names some of another model.
    """
    if int(version.split(".")[0]) >= 6:
        return
    named = [file for name in ("modules.json", "router_config.json") for file in folder.rglob(name)]
    if any(folder.rglob("*.py")) or any(b"--" in file.read_bytes() for file in named):
        raise ModelError(
            f"{path}: code comes with this model, which sentence-transformers {version} would run: if you trust it, "
            "set trust_remote_code; otherwise install sentence-transformers 6"
        )


def _repool(model: Any, path: str, pooling: str) -> None:
    kind = require("sentence_transformers.sentence_transformer.modules", "models").Pooling
    for place, module in enumerate(model):
        if isinstance(module, kind):
            if pooling not in kind.POOLING_MODES:
                known = ", ".join(kind.POOLING_MODES)
                raise ModelError(
                    f"pooling must be one of {known}, not {pooling!r}{nearest(pooling, kind.POOLING_MODES)}"
                )
            model[place] = kind(module.embedding_dimension, pooling)
            return
    raise ModelError(f"{path}: this model has no tokens to pool")

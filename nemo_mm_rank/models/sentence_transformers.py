"""Any sentence-transformers model, from the hub or a folder, as an encoder of text and code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.models.base import Encoded, Item
from nemo_mm_rank.models.contract import support, usable
from nemo_mm_rank.schema import Modality

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
UNUSED = (*PICKLES, "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.py", "onnx/*", "openvino/*")
"""What is never downloaded: pickles can run code when opened, and the rest is for other frameworks."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHTS_AND_SETTINGS = {".safetensors", ".json", ".txt", ".model"}

UNLIMITED = 2**20
"""Tokens; stands for no limit, which models give as none, infinity or a huge number."""
TOKENIZED_AT_ONCE = 2048
CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS = 256, 32_768


class SentenceTransformersEncoder:
    """Embeds text and code with a sentence-transformers model.

    A text's vector is the same to the bit whatever else is in the batch, because the model only ever sees a few fixed
    shapes: a text is padded to a length that follows from its own token count (`padded_lengths`), and for each length
    the number of rows is fixed, filled up with repetitions.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        max_length: tokens that a text is cut to; default: the model's own limit.
        prompt: put before every text; default: the model's own prompt for documents, where it has one.
        query_prompt: put before queries instead; default: the model's own prompt for queries, or else ``prompt``.
        batch_tokens: padded tokens per forward pass; default: 256 on a CPU, 32,768 elsewhere. A part of what decides
            the last bits, so it belongs to the configuration.

    Raises:
        ModelError: no such folder or model, weights that are pickles, or a model that takes no text.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.CODE})

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        query_prompt: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        library = require("sentence_transformers", "models")
        folder = fetch(path, revision)
        self.name = name or path
        self.revision = folder_revision(folder)
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if self._device.type == "cpu" else DEVICE_BATCH_TOKENS)
        try:
            self._model: Any = library.SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).eval()
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            raise ModelError(f"{path}: {_line(error)}") from error
        if "text" not in self._model.modalities:
            raise ModelError(f"{path}: this model takes {', '.join(map(str, self._model.modalities))}, not text")
        if max_length is not None:
            self._model.max_seq_length = max_length
        self._limit = int(min(self._model.max_seq_length or UNLIMITED, UNLIMITED))
        # Variable-length attention would make the shapes depend on the batch again.
        if hasattr(self._model[0], "unpad_inputs"):
            self._model[0].unpad_inputs = False
        self._pad_left = getattr(self._model.tokenizer, "padding_side", "right") == "left"
        self._pad_token = getattr(self._model.tokenizer, "pad_token_id", None) or 0
        own = self._model.prompts
        default = own.get("document") or own.get(self._model.default_prompt_name)
        self._prompt = prompt if prompt is not None else default
        self._query_prompt = query_prompt if query_prompt is not None else own.get("query") or self._prompt
        self.dim = int(self._model.get_embedding_dimension())

    @staticmethod
    def revision_of(path: str, revision: str | None = None, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(fetch(path, revision))

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
            features = self._model.preprocess([texts[row] for row in rows], prompt=prompt)
            for chosen, batch in self._batches(features, len(rows)):
                with torch.inference_mode():
                    embedded = F.normalize(self._model(batch)["sentence_embedding"].float(), dim=1)
                vectors[rows[chosen].to(self._device)] = embedded[: len(chosen)]
        return usable(Encoded(vectors), self, len(texts))

    def _batches(self, features: Mapping[str, Any], n: int) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """Cut tokenised texts into batches of fixed shape; yields the rows and their features on the device."""
        mask = features.get("attention_mask")
        if mask is None:  # a bag of embeddings, summed text by text: it knows no shape
            yield torch.arange(n), self._moved(features)
            return
        lengths = padded_lengths(mask.sum(dim=1), self._limit)
        for length in sorted(set(lengths.tolist())):
            rows = max(1, self._batch_tokens // length)
            for chosen in torch.split(torch.nonzero(lengths == length).flatten(), rows):
                index = F.pad(chosen, (0, rows - len(chosen)), value=int(chosen[0]))
                batch = {
                    key: self._fitted(key, value[index], length)
                    if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape
                    else value
                    for key, value in features.items()
                }
                yield chosen, self._moved(batch)

    def _fitted(self, key: str, values: torch.Tensor, length: int) -> torch.Tensor:
        """Crop or pad the second dimension to ``length``, on the side where this model's padding is."""
        missing = length - values.shape[1]
        padding = (missing, 0) if self._pad_left else (0, missing)
        return F.pad(values, padding, value=self._pad_token if key == "input_ids" else 0)

    def _moved(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self._device) if isinstance(value, torch.Tensor) else value for key, value in features.items()
        }


def padded_lengths(lengths: torch.Tensor, limit: int) -> torch.Tensor:
    """Return the length that a text of so many tokens is padded to, at most ``limit``.

    Eight steps per octave (32, 36, 40 ... 64, 72, 80 ...), none shorter than 4: little is padding, and few lengths
    occur, so that batches get filled.

    Args:
        lengths: ``(n,)`` int64 token counts.
        limit: the most tokens that the model takes.
    """
    step = torch.exp2(torch.ceil(torch.log2(lengths.clamp(min=1).double())) - 4).long().clamp(min=4)
    return ((lengths + step - 1) // step * step).clamp(min=1, max=limit)


def fetch(path: str, revision: str | None = None) -> Path:
    """Return the folder of a model, downloading it from the hub where ``path`` is no local folder.

    Raises:
        ModelError: neither a folder nor a model on the hub, or weights that are pickles.
    """
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{path} is a folder: it has no revision {revision!r}")
    else:
        folder = _download(path, revision)
    for pickle in sorted(file for pattern in PICKLES for file in folder.rglob(pattern)):
        if not any(pickle.parent.glob("*.safetensors")):
            raise ModelError(
                f"{path}: {pickle.relative_to(folder)} is a pickle, which can run code when it is opened; "
                "only safetensors weights are loaded"
            )
    return folder


def _download(path: str, revision: str | None) -> Path:
    if not HUB_NAME.fullmatch(path):
        raise ModelError(f"{path}: no such folder, and not the name of a model on the hub")
    name = path if "/" in path else f"sentence-transformers/{path}"
    download = require("huggingface_hub", "models").snapshot_download
    try:
        return Path(download(name, revision=revision, ignore_patterns=list(UNUSED)))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no such folder, nor to be had from the hub: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def folder_revision(folder: Path) -> str:
    """Return the commit of a snapshot from the hub, or a digest of the files that make a model what it is."""
    if folder.parent.name == "snapshots":
        return folder.name
    files = sorted(file for file in folder.rglob("*") if file.suffix in WEIGHTS_AND_SETTINGS and file.is_file())
    return _digest(folder, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=32)
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:40]

"""Any model of the OpenCLIP library, from the hub or a folder, as an encoder of text, images and video."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError, nearest, require
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.batching import Features, text_rows
from nemo_mm_rank.models.contrastive import TwoTowers
from nemo_mm_rank.models.weights import PICKLES, opening
from nemo_mm_rank.models.windows import Pixels, as_image, shots
from nemo_mm_rank.schema import Modality

SETTINGS = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""What the library prefers to any pickle in the same folder."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(eq=False)
class OpenClipEncoder(TwoTowers):
    """Embeds text, images and videos (frame by frame) with a model of OpenCLIP.

    Args:
        path: a folder with ``open_clip_config.json``, or a name on the hub. With ``checkpoint``, the library's own name
            of a model (``ViT-B-32``).
        checkpoint: the library's own name of weights for the model ``path`` (``laion2b_s34b_b79k``).
        batch_size: images of a forward pass; default: 16 on a CPU, 128 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        frame_pooling: how a video's frames become one vector: their ``mean``, or their ``medoid``.
    """

    checkpoint: str | None = None
    batch_size: int | None = None
    frame_pooling: str = "mean"

    modalities = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO})
    _library_name = "open_clip"
    _unread = ("model*.safetensors",)

    def __post_init__(self) -> None:
        """Load the model."""
        super().__post_init__()
        place = f"local-dir:{self._folder}"
        with opening(self.path):
            self._model, self._transform = self._library.create_model_from_pretrained(
                place, precision=PRECISIONS[self._dtype], device=self.device
            )
            self._tokenizer: Any = self._library.get_tokenizer(place)
        self._model.eval()
        self.dim = self._embed_texts([""]).shape[1]

    @classmethod
    def _find(cls, path: str, *arguments: Any, checkpoint: str | None = None, **named: Any) -> Path:
        if checkpoint is not None:
            path = _hub_name(path, checkpoint)
        folder = super()._find(path, *arguments, **named)
        _refuse_code(folder, path)
        return folder

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        if not texts:
            return torch.empty((0, self.dim), device=self._device)
        # Always padded to the context's full length: some of the models read their last token, whatever it is.
        tokens = self._tokenizer(texts)
        return self._run(self._text, {"tokens": tokens}, text_rows(tokens.shape[1], self._device))

    def _text(self, batch: Features) -> torch.Tensor:
        embedded: torch.Tensor = self._model.encode_text(batch["tokens"])
        return embedded

    def _parts(self, item: Item) -> list[Pixels]:
        return shots(item)

    def _prepare(self, part: Pixels) -> Features:
        return {"pixels": self._transform(as_image(part))[None]}

    def _media(self, batch: Features) -> torch.Tensor:
        embedded: torch.Tensor = self._model.encode_image(batch["pixels"].to(self._dtype))
        return embedded


def _hub_name(model: str, checkpoint: str) -> str:
    """Return where on the hub the library's own checkpoints lie."""
    library = require("open_clip", "models")
    known = library.list_pretrained_tags_by_model(model)
    if not known:
        raise ModelError(f"open_clip has no model {model!r}{nearest(model, library.list_models())}")
    found = library.get_pretrained_cfg(model, checkpoint)
    if not found:
        raise ModelError(f"open_clip has no checkpoint {checkpoint!r} of {model}{nearest(checkpoint, known)}")
    repository, _, file = found.get("hf_hub", "").rpartition("/")
    if not repository or file:
        raise ModelError(f"open_clip's checkpoint {checkpoint!r} of {model} is a pickle; only safetensors are loaded")
    return str(repository)


def _refuse_code(folder: Path, path: str) -> None:
    """Refuse what the library would run or unpickle: it prefers some names of pickles to safetensors beside them."""
    with opening(path):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        asked = settings["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
    if asked.get("trust_remote_code"):
        raise ModelError(f"{path}: {SETTINGS} asks to run code that comes with the model, which is refused")
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles and not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{path}: {pickles[0]} is a pickle that open_clip would open; only safetensors are loaded")

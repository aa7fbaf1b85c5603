"""Any model of the OpenCLIP library, from the hub or a folder, as an encoder of text, images and video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nemo_mm_rank.errors import ModelError, nearest, require
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models.batching import Features, text_rows
from nemo_mm_rank.models.contrastive import TwoTowers
from nemo_mm_rank.models.weights import PICKLES, folder_revision, opening, pick_dtype, resolve
from nemo_mm_rank.models.windows import Pixels, picture, shots
from nemo_mm_rank.schema import Modality

SETTINGS = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""What the library prefers to any pickle in the same folder."""
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class OpenClipEncoder(TwoTowers):
    """Embeds text, images and videos (frame by frame) with a model of OpenCLIP.

    Args:
        path: a folder with ``open_clip_config.json``, or a name on the Hugging Face hub (of which only safetensors
            weights are fetched; with ``HF_HUB_OFFLINE=1`` the local cache is all there is). With ``checkpoint``, the
            library's own name of a model (``ViT-B-32``).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub.
        checkpoint: the library's own name of weights for the model ``path`` (``laion2b_s34b_b79k``).
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.
        batch_size: images of a forward pass; default: 16 on a CPU, 128 (or what the memory allows) elsewhere. A part of
            what decides the last bits, so it belongs to the configuration.
        frame_pooling: how a video's frames become one vector: their ``mean``, or their ``medoid``.

    Raises:
        ModelError: no such folder, model or checkpoint, or weights that are pickles.
    """

    modalities: frozenset[str] = frozenset({Modality.TEXT, Modality.IMAGE, Modality.VIDEO})

    def __init__(
        self,
        path: str,
        name: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        checkpoint: str | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        frame_pooling: str = "mean",
    ) -> None:
        library = require("open_clip", "models")
        folder = _folder(path, revision, checkpoint)
        super().__init__(name or path, folder_revision(folder), device, batch_size, frame_pooling)
        self._dtype = pick_dtype(dtype, device)
        place = f"local-dir:{folder}"
        with opening(path):
            self._model, self._transform = library.create_model_from_pretrained(
                place, precision=PRECISIONS[self._dtype], device=device
            )
            self._tokenizer: Any = library.get_tokenizer(place)
        self._model.eval()
        self.dim = self._embed_texts([""]).shape[1]

    @staticmethod
    def revision_of(path: str, revision: str | None = None, checkpoint: str | None = None, **_: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(_folder(path, revision, checkpoint))

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
        return {"pixels": self._transform(picture(part))[None]}

    def _media(self, batch: Features) -> torch.Tensor:
        embedded: torch.Tensor = self._model.encode_image(batch["pixels"].to(self._dtype))
        return embedded


def _folder(path: str, revision: str | None, checkpoint: str | None) -> Path:
    if checkpoint is not None:
        path = _hub_name(path, checkpoint)
    # What transformers reads of the same repository is the same weights once more.
    folder = resolve(path, revision, ignore=["model*.safetensors"])
    _refuse_code(folder, path)
    return folder


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

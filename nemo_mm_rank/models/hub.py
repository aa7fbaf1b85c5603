"""What all models have in common whose weights lie in a folder or on the hub: arguments, files, how they are opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from nemo_mm_rank.errors import ModelError, require
from nemo_mm_rank.models.weights import folder_revision, load_pretrained, load_processor, pick_dtype, resolve


@dataclass(eq=False)
class HubModel:
    """A model of a library, its weights in a folder or on the hub; the arguments of a class are its fields.

    Args:
        path: a local folder, or a name on the Hugging Face hub (of which only safetensors weights are fetched; with
            ``HF_HUB_OFFLINE=1`` the local cache is all there is).
        name: what the configuration calls it; default: ``path``.
        device: where it runs.
        revision: branch, tag or commit on the hub. Once the model is made, what its weights are.
        dtype: ``float32``, ``bfloat16`` or ``float16``; default: float32 on a CPU, bfloat16 elsewhere.

    Attributes:
        modalities: that it takes.

    Raises:
        ModelError: no such folder or model, weights that are pickles or incomplete, or another kind of model.
    """

    path: str
    name: str = ""
    device: str = "cpu"
    revision: str = ""
    dtype: str | None = None
    trust_remote_code: bool = field(default=False, init=False)
    """Whether code that comes with the model is run; an argument of the classes that say so."""
    batch_size: int | None = field(default=None, init=False)

    modalities: frozenset[str] = field(init=False)

    _library_name: ClassVar[str] = "transformers"
    _unread: ClassVar[Sequence[str]] = ()
    """Patterns of files on the hub that are the same weights once more, for other libraries."""

    def __post_init__(self) -> None:
        """Find the model; a subclass loads it."""
        arguments = dict(vars(self))
        self._library: Any = require(self._library_name, "models")
        self._folder = self._find(**arguments)
        self.revision = folder_revision(self._folder)
        self.name = self.name or self.path
        self._device = torch.device(self.device)
        self._dtype = pick_dtype(self.dtype, self.device)

    @classmethod
    def revision_of(cls, path: str, **arguments: Any) -> str:
        """Return the revision of the model that these arguments name, without loading it."""
        return folder_revision(cls._find(path, **arguments))

    @classmethod
    def _find(cls, path: str, revision: str | None = None, trust_remote_code: bool = False, **_: Any) -> Path:
        """Return the folder of the model that these arguments name."""
        return resolve(path, revision or None, cls._unread, trust_remote_code)

    def _load(self, model_class: Any) -> Any:
        """Return the model by a class of transformers, ready to run."""
        return load_pretrained(model_class, self._folder, self.path, self.device, self._dtype, self.trust_remote_code)

    def _load_processor(self, kind: Any) -> Any:
        """Return the model's processor or tokenizer by a class of transformers."""
        return load_processor(kind, self._folder, self.path, self.trust_remote_code)

    def _load_chat_processor(self, kind: Any) -> Any:
        """Return the processor of a model that is asked by a chat.

        Raises:
            ModelError: it has no template for one.
        """
        processor = self._load_processor(kind)
        if getattr(processor, "tokenizer", None) is None or not getattr(processor, "chat_template", None):
            kind_name = type(processor).__name__
            raise ModelError(f"{self.path}: {kind_name} has no chat template, so it cannot be asked for a description")
        return processor

    def _rows(self, on_cpu: int, elsewhere: int) -> int:
        """Return the rows of a batch: ``batch_size``, or what is usual on the device."""
        if self.batch_size is None:
            return on_cpu if self._device.type == "cpu" else elsewhere
        if self.batch_size < 1:
            raise ModelError(f"batch_size must be at least 1, not {self.batch_size}")
        return self.batch_size

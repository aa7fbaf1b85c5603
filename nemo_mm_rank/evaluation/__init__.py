"""Geometry of embedding spaces, what a selection is worth, and noise of known truth to measure it with."""

from typing import TYPE_CHECKING, Any

from nemo_mm_rank.evaluation.geometry import average_precision, matched_gap, modality_gap, recall_at_k

if TYPE_CHECKING:
    from nemo_mm_rank.evaluation.planting import PlantSettings, plant

__all__ = ["PlantSettings", "average_precision", "matched_gap", "modality_gap", "plant", "recall_at_k"]


def __getattr__(name: str) -> Any:
    """Import planting at first use: it decodes media, which those who measure vectors need not be able to."""
    if name in ("plant", "PlantSettings"):
        from nemo_mm_rank.evaluation import planting

        return getattr(planting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

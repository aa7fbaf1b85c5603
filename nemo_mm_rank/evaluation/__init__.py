"""Geometry of embedding spaces, measured on pairs that no fit has seen."""

from nemo_mm_rank.evaluation.geometry import average_precision, matched_gap, modality_gap, recall_at_k

__all__ = ["average_precision", "matched_gap", "modality_gap", "recall_at_k"]

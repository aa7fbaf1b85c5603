"""What is measured of embeddings and of selections: gaps, recall, precision, and how sure a figure is."""

from nemo_mm_rank.measures.geometry import average_precision

__all__ = ["average_precision"]

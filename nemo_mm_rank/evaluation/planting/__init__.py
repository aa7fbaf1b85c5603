"""Noise with known truth: a copy of a real pool in which some pairs are spoilt, and a table that says which and how."""

from nemo_mm_rank.evaluation.planting.plant import Planted, plant
from nemo_mm_rank.evaluation.planting.settings import Kind, PlantSettings

__all__ = ["Kind", "PlantSettings", "Planted", "plant"]

"""Noise with known truth: a copy of a real pool in which some pairs are spoilt, and a table that says which and how."""

from nemo_mm_rank.evaluation.planting.plan import Plan, Short, make_plan
from nemo_mm_rank.evaluation.planting.plant import Planted, plant
from nemo_mm_rank.evaluation.planting.settings import Kind, PlantSettings

__all__ = ["Kind", "Plan", "PlantSettings", "Planted", "Short", "make_plan", "plant"]

"""Noise with known truth: a copy of a real pool in which some pairs are spoilt, and a table that says which and how."""

from __future__ import annotations

from nemo_mm_rank.benchmark.planting.plan import Kind, Plan, PlantSettings, Short, make_plan
from nemo_mm_rank.benchmark.planting.plant import Planted, plant

__all__ = ["Kind", "Plan", "PlantSettings", "Planted", "Short", "make_plan", "plant"]

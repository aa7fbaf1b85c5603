"""The demo of EcoDatum's authors: stored scores, their labels, their model, and the ten pairs that they chose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nemo_mm_rank.quality import LabelingFunction

FILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "ecodatum_demo.json"

FUNCTIONS = (
    LabelingFunction("blurry_score", 0.29 - 0.01, np.inf, (0,)),
    LabelingFunction("odd_aspect_ratio_score", 0.33, 0.33, (0,)),
    LabelingFunction("image_text_similarity", 0.21 - 0.02, 0.21 + 0.02),
    LabelingFunction("english", 1.0, 1.0, (0,)),
    LabelingFunction("hclip_image_text_similarity", 0 - 0.02, 0 + 0.02),
    LabelingFunction("vclip_image_text_similarity", 0 - 0.02, 0 + 0.02),
    LabelingFunction("icc_score", 0.035 - 0.03, 0.035),
    LabelingFunction("boxes", 0, 5),
)
"""The authors' constants, in the order of their label model."""


@dataclass(frozen=True)
class Demo:
    values: dict[str, Any]

    @cached_property
    def scores(self) -> pd.DataFrame:
        operators = [row["operators"] for row in self.values["rows"]]
        frame = pd.DataFrame(operators)
        frame["english"] = [float(one["lang"] == "en" and one["lang_score"] > 0) for one in operators]
        frame["boxes"] = [sum(score > 0.3 for score in one["gdino_scores"]) for one in operators]
        return frame

    @cached_property
    def votes(self) -> np.ndarray:
        names = self.values["label_model"]["lfs"]
        return np.array([[row["labels"][name] for name in names] for row in self.values["rows"]], dtype=np.int8)

    @property
    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.values["label_model"]
        return found

    @cached_property
    def quality(self) -> np.ndarray:
        return np.array([row["score"] for row in self.values["rows"]])

    @cached_property
    def selected(self) -> set[int]:
        return {row["index"] for row in self.values["rows"] if row["selected_by_authors"]}


def demo() -> Demo:
    if not FILE.exists():
        pytest.skip("the shared folder with the authors' demo does not lie beside this checkout")
    return Demo(json.loads(FILE.read_text()))

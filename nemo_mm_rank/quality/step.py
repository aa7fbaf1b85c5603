"""Curator's filters as a step: adds what each says of the annotation, and the keys by which duplicates are found."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import PairError, require
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io.digest import file_digest
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.quality.filters import LANGUAGE, rules
from nemo_mm_rank.quality.minhash import band_keys
from nemo_mm_rank.quality.settings import TraditionalSettings
from nemo_mm_rank.schema import ANNOTATION
from nemo_mm_rank.steps import Added, Step

PREFIX = "traditional__"
"""How the names of all columns begin that this baseline adds."""

ROW_FILTERS_PASSED, MARGIN = f"{PREFIX}row_filters_passed", f"{PREFIX}margin"
LABEL = f"{PREFIX}{LANGUAGE}__label"
EXACT_KEY = f"{PREFIX}exact_key"


def score_column(name: str) -> str:
    """Name of the column with a filter's scores."""
    return f"{PREFIX}{name}"


def passed_column(name: str) -> str:
    """Name of the column that says whether a filter keeps the pair."""
    return f"{PREFIX}{name}__passed"


def band_columns(settings: TraditionalSettings) -> list[str]:
    """Names of the columns with the MinHash keys, one a band."""
    near = settings.near_duplicates
    return [] if near == "off" else [f"{PREFIX}band_{band:03d}" for band in range(near.bands)]


@dataclass
class TraditionalStep(Step):
    """Adds score and verdict of each of Curator's row filters, their number passed, the margin, and duplicates' keys.

    Judged is the annotation as it stands in the pool, for every modality: what SNS kept of it is not looked at, and
    neither is the data side, not even of text and code. Each distinct annotation of a frame is judged once.

    The margin is a number from 0 to below 1, higher for better: over the filters whose score is a share of the
    text's own size (or a probability), the sum of how far the score lies on the good side of its threshold
    (`filters.Rule.margin`), divided by one more than there are of them.

    Args:
        settings: which filters, and their thresholds.
    """

    settings: TraditionalSettings
    name: str = "traditional"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation."""
        return {ANNOTATION: pa.string()}

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """Per filter a score and a verdict, what they come to, and keys that are equal for duplicates."""
        columns: dict[str, pa.DataType] = {}
        for rule in rules(self.settings):
            columns[score_column(rule.name)] = pa.float64()
            if rule.name == LANGUAGE:
                columns[LABEL] = pa.string()
            columns[passed_column(rule.name)] = pa.bool_()
        columns |= {ROW_FILTERS_PASSED: pa.int32(), MARGIN: pa.float64()}
        if self.settings.exact_duplicates:
            columns[EXACT_KEY] = pa.uint64()
        return columns | dict.fromkeys(band_columns(self.settings), pa.uint64())

    def setup(self, device: str | None = None) -> None:
        """Make the filters, and open the fastText file.

        Raises:
            UserError: Curator is not installed.
            ModelError: the file cannot be used.
        """
        if not hasattr(self, "_filters"):
            self._filters = [(rule, rule.load()) for rule in rules(self.settings)]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the filters: a fastText model cannot be sent."""
        return {key: value for key, value in self.__dict__.items() if key != "_filters"}

    def identity(self) -> dict[str, Any]:
        """Settings, Curator's version, and what the fastText file is."""
        require("nemo_curator", "curator")
        values = self.settings.model_dump(mode="json")
        if self.settings.language is not None:
            values["language"]["model"] = file_digest(self.settings.language.model)
        return {"step": self.name, "settings": values, "nemo_curator": version("nemo-curator")}

    def process(self, rows: Frame) -> Added:
        """Judge each distinct annotation, and give every row its verdict."""
        texts = annotation_texts(rows, MediaSettings(), use_spans=False)
        places: dict[str, int] = {}
        errors: dict[int, PairError] = {}
        index: list[int | None] = []
        for row, text in enumerate(texts):
            if isinstance(text, str):
                index.append(places.setdefault(text, len(places)))
            else:
                errors[row] = text
                index.append(None)
        taken = pa.array(index, pa.int64())
        return Added({name: column.take(taken) for name, column in self._judge(list(places)).items()}, errors)

    def _judge(self, texts: list[str]) -> dict[str, pa.Array]:
        """Return this step's columns for distinct texts."""
        columns: dict[str, pa.Array] = {}
        passed_count = np.zeros(len(texts), dtype=np.int32)
        margin, ratios = np.zeros(len(texts)), 0
        for rule, document_filter in self._filters:
            said = [document_filter.score_document(text) for text in texts]
            passed = np.array([document_filter.keep_document(score) for score in said], dtype=bool)
            if rule.name == LANGUAGE:  # Curator writes "[confidence, 'label']", so that any engine can carry it
                pairs = [ast.literal_eval(score) for score in said]
                columns[LABEL] = pa.array([label for _, label in pairs], pa.string())
                said = [confidence for confidence, _ in pairs]
            scores = np.array(said, dtype=np.float64)
            columns |= {score_column(rule.name): pa.array(scores), passed_column(rule.name): pa.array(passed)}
            passed_count += passed
            if rule.is_ratio:
                margin += np.where(passed, rule.margin(scores), 0.0)  # certain of the wrong language is no merit
                ratios += 1
        columns |= {ROW_FILTERS_PASSED: pa.array(passed_count), MARGIN: pa.array(margin / (ratios + 1))}
        return columns | self._keys(texts)

    def _keys(self, texts: list[str]) -> dict[str, pa.Array]:
        columns: dict[str, pa.Array] = {}
        if self.settings.exact_duplicates:
            columns[EXACT_KEY] = pa.array(pd.util.hash_array(np.array(texts, dtype=object), categorize=False))
        if self.settings.near_duplicates != "off":
            keys = band_keys(texts, self.settings.near_duplicates)
            names = band_columns(self.settings)
            columns |= {name: pa.array(np.ascontiguousarray(keys[:, band])) for band, name in enumerate(names)}
        return columns

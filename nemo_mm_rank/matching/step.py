"""The matcher, applied to one partition."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nemo_mm_rank import frames, schema
from nemo_mm_rank.config import MediaSettings, ModelSpec
from nemo_mm_rank.errors import PairError
from nemo_mm_rank.frames import Frame, Vectors
from nemo_mm_rank.io.files import folder_digest
from nemo_mm_rank.matching.features import Pairs
from nemo_mm_rank.matching.matcher import BANKS, JUDGES, Matcher
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.expert import load_encoder
from nemo_mm_rank.models.sentences import Spoken
from nemo_mm_rank.steps import Added, Step, by_value
from nemo_mm_rank.vectors import take


class MatchStep(Step):
    """Adds how likely each pair's annotation is its data's own, and the sentence that is the least likely.

    Args:
        folder: where `Matcher.save` wrote.
        models: the configuration's models by name; the anchor embeds sentences.
        media: bounds on texts.
    """

    name = "match"

    def __init__(self, folder: str | Path, models: Mapping[str, ModelSpec], media: MediaSettings | None = None) -> None:
        self.folder, self.models, self.media = str(folder), dict(models), media or MediaSettings()
        matcher = _load(self.folder, _digest(self.folder))
        self.spaces, self.anchor = matcher.spaces, matcher.anchor
        self._device = "cpu"

    @property
    def requires(self) -> Mapping[str, pa.DataType]:
        """The annotation, the modality, and both sides' embeddings."""
        columns = [name for one in self.spaces for name in (one.data, schema.annotation_column(one.model))]
        return {schema.ANNOTATION: pa.string(), schema.MODALITY: pa.string(), **dict.fromkeys(columns, schema.VECTOR)}

    @property
    def uses(self) -> tuple[str, ...]:
        """What SNS kept of the annotation."""
        return (schema.ANNOTATION_SPANS,)

    @property
    def provides(self) -> Mapping[str, pa.DataType]:
        """The chances, the lowest cosine of a sentence with the fused data, and the least likely sentence."""
        chances = dict.fromkeys((schema.MATCH, schema.MATCH_WHOLE, schema.MATCH_SENTENCE), pa.float64())
        return {**chances, schema.WEAKEST: pa.float32(), schema.WEAKEST_SENTENCE: pa.string()}

    def setup(self, device: str | None = None) -> None:
        """Load the anchor (nothing happens where this process has it)."""
        self._device = loader.pick_device(device)
        load_encoder(self.anchor, self.models, self._device)

    def identity(self) -> dict[str, Any]:
        """A digest of what was fitted, and the model with its revision."""
        models = loader.identities({self.anchor: self.models[self.anchor]})
        return {"step": self.name, "matcher": _digest(self.folder), "models": models}

    def process(self, rows: Frame) -> Added:
        """Judge ``rows``, modality by modality; a pair without an annotation that can be read fails."""
        matcher = _load(self.folder, _digest(self.folder))
        encoder = load_encoder(self.anchor, self.models, self._device)
        texts = annotation_texts(rows, self.media)
        errors: dict[int, PairError] = {row: text for row, text in enumerate(texts) if isinstance(text, PairError)}
        annotations = ["" if row in errors else str(text) for row, text in enumerate(texts)]
        pairs = pairs_of(rows, matcher, self._device)
        found = {
            name: np.full(len(rows), np.nan)
            for name in (schema.MATCH, schema.MATCH_WHOLE, schema.MATCH_SENTENCE, schema.WEAKEST)
        }
        said = np.full(len(rows), None, dtype=object)
        for modality, positions in by_value([str(name) for name in frames.strings(rows, schema.MODALITY)]).items():
            mine = np.array([row for row in positions if row not in errors], dtype=np.int64)
            own, sides = [annotations[row] for row in mine.tolist()], _rows(pairs, mine)
            spoken = Spoken.of(own, encoder)
            chances = matcher.judge(modality, own, sides, spoken)
            found[schema.MATCH][mine], found[schema.MATCH_WHOLE][mine] = chances.both, chances.whole
            found[schema.MATCH_SENTENCE][mine] = chances.sentence
            cosines = spoken.cosines(sides.data[matcher.spaces[0].name])
            owners, lowest = spoken.lowest(cosines)
            found[schema.WEAKEST][mine[owners]] = cosines[lowest]
            owners, lowest = spoken.lowest(np.where(np.isnan(chances.likely), cosines, chances.likely))
            several = np.bincount(spoken.owner, minlength=len(own))[owners] > 1
            sentences = np.array(spoken.texts, dtype=object)
            said[mine[owners[several]]] = sentences[spoken.place[lowest[several]]]
        columns: dict[str, pa.Array | Vectors] = {
            name: pa.array(values, dtype, from_pandas=True)
            for (name, values), dtype in zip(found.items(), self.provides.values(), strict=False)
        }
        return Added({**columns, schema.WEAKEST_SENTENCE: pa.array(said, pa.string())}, errors)


def pairs_of(rows: Frame, matcher: Matcher, device: str = "cpu") -> Pairs:
    """Return both sides of a frame's pairs, in the spaces of a matcher."""
    return Pairs(
        {one.name: frames.vectors(rows, one.data, device) for one in matcher.spaces},
        {
            model: frames.vectors(rows, schema.annotation_column(model), device)
            for model in dict.fromkeys([matcher.anchor, *(one.model for one in matcher.spaces)])
        },
    )


def _rows(pairs: Pairs, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Pairs:
    return Pairs(
        {name: take(column, rows) for name, column in pairs.data.items()},
        {name: take(column, rows) for name, column in pairs.annotations.items()},
    )


@lru_cache(maxsize=2)
def _load(folder: str, digest: str) -> Matcher:
    # The digest is part of the key so that a folder that was written anew is read anew.
    return Matcher.load(folder)


def _digest(folder: str) -> str:
    return folder_digest(folder, (JUDGES, BANKS), "matcher")

"""The words of a pair: its modalities, its canonical columns, and the few columns that steps add for each other."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa


class Modality(StrEnum):
    """The names of the built-in modalities: what the data side of a pair is made of. The annotation is always text."""

    TEXT = "text"
    CODE = "code"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"


PAIR_ID, POOL, MODALITY, DATA, ANNOTATION = "pair_id", "pool", "modality", "data", "annotation"

CANONICAL: dict[str, pa.DataType] = {name: pa.string() for name in (PAIR_ID, POOL, MODALITY, DATA, ANNOTATION)}

DATA_BYTES = "data_bytes"
"""Optional: media content carried in the row itself (binary); ``data`` is then only its name."""

DATA_PARTS = "data_parts"
"""Optional: the parts of data that has several, one of each modality, in the order of `modality.names`; null for any
other. ``modality`` is then `modality.combined`, and ``data`` the parts' own, line by line, for people and to tell pairs
apart."""

PARTS = pa.list_(pa.struct([("modality", pa.string()), ("data", pa.string())]))

SOURCE_RECORD = "source_record"
"""Optional: the record of another format that the row was made of, as it was written (string)."""

SOURCE_MEDIA, SOURCE_CONTENTS = "source_media", "source_contents"
"""Optional: all media of a row in their order (`PARTS`), of which the data has the first of each modality; and where
the row has several and carries some, the content of each (`CONTENTS`), null for one that is a file."""

CONTENTS = pa.list_(pa.binary())

MEDIA_ROOT = "media_root"
"""Optional: the folder or URL that this row's media reference is relative to (string); on further lines, folders that
it may lead to besides."""

WHERE = (DATA_BYTES, DATA_PARTS, SOURCE_MEDIA, SOURCE_CONTENTS, MEDIA_ROOT)
"""Columns that say where a row's media are, beside the canonical ones."""

ERROR = "error"
"""Why a pair left the run: ``step: ErrorClass: message`` (string, null for a live pair)."""

VECTOR = pa.list_(pa.float32())
"""A column of embeddings. A plain list, not a fixed-size one: cuDF knows only lists, rows without an embedding
take no space, and a step can say what it provides before any model is loaded."""

SPANS = pa.list_(pa.list_(pa.float64()))
"""Kept parts of one side: ``[start, end]`` in characters or seconds, or ``[x, y, w, h]`` in pixels; null = whole. Of
data of several parts the number of the part, from 0, goes before; a part that no span is of is whole."""


def data_column(expert: str, model: str | None = None) -> str:
    """Name of the column with an expert's data embeddings (a fusion expert has one for each of its models)."""
    return f"emb_data__{expert}" if model is None else f"emb_data__{expert}__{model}"


def annotation_column(model: str) -> str:
    """Name of the column with the annotations' embeddings by the text side of ``model``."""
    return f"emb_annotation__{model}"


def description_column(expert: str) -> str:
    """Name of the column with what a text-based expert's describers said of the data (string, null for text)."""
    return f"description__{expert}"


EMBEDDING = "emb_"
"""How the names of all columns of embeddings begin."""
FUSED = "emb_fused"
MATCH, MATCH_WHOLE, MATCH_SENTENCE = "match_probability", "match_whole", "match_sentence"
"""How likely the annotation is the data's own (float64 in (0, 1], 1 where that cannot be told): the lesser of the
chances that the whole annotation is not another pair's, and that none of its sentences is."""

WEAKEST, WEAKEST_SENTENCE = "weakest", "weakest_sentence"
"""The lowest cosine of the fused data with a sentence of the annotation (float32 in [-1, 1]); and the sentence that is
the least likely its data's own (string, null where there is only one)."""

DATA_SPANS, ANNOTATION_SPANS, SNS_REASON = "sns_data_spans", "sns_annotation_spans", "sns_reason"


AGREEMENT = "agreement_score"
"""Cosine of the fused data with its own annotation, out of sample (float32 in [-1, 1])."""


LEAST_CHANCE = 0.03
"""The least chance: features alone prove nothing beyond that."""

"""Between Curator's interleaved documents and pairs: images with the text beside them, and a filter of such images."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from nemo_curator.stages.interleaved.stages import BaseInterleavedFilterStage
from nemo_curator.stages.interleaved.utils import materialize_task_binary_content
from nemo_curator.tasks import InterleavedBatch

from nemo_mm_rank.curator.pairs import Bridge, Found, PairsStage
from nemo_mm_rank.curator.scorer import Scorer
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.media.source import OUTSIDE, Roots, is_url
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, ERROR, PAIR_ID, Modality

_TEXT, _IMAGE = "text", "image"
_GONE = ("modality", "text_content", "binary_content", "source_ref", "materialize_error")
_KEPT = ("sample_id", "position", "content_type")


def interleaved_rows(frame: pd.DataFrame) -> Found:
    """Return the images of interleaved documents as rows, each with the text before it and the text after it.

    >>> sea = {"sample_id": "a", "position": 0, "modality": "text", "text_content": "The sea.", "binary_content": None}
    >>> image = {"sample_id": "a", "position": 1, "modality": "image", "text_content": None, "binary_content": b"..."}
    >>> rows = interleaved_rows(pd.DataFrame([image, sea])).columns
    >>> rows["pair_id"], rows["annotation"]
    (['a:1'], ['The sea.'])

    Args:
        frame: rows of `InterleavedBatch`, in whatever order, with the content of images.
    """
    ordered = frame.reset_index(drop=True).sort_values(["sample_id", "position"], kind="stable")
    said = ordered["text_content"].where(ordered["modality"] == _TEXT).astype(object)
    said = said.where(said.map(lambda text: isinstance(text, str) and bool(text.strip())), None)
    by_sample = said.groupby(ordered["sample_id"], sort=False)
    before, after = by_sample.ffill(), by_sample.bfill()
    images = np.flatnonzero(_of_images(frame))
    rows = frame.iloc[images]
    names = [
        None if pd.isna(sample) or pd.isna(position) else f"{sample}:{int(position)}"
        for sample, position in zip(rows["sample_id"], rows["position"], strict=True)
    ]
    beside = [[text for text in (before.get(row), after.get(row)) if isinstance(text, str)] for row in images]
    content = [value if isinstance(value, bytes) and value else None for value in rows["binary_content"]]
    columns: dict[str, Any] = {
        PAIR_ID: names,
        DATA: [name if there else None for name, there in zip(names, content, strict=True)],
        ANNOTATION: ["\n".join(texts) or None for texts in beside],
        DATA_BYTES: pa.array(content, pa.large_binary()),
        **{name: rows[name].to_list() for name in rows.columns if name not in _GONE},
    }
    found = Found(columns)
    errors = rows["materialize_error"] if "materialize_error" in rows.columns else [None] * len(rows)
    for row, (there, error) in enumerate(zip(content, errors, strict=True)):
        if there is None:
            found.faults[row] = (DATA, "the content of an image", error if isinstance(error, str) else "none")
    return found


def _of_images(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return which rows are images, ``(n,)``."""
    return np.array([isinstance(kind, str) and kind == _IMAGE for kind in frame["modality"]], dtype=np.bool_)


def materialised(task: InterleavedBatch, roots: Roots | None) -> pd.DataFrame:
    """Return the rows of ``task`` with the content of images, as far as what they refer to may be read.

    That is what the batch was read from, and what is below ``roots``.
    """
    frame: pd.DataFrame = task.to_pandas().reset_index(drop=True).copy()
    for name in ("text_content", "binary_content", "source_ref", "materialize_error"):
        frame[name] = (frame[name] if name in frame.columns else pd.Series([None] * len(frame))).astype(object)
    frame["binary_content"] = frame["binary_content"].where(frame["binary_content"].notna(), None)
    files = {str(file).partition("::")[0] for file in task._metadata.get("source_files") or ()}
    wanting = np.flatnonzero(_of_images(frame) & frame["binary_content"].isna().to_numpy())
    refused = {row: why for row in wanting.tolist() if (why := _refused(frame["source_ref"][row], files, roots))}
    pending = [row for row in wanting.tolist() if row not in refused]
    if pending:
        there = materialize_task_binary_content(
            InterleavedBatch(task.dataset_name, frame.iloc[pending], _metadata=task._metadata)
        ).to_pandas()
        frame.loc[pending, "binary_content"] = pd.Series(there["binary_content"].to_list(), pending, dtype=object)
        frame.loc[pending, "materialize_error"] = pd.Series(there["materialize_error"].to_list(), pending, dtype=object)
    frame.loc[list(refused), "materialize_error"] = pd.Series(refused, dtype=object)
    return frame


def _refused(reference: Any, files: Collection[str], roots: Roots | None) -> str | None:
    """Say why a ``source_ref`` is not followed, None where it is."""
    try:
        path = InterleavedBatch.parse_source_ref(reference)["path"]
    except (TypeError, ValueError):
        return f"a reference that cannot be read: {shown(reference)}"
    if not path:
        return "none"
    if path in files or (roots is not None and "://" not in path and roots.holder(os.path.realpath(path))):
        return None
    return f"{shown(path)}, which {OUTSIDE}"


@dataclass(kw_only=True, repr=False)
class InterleavedRows(Bridge):
    """How a stage reads interleaved documents: see `interleaved_rows` and `materialised`."""

    kind = InterleavedBatch
    modality = Modality.IMAGE

    def rows(self, tasks: Sequence[InterleavedBatch]) -> Found:
        """See `interleaved_rows`."""
        folders = [one for one in (self._source.root, *self._source.trusted_roots) if one and not is_url(one)]
        roots = Roots.of("\n".join(folders)) if folders else None
        frames = [materialised(task, roots) for task in tasks]
        return interleaved_rows(frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True))


@dataclass(kw_only=True, repr=False)
class InterleavedPairsStage(InterleavedRows, PairsStage):
    """Makes a pair of each image of interleaved documents: see `PairColumnsStage` for what comes out.

    Ids are ``sample_id:position``; documents without an image make no pair.
    """

    name: str = "interleaved_pairs"


@dataclass(kw_only=True, repr=False)
class InterleavedScoreFilterStage(InterleavedRows, Scorer, BaseInterleavedFilterStage):
    """Drops images of interleaved documents that have a low score with the text beside them; the score stays.

    Every row has the column of the score, null for texts. An image that cannot be scored stays, with the reason in the
    column ``error``; with ``quarantine``, it goes.

    Args:
        least: the least score of images that stay.
    """

    name: str = "interleaved_score_filter"
    least: float

    def process(self, task: InterleavedBatch) -> InterleavedBatch:
        """Return ``task`` without the images that score low.

        Raises:
            ConfigError: a task of another kind, or no such score.
        """
        self.validate_input(task)
        return BaseInterleavedFilterStage.process(self, task)

    def content_keep_mask(self, task: InterleavedBatch, df: pd.DataFrame) -> pd.Series[Any]:
        """Return which rows of ``df`` stay; it has the score afterwards."""
        given = InterleavedBatch(task.dataset_name, df, _metadata=task._metadata)
        table = self.scored([given])
        images = np.flatnonzero(_of_images(df))
        keep, scores = np.ones(len(df), dtype=bool), np.full(len(df), np.nan)
        errors = np.full(len(df), None, dtype=object)
        scores[images] = table[self.column].to_numpy()
        errors[images] = table[ERROR].to_pylist()
        failed = ~table[ERROR].is_null().to_numpy()
        keep[images] = np.where(failed, self.keeps_failed, scores[images] >= self.least)
        df[self.column] = scores
        if self.keeps_failed:
            df[ERROR] = errors
        return pd.Series(keep, index=df.index)

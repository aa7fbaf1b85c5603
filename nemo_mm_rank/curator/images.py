"""Between Curator's batches of images and pairs: into pairs, and back into images by their scores."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.tasks import ImageBatch, ImageObject

from nemo_mm_rank.curator.pairs import Bridge, Found, PairsStage, plain_value
from nemo_mm_rank.curator.scorer import Scorer
from nemo_mm_rank.errors import ConfigError, MediaError, UserError
from nemo_mm_rank.media.encode import png
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, ERROR, PAIR_ID, Modality


def image_rows(images: Sequence[ImageObject], caption: str, captions: Mapping[Any, str] | None = None) -> Found:
    """Return images as rows: pixels where there are any, otherwise the path; what ``metadata`` says as columns.

    >>> image_rows([ImageObject(image_path="a.jpg", image_id="a", metadata={"caption": "A gull."})], "caption").columns
    {'pair_id': ['a'], 'data': ['a.jpg'], 'annotation': ['A gull.'], 'aesthetic_score': [None], 'nsfw_score': [None]}

    Args:
        images: as any of Curator's stages leaves them.
        caption: the key of the caption in ``metadata``.
        captions: image id -> caption, instead.
    """
    ids, paths = ([plain_value(getattr(image, name)) for image in images] for name in ("image_id", "image_path"))
    said = [image.metadata if isinstance(image.metadata, Mapping) else {} for image in images]
    columns: dict[str, Any] = {
        PAIR_ID: ids,
        DATA: [path or (name if isinstance(name, str) else None) for path, name in zip(paths, ids, strict=True)],
        ANNOTATION: [one.get(caption) for one in said]
        if captions is None
        else [captions.get(name) if isinstance(name, Hashable) else None for name in ids],
        "aesthetic_score": [image.aesthetic_score for image in images],
        "nsfw_score": [image.nsfw_score for image in images],
    }
    found = Found(columns, vectors=[image.embedding for image in images])
    content: list[bytes | None] = []
    for row, image in enumerate(images):
        try:
            content.append(None if image.image_data is None else png(np.asarray(image.image_data)))
        except (MediaError, TypeError, ValueError) as error:
            content.append(None)
            found.faults[row] = (DATA, "pixels", str(error))
    if any(content):
        columns[DATA_BYTES] = pa.array(content, pa.large_binary())
    for key in dict.fromkeys(key for one in said for key in one):
        if key not in columns and (captions is not None or key != caption):
            columns[key] = [one.get(key) for one in said]
    return found


def read_column(file: str | Path, key: str, column: str, stage: str) -> dict[Any, Any]:
    """Return key -> value of a Parquet file, or of all those in a folder.

    Raises:
        UserError: there is none, it cannot be read, or it lacks a column.
    """
    path = Path(file).expanduser()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{stage}: {path}: the folder contains no Parquet files")
    known: dict[Any, Any] = {}
    for one in files:
        try:
            table = pq.ParquetFile(one).read([key, column])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{stage}: {one}: cannot be read: {' '.join(str(error).split())}") from error
        missing = [name for name in (key, column) if name not in table.column_names]
        if missing:
            raise UserError(f"{stage}: {one}: there is no column {', '.join(map(repr, missing))}")
        known |= zip(table[key].to_pylist(), table[column].to_pylist(), strict=True)
    return known


@dataclass(kw_only=True, repr=False)
class ImageRows(Bridge):
    """How a stage reads batches of images.

    Args:
        caption: the key of the caption in an image's ``metadata``.
        captions: a Parquet file, or a folder of them, to take captions from instead: the column ``caption``.
        captions_id: the column there that names the image, as ``image_id`` does.
    """

    kind = ImageBatch
    modality = Modality.IMAGE

    caption: str = "caption"
    captions: str | Path | None = None
    captions_id: str = "image_id"
    _captions: Mapping[Any, str] | None = field(default=None, init=False)

    def rows(self, tasks: Sequence[ImageBatch]) -> Found:
        """See `image_rows`."""
        if self.captions is not None and self._captions is None:
            self._captions = read_column(self.captions, self.captions_id, self.caption, self.name)
        return image_rows([image for task in tasks for image in task.data], self.caption, self._captions)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captions": None}


@dataclass(kw_only=True, repr=False)
class ImagePairsStage(ImageRows, PairsStage):
    """Makes pairs of Curator's batches of images: see `image_rows`, and `PairColumnsStage` for what comes out."""

    name: str = "image_pairs"


@dataclass(kw_only=True, repr=False)
class ImageKeepStage(ImageRows, Scorer):
    """Keeps images by a blend or by their score; what follows sees images, so `ImageWriterStage` can.

    The score goes into each image's ``metadata``; for one that cannot be scored, the reason does, as ``error``.

    Args:
        blend: keep what this names: the folder of a finished run, or Parquet with ``pair_id`` (of `BlendWriter`, say).
        run: score the images themselves, instead, as a finished run scored its own pairs.
        least: the least score; without it, all are kept that the blend names, or that can be scored.
    """

    name: str = "image_keep"
    blend: str | Path | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: neither a blend nor a run, or both.
        """
        if (self.blend is None) == (self.run is None):
            raise ConfigError(f"{self.name}: give either a blend or a run")
        if self.blend is not None:
            path = Path(self.blend).expanduser().absolute()
            self.blend = RunFolder(path).blend if RunFolder(path).blend.exists() else path
        super().__post_init__()

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Read the blend, or load the models.

        Raises:
            UserError: there is no such blend.
        """
        super().setup(worker_metadata)
        if self.blend is not None:
            self._chosen = read_column(self.blend, PAIR_ID, PAIR_ID if self.least is None else self.column, self.name)

    def process(self, task: ImageBatch) -> ImageBatch:
        """Return the images of ``task`` that are kept.

        Raises:
            ConfigError: a task of another kind.
        """
        self.validate_input(task)
        return ImageBatch(
            dataset_name=task.dataset_name,
            data=self._chosen_of(task) if self.blend is not None else self._good_of(task),
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )

    def _chosen_of(self, task: ImageBatch) -> list[ImageObject]:
        chosen = [image for image in task.data if image.image_id in self._chosen]
        return (
            chosen
            if self.least is None
            else [image for image in chosen if self._is_enough(self._chosen[image.image_id])]
        )

    def _good_of(self, task: ImageBatch) -> list[ImageObject]:
        table = self.scored([task])
        kept = []
        for image, score, error in zip(
            task.data, table[self.column].to_pylist(), table[ERROR].to_pylist(), strict=True
        ):
            if error is not None:
                image.metadata = {**(image.metadata or {}), ERROR: error}
            else:
                image.metadata = {**(image.metadata or {}), self.column: score}
            if self.keeps_failed if error is not None else self._is_enough(score):
                kept.append(image)
        return kept

    def _is_enough(self, score: float | None) -> bool:
        return score is not None and (self.least is None or score >= self.least)

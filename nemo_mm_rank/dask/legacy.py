"""The steps as modules of NeMo Curator 0.9, the last release on Dask: beside its own in a ``Sequential``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.config import Config, ModelSpec
from nemo_mm_rank.errors import require
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import table_digest, write_table
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.part_files import is_part, part_name
from nemo_mm_rank.matching import MatchStep
from nemo_mm_rank.models.loader import pick_device
from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.projection.step import Projection as Fitted
from nemo_mm_rank.projection.step import ProjectionStep
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.ranking.scoring import Scoring
from nemo_mm_rank.run.fits import read_sample
from nemo_mm_rank.run.outcome import quarantined
from nemo_mm_rank.schema import ERROR, MODALITY, PAIR_ID, POOL
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import Step

try:
    from nemo_curator.datasets import DocumentDataset
    from nemo_curator.modules.base import BaseModule
except ImportError as error:
    raise ImportError("this is for nemo-curator 0.9; for 1.4 and later there is nemo_mm_rank.curator") from error

_QUARANTINE = (PAIR_ID, POOL, MODALITY, ERROR)


class StepModule(BaseModule):  # type: ignore[misc]  # Curator 0.9 is not where types are checked
    """Any step as a module: adds the step's columns, partition by partition.

    A pair that fails keeps its row, with the reason in ``error``, and later steps pass it by; `Quarantine` takes such
    rows out. References to media are relative to the column ``media_root``, where there is one.

    Args:
        step: the step.
        input_backend: ``pandas`` or ``cudf`` to refuse the other.
    """

    def __init__(self, step: Step, input_backend: Literal["pandas", "cudf", "any"] = "any") -> None:
        super().__init__(input_backend=input_backend, name=step.name)
        self.step = step

    def call(self, dataset: DocumentDataset) -> DocumentDataset:
        """Return the dataset with the step's columns added; nothing is computed yet.

        Raises:
            MissingColumnError: naming the step and the columns that the dataset lacks.
        """
        collection = dataset.df
        frames.check_columns(collection, self.step.requires, self.name)
        return DocumentDataset(collection.map_partitions(self.step, meta=self.step.meta(collection._meta)))


class SNS(StepModule):
    """Trims pairs to the parts that support each other: `sns.step.SNSStep`."""

    def __init__(self, config: Config, models: Mapping[str, ModelSpec] | None = None) -> None:
        """Take everything from ``config``; ``models`` are its models with the statistics of a pool, for example."""
        super().__init__(SNSStep(config.sns, config.sns_expert, models or config.models, config.media))


class ExpertEmbedding(StepModule):
    """Embeds both sides of every pair with every expert: `experts.step.ExpertStep`."""

    def __init__(self, config: Config, models: Mapping[str, ModelSpec] | None = None) -> None:
        """Take everything from ``config``; ``models`` are its models with the statistics of a pool, for example."""
        super().__init__(ExpertStep(config.experts, models or config.models, config.anchor, config.media))


class Projection(StepModule):
    """Fuses the experts in one space: `projection.step.ProjectionStep`."""

    def __init__(self, config: Config, folder: str | Path) -> None:
        """Take the anchor from ``config``; ``folder`` is on a file system that all workers see.

        Raises:
            ModelError: nothing was fitted there (see `fit_projection`).
        """
        folder = Path(folder).absolute()  # workers may stand elsewhere
        super().__init__(ProjectionStep(folder, list(Fitted.load(folder).sources), config.anchor))


class Match(StepModule):
    """Adds how likely each annotation is its data's own: `matching.MatchStep`; a run's score needs it."""

    def __init__(self, config: Config, folder: str | Path, models: Mapping[str, ModelSpec] | None = None) -> None:
        """Take models from ``config`` or ``models``; ``folder`` is on a file system that all workers see.

        Raises:
            ModelError: nothing was fitted there.
        """
        super().__init__(MatchStep(Path(folder).absolute(), models or config.models, config.media))


class RankScore(StepModule):
    """Scores pairs against the queries in every space that holds text: `run.queries.QueryStep`."""

    def __init__(
        self,
        config: Config,
        models: Mapping[str, ModelSpec] | None = None,
        scoring: Scoring | None = None,
        examples: Sequence[Path] = (),
    ) -> None:
        """Take the queries from ``config``; with a run's ``scoring`` there is its ``score`` beside the cosines.

        ``examples`` are that run's files for queries by examples (`run.finished.FinishedRun.examples`).
        """
        super().__init__(QueryStep(config, models or config.models, scoring, examples))


class Quarantine(BaseModule):  # type: ignore[misc]
    """Takes the pairs that failed out of a dataset, into Parquet files like a run's ``quarantine.parquet``.

    A partition with such pairs writes one file, when it is computed; its name follows from what it holds, so that a
    partition that is computed twice writes it twice. Rows in = rows out + rows in the folder.

    Args:
        folder: on a file system that all workers see; better a new one, for nothing is removed from it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Check the folder.

        Raises:
            UserError: it is not ours to write.
        """
        super().__init__(input_backend="any", name="quarantine")
        self.folder = Claim("quarantine").check(folder)

    def call(self, dataset: DocumentDataset) -> DocumentDataset:
        """Return the dataset without the pairs that failed.

        Raises:
            MissingColumnError: naming the columns that the dataset lacks.
        """
        collection = dataset.df
        frames.check_columns(collection, dict.fromkeys(_QUARANTINE), self.name)
        return DocumentDataset(collection.map_partitions(_set_aside, self.folder, meta=collection._meta))


def _set_aside(frame: Frame, folder: Path) -> Frame:
    failed = quarantined(frames.to_table(frame[list(_QUARANTINE)]))
    if failed.num_rows:
        Claim("quarantine").make(folder)
        write_table(folder / f"{table_digest(failed)}.parquet", failed)
    return frame[frame[ERROR].isnull()]


@dataclass(frozen=True)
class Partitions:
    """The partitions of a dataset as shards, for what needs to see all pairs: a fit, or `ranking.rank`.

    One partition's columns are in memory at a time. Persist the dataset first, or write and read it again: otherwise
    whatever leads to a column is computed whenever it is read.

    Attributes:
        dataset: a ``DocumentDataset``.
    """

    dataset: Any

    @property
    def count(self) -> int:
        """Number of partitions."""
        return int(self.dataset.df.npartitions)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one partition; names that it does not have are left out."""
        collection = self.dataset.df
        wanted = [name for name in (collection.columns if columns is None else columns) if name in collection.columns]
        return frames.to_table(collection[wanted].get_partition(part).compute())


def fit_projection(dataset: DocumentDataset, config: Config, folder: str | Path) -> None:
    """Fit the projection on a bounded sample of a dataset that has been through `ExpertEmbedding`, and save it.

    See `Partitions` for what is computed.
    """
    sample = read_sample(Partitions(dataset), config)
    fit(sample, config.projection, config.seed, pick_device(config.engine.device)).save(Path(folder))


def write_parquet(dataset: DocumentDataset, folder: str | Path) -> None:
    """Write one Parquet file for each partition, each whole or not at all, that every reader opens.

    ``DocumentDataset.to_parquet`` notes the types of our columns of vectors and spans in a way that pandas, and so
    ``DocumentDataset.read_parquet``, cannot read again.

    Args:
        dataset: computed here, partition by partition.
        folder: on a file system that all workers see; what an earlier call has left there is replaced.

    Raises:
        UserError: the folder is not ours to write.
    """
    folder = Claim("batches").make(folder)
    dask = require("dask", "dask")
    write = dask.delayed(_write, pure=False)
    parts = {folder / part_name(number): part for number, part in enumerate(dataset.df.to_delayed())}
    dask.compute([write(path, part) for path, part in parts.items()])
    for stale in set(folder.glob("part-*.parquet")) - set(parts):
        if is_part(stale):
            mirror.unlink(stale)


def _write(path: Path, frame: Frame) -> None:
    table = frames.to_table(frame)
    write_table(path, table, {"rows": table.num_rows})

"""One training run by itself: what it learns from and is judged by, as a folder that other processes can take up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from nemo_mm_rank.config import MediaSettings, parse
from nemo_mm_rank.downstream.rows import Rows, read_rows, usable
from nemo_mm_rank.downstream.settings import VLMSettings
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.parquet import read_table, write_json, write_table
from nemo_mm_rank.run.store import Shards
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, DATA_PARTS, DATA_SPANS, MEDIA_ROOT, MODALITY, PAIR_ID

SHOWN = (PAIR_ID, MODALITY, DATA, DATA_BYTES, DATA_PARTS, MEDIA_ROOT, DATA_SPANS)
"""Columns that say what a pair's data is and where it lies."""

_ROWS, _RUN = "rows.parquet", "run.json"


@dataclass(frozen=True)
class Pairs(Rows):
    """Pairs by reference: media are opened when their turn comes.

    Attributes:
        table: the columns `SHOWN`, as far as there are any, of all rows.
        media: how media are opened.
    """

    table: pa.Table
    media: MediaSettings


def read_pairs(parts: Mapping[str, Shards], media: MediaSettings) -> Pairs:
    """Return the pairs of ``parts``, which are not opened."""
    rows = read_rows(parts, media)
    tables = [shards.read(number, SHOWN) for shards in parts.values() for number in range(shards.count)]
    return Pairs(rows.parts, rows.annotations, pa.concat_tables(tables, promote_options="default"), media)


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        table: the columns `SHOWN` and ``annotation``, as it is to be learnt, of the rows below.
        blend: rows to learn from.
        validation: rows to judge.
        settings: model, adapter, optimiser, steps.
        media: how media are opened.
        seed: of the adapter's weights, batches and dropout.
        skipped: rows of the blend without a usable annotation, which are left out.
    """

    table: pa.Table
    blend: list[int]
    validation: list[int]
    settings: VLMSettings
    media: MediaSettings
    seed: int
    skipped: int

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        annotations: Sequence[str | None],
        blend_rows: Sequence[int],
        validation_rows: Sequence[int],
        settings: VLMSettings,
        seed: int,
    ) -> Job:
        """Return the run on some rows of ``pairs``, with nothing of the others.

        Raises:
            UserError: no usable pair to learn from or to judge, or validation pairs in the blend.
        """
        blend, validation, skipped = usable(annotations, blend_rows, validation_rows)
        places = {row: place for place, row in enumerate(sorted({*blend, *validation}))}
        own = pa.array([annotations[row] for row in places], pa.string())
        return cls(
            pairs.table.take(pa.array(list(places), pa.int64())).append_column(ANNOTATION, own),
            [places[row] for row in blend],
            [places[row] for row in validation],
            settings,
            pairs.media,
            seed,
            skipped,
        )

    def save(self, folder: Path) -> None:
        """Write the job into a folder.

        Raises:
            UserError: the folder is not ours to write.
        """
        folder = Claim("training").make(folder)
        write_table(folder / _ROWS, self.table)
        values = {
            "blend": self.blend,
            "validation": self.validation,
            "settings": self.settings.model_dump(mode="json"),
            "media": self.media.model_dump(mode="json"),
            "seed": self.seed,
            "skipped": self.skipped,
        }
        write_json(folder / _RUN, values)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read a job back."""
        values = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        settings, media = parse(VLMSettings, values.pop("settings")), parse(MediaSettings, values.pop("media"))
        return cls(table=read_table(folder / _ROWS), settings=settings, media=media, **values)

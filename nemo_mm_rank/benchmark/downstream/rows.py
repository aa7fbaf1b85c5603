"""The pairs that a benchmark trains on and judges, several pools and trimmed variants of them, as one range of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from nemo_mm_rank import frames
from nemo_mm_rank.config import JobSettings, MediaSettings
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.frames import Frame
from nemo_mm_rank.media.rows import annotation_texts
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import ANNOTATION, ANNOTATION_SPANS, PAIR_ID
from nemo_mm_rank.steps import Step


@dataclass(frozen=True)
class Rows:
    """Pairs by row number, each part's one after the other.

    Attributes:
        parts: name -> pair ids of that part, in the order of its shards. The first part is the pool itself.
        annotations: of all rows, trimmed where the part's pairs are; None where there is none that is usable.
    """

    parts: dict[str, list[str]]
    annotations: list[str | None]

    def rows(self, part: str, pair_ids: Sequence[str] | None = None) -> list[int]:
        """Return the row numbers of some pairs of a part; default: of all.

        Raises:
            UserError: a pair that the part does not have.
        """
        places = self._places[part]
        try:
            return list(places.values()) if pair_ids is None else [places[pair_id] for pair_id in pair_ids]
        except KeyError as error:
            raise UserError(f"downstream: {part} has no pair {error}") from error

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        places: dict[str, dict[str, int]] = {}
        start = 0
        for part, pair_ids in self.parts.items():
            places[part] = {pair_id: start + row for row, pair_id in enumerate(pair_ids)}
            start += len(pair_ids)
        return places


def added(step: Step, parts: Mapping[str, ShardStore], folder: Path, engine: Engine, columns: Sequence[str]) -> Frame:
    """Return ``columns`` of all ``parts`` with what a step adds to them; what is there is taken.

    Args:
        step: of which an earlier run may have left the results.
        parts: name -> shards.
        folder: where the results are kept.
        engine: where the work is done.
        columns: the step's, or the parts' own.
    """
    quiet, lenient = Reporter(SafeConsole(quiet=True)), JobSettings(allow_failures=1)
    tables = []
    for part, shards in parts.items():
        job = Job(lenient, RunFolder(folder / part), engine, quiet)
        tables.append(job.take_through([step], shards).table(columns))
    return frames.from_table(pa.concat_tables(tables))


def read_rows(parts: Mapping[str, ShardStore], media: MediaSettings) -> Rows:
    """Return the pairs of ``parts`` with their annotations, the parts that SNS kept where it has been through."""
    pair_ids: dict[str, list[str]] = {}
    annotations: list[str | None] = []
    for name, shards in parts.items():
        frame = frames.from_table(shards.table([PAIR_ID, ANNOTATION, ANNOTATION_SPANS]))
        pair_ids[name] = [str(pair_id) for pair_id in frames.strings(frame, PAIR_ID)]
        annotations += [text if isinstance(text, str) else None for text in annotation_texts(frame, media)]
    return Rows(pair_ids, annotations)


def usable(
    annotations: Sequence[str | None], blend_rows: Sequence[int], validation_rows: Sequence[int]
) -> tuple[list[int], list[int], int]:
    """Return the rows of the blend that can be learnt from, those to judge, and how many of the blend are left out.

    The blend comes sorted: what it is worth does not depend on how it is ranked.

    Raises:
        UserError: none to learn from or to judge, a validation pair without annotation, or one in the blend.
    """
    blend = sorted(int(row) for row in blend_rows if annotations[row])
    validation = [int(row) for row in validation_rows if annotations[row]]
    for what, rows in (("the blend", blend), ("the validation set", validation)):
        if not rows:
            raise UserError(f"downstream: {what} has no pair with an annotation")
    if lacking := len(validation_rows) - len(validation):
        raise UserError(f"downstream: {lacking} validation pairs have no annotation")
    if shared := len({*blend} & {*validation}):
        raise UserError(f"downstream: {shared} validation pairs are in the blend")
    return blend, validation, len(blend_rows) - len(blend)

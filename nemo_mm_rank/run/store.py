"""The shards of a run on disk: each stage adds one Parquet file of new columns per shard, keyed by what made it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.errors import DamagedError, MissingColumnError
from nemo_mm_rank.frames import check_free
from nemo_mm_rank.io import mirror
from nemo_mm_rank.io.files import count_rows, read_note, read_schema, write_table
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.models import loader
from nemo_mm_rank.run.reasons import TRANSIENT, Reason
from nemo_mm_rank.schema import ANNOTATION_SPANS, DATA_SPANS, ERROR, MODALITY
from nemo_mm_rank.shards import Files
from nemo_mm_rank.steps import Step, columns_added


def digest(values: Any) -> str:
    """Return a short hexadecimal digest of JSON-able values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ShardStore:
    """The stages that have been through, first the pool itself: read together they are wide rows.

    Attributes:
        stages: folders of part files, row-aligned shard by shard.
        count: number of shards.
        since: what workers know a state of the stages by, whose mirrors they bring up to it (`as_of_now`).
    """

    stages: tuple[Path, ...]
    count: int
    since: str = field(default="", compare=False)

    def as_of_now(self) -> ShardStore:
        """Return these shards for workers, who look anew what is in a store; this process knows."""
        return replace(self, since=mirror.know(uuid4().hex))

    def look(self, *more: Path) -> None:
        """See that a worker's mirrors of the stages, and of some folders more, are as of `as_of_now`."""
        for folder in (*self.stages, *more):
            mirror.refresh_once(folder, self.since)

    def key(self, part: int) -> str:
        """Return the fingerprint of everything that led to this shard; "" where its last file is not there."""
        note = read_note(self.stages[-1] / part_name(part))
        return str(note["key"]) if note else ""

    @property
    def keys(self) -> list[str]:
        """The fingerprints of all shards."""
        return [self.key(part) for part in range(self.count)]

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard; each column from the last stage that has it. Unknown names are left out."""
        return Files((tuple(stage / part_name(part) for stage in self.stages),)).read(0, columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all shards as one table, which has to fit into memory; unknown names are left out."""
        tables = [self.read(part, columns) for part in range(self.count)]
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()

    def columns(self, part: int = 0) -> dict[str, pa.DataType]:
        """Return the columns of a shard (every other has the same), with their types."""
        types: dict[str, pa.DataType] = {}
        for stage in self.stages:
            schema = read_schema(stage / part_name(part))
            types.update(zip(schema.names, schema.types, strict=True))
        return types

    def rows(self, part: int) -> int:
        """Return the number of rows of a shard."""
        return count_rows(self.stages[0] / part_name(part))

    @property
    def pairs(self) -> int:
        """The number of rows of all shards."""
        return sum(map(self.rows, range(self.count)))

    def then(self, stage: Path) -> ShardStore:
        """Return these shards with one more stage."""
        return replace(self, stages=(*self.stages, stage))

    @property
    def pool(self) -> ShardStore:
        """These shards as they were before their first step."""
        return replace(self, stages=self.stages[:1])


@dataclass(frozen=True)
class Stage:
    """One step over all shards: what it reads, and where its files go. Callable for one shard, on any worker.

    Attributes:
        step: what is done.
        inputs: the shards as they are before it.
        folder: where the new columns go.
        identity: digest of what the step's result depends on besides its input.
        backend: ``pandas`` or ``cudf``.
        device: where its models run.
        again: shards in which pairs failed for whatever reason are done again.
    """

    step: Step
    inputs: ShardStore
    folder: Path
    identity: str
    backend: str = "pandas"
    device: str | None = None
    again: bool = False

    @property
    def name(self) -> str:
        """The step's name."""
        return self.step.name

    def key(self, part: int) -> str:
        """Return the fingerprint that this stage's file of a shard must carry to be taken as done."""
        return digest([self.identity, self.inputs.key(part)])

    def done(self, part: int) -> bool:
        """Whether the shard's file is there and was made from the same input in the same way.

        One in which pairs failed for what may pass counts as not done.
        """
        file = self.folder / part_name(part)
        # Of a store it is known what is there, and what is not is not asked for.
        note = read_note(file) if file.exists() else None
        if note is None or str(note.get("key")).partition(_FAILED)[0] != self.key(part):
            return False
        failed = _failed(note["counts"])
        return not failed if self.again else TRANSIENT not in failed

    def __call__(self, part: int) -> int:
        """Do one shard, unless it is done, and return its number of rows."""
        self.inputs.look(self.folder)
        if self.done(part):
            return self.inputs.rows(part)
        if self.again:
            loader.forget_failures()
        table = self.inputs.read(part, self._columns(part))
        if self.device is not None:
            self.step.device = self.device
        added = columns_added(self.step, table, self.backend)
        counts, key = count(table, added), self.key(part)
        if self.again or TRANSIENT in _failed(counts):
            # Where another start lets other pairs fail, what comes after is made anew as well.
            key += _FAILED + digest(added[ERROR].to_pylist())
        note = {"key": key, "counts": counts}
        write_table(self.folder / part_name(part), added, note)
        return int(table.num_rows)

    def _columns(self, part: int) -> list[str]:
        columns = self.inputs.columns(part)
        pool = read_schema(self.inputs.stages[0] / part_name(part)).names
        check_free(pool, self.step.provides, f"{self.step.name}, in the pool")
        missing = [name for name in self.step.requires if name not in columns]
        if missing:
            raise MissingColumnError(f"{self.step.name}: the shards lack {', '.join(map(repr, missing))}")
        return [
            name for name in dict.fromkeys((MODALITY, *self.step.requires, *self.step.uses, ERROR)) if name in columns
        ]


@dataclass(frozen=True)
class Chain:
    """Stages that a shard goes through one after the other. Callable for one shard, on any worker.

    Attributes:
        stages: each reads what the one before it wrote.
    """

    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """The steps' names."""
        return " + ".join(stage.name for stage in self.stages)

    def done(self, part: int) -> bool:
        """Whether all stages have done the shard."""
        return all(stage.done(part) for stage in self.stages)

    def __call__(self, part: int) -> int:
        """Take one shard through what is left to do, and return its number of rows."""
        return [stage(part) for stage in self.stages][-1]


_FAILED = ":"
"""In the key of a shard's file, before a digest of which pairs failed, and why."""


def _failed(counts: Mapping[str, Any]) -> set[str]:
    """Return the classes of errors that pairs failed with, as `count` has counted them."""
    return {name for entry in counts.values() for name in entry["quarantined"]}


def count(before: pa.Table, after: pa.Table) -> dict[str, dict[str, Any]]:
    """Return by modality: live rows in, rows trimmed, and rows newly quarantined by error class."""
    n = before.num_rows
    live = before[ERROR].is_null() if ERROR in before.column_names else pa.chunked_array([pa.array([True] * n)])
    failed = pc.and_(live, after[ERROR].is_valid())
    trimmed = pa.chunked_array([pa.array([False] * n, pa.bool_())])
    for spans in (DATA_SPANS, ANNOTATION_SPANS):
        if spans in after.column_names:
            trimmed = pc.or_(trimmed, after[spans].is_valid())
    counts: dict[str, dict[str, Any]] = {
        str(modality): {"in": 0, "trimmed": 0, "quarantined": Counter()}
        for modality in before[MODALITY].unique().to_pylist()
    }
    for what, mask in (("in", live), ("trimmed", pc.and_(live, trimmed))):
        for entry in before[MODALITY].filter(mask).value_counts().to_pylist():
            counts[str(entry["values"])][what] = entry["counts"]
    for modality, error in zip(
        before[MODALITY].filter(failed).to_pylist(), after[ERROR].filter(failed).to_pylist(), strict=True
    ):
        counts[str(modality)]["quarantined"][split_error(error)[1]] += 1
    return counts


LEAST = 20
"""Pairs of a modality that a step has to be given before it counts as one that fails for nearly all."""


@dataclass
class StepCounts:
    """Pairs that went through one step, by modality.

    Attributes:
        step: its name.
        rows: modality -> live pairs in.
        trimmed: modality -> pairs of which SNS kept a part.
        quarantined: modality -> error class -> pairs.
    """

    step: str
    rows: Counter[str] = field(default_factory=Counter)
    trimmed: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add one shard's counts, as its file's note has them."""
        for modality, entry in counts.items():
            self.rows[modality] += entry["in"]
            self.trimmed[modality] += entry["trimmed"]
            self.quarantined.setdefault(modality, Counter()).update(entry["quarantined"])

    @property
    def lost(self) -> int:
        """Pairs quarantined by this step."""
        return sum(sum(reasons.values()) for reasons in self.quarantined.values())

    def failed(self, modality: str) -> int:
        """Return how many pairs of a modality failed."""
        return sum(self.quarantined.get(modality, Counter()).values())

    def hopeless(self, most: float) -> list[str]:
        """Return the modalities for nearly all pairs of which the step failed: a share of ``most``; below 1."""
        enough = [modality for modality in self.quarantined if self.rows[modality] >= LEAST]
        return [modality for modality in enough if most < 1 and self.failed(modality) >= most * self.rows[modality]]

    def summary(self, modality: str, reason: Reason) -> str:
        """Return a part of a line on how many pairs of a modality failed, and the most frequent reason."""
        failed, rows = self.failed(modality), self.rows[modality]
        return f"{self.step} failed for {failed:,} of {rows:,} pairs of {modality}, most often: {reason}"

    @property
    def live(self) -> int:
        """How many pairs are left after it."""
        return sum(self.rows.values()) - sum(map(self.failed, self.quarantined))

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "step": self.step,
            "in": dict(sorted(self.rows.items())),
            "trimmed": dict(sorted((m, n) for m, n in self.trimmed.items() if n)),
            "quarantined": {m: dict(sorted(r.items())) for m, r in sorted(self.quarantined.items()) if r},
        }


def count_steps(shards: ShardStore) -> list[StepCounts]:
    """Read what every stage after the first left in its files' notes."""
    steps = []
    for stage in shards.stages[1:]:
        counts = StepCounts(stage.name.rpartition("-")[0])
        for part in range(shards.count):
            if (note := read_note(stage / part_name(part))) is None:
                raise DamagedError(stage / part_name(part))
            counts.add(note.get("counts", {}))
        steps.append(counts)
    return steps


def split_error(error: str) -> tuple[str, str, str]:
    """Return step, error class and message of a value of the ``error`` column."""
    step, kind, message = error.split(": ", 2)
    return step, kind, message

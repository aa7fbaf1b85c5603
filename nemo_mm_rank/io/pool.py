"""Pools as streams of checked pairs: from what the configuration names to canonical columns, batch by batch."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow, Seen
from nemo_mm_rank.io.canonical import PoolBatch, canonical
from nemo_mm_rank.io.clip_folder import clip_metas, clip_root, clip_rows
from nemo_mm_rank.io.formats import FORMATS, ROWS, converted
from nemo_mm_rank.io.formats.base import Format
from nemo_mm_rank.io.formats.conversations import CONVERSATIONS
from nemo_mm_rank.io.json_text import NOT_AN_OBJECT, json_object, why_not
from nemo_mm_rank.io.lance_rows import SUFFIX as LANCE
from nemo_mm_rank.io.lance_rows import is_lance, lance_rows
from nemo_mm_rank.io.manifest import KINDS, read_rows, split_suffix
from nemo_mm_rank.io.references import References
from nemo_mm_rank.io.rows import MAX_COLUMNS, MAX_LINE_BYTES, OTHER_FIELDS, Rows
from nemo_mm_rank.io.webdataset import tar_rows
from nemo_mm_rank.media.limits import within
from nemo_mm_rank.media.source import is_url, lacking
from nemo_mm_rank.modality import names
from nemo_mm_rank.schema import (
    AGREEMENT,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
    SOURCE_CONTENTS,
    SOURCE_MEDIA,
    SOURCE_RECORD,
    WEAKEST,
    WEAKEST_SENTENCE,
)

RESERVED = frozenset(
    {ERROR, MEDIA_ROOT, WEAKEST, WEAKEST_SENTENCE, SOURCE_CONTENTS, SOURCE_MEDIA, SOURCE_RECORD}
    | {AGREEMENT, "rank", "pool_rank", "score", "filters_passed", "reason"}
)
RESERVED_PREFIXES = (
    *("emb_", "sns_", "description__", "cosine__", "score_", "traditional__"),
    *("agreement__", "feedback__", "given__", "fingerprint__", "chance_", "match_"),
)
"""Names of columns that steps or the blend add; a pool's own go by `ORIGINAL` and their name."""

ORIGINAL = "original_"

SCORES = ".scores.jsonl"

DATASET_INFO = "dataset_info.json"


@dataclass(frozen=True)
class Manifest:
    """One manifest file of a pool.

    Attributes:
        file: local path or URL; of clips, the folder of their metadata.
        pool: name of the pool for rows that do not say.
        root: absolute folder or URL that references are relative to; on further lines, folders that are trusted, too.
        told: the entry of a ``dataset_info.json`` beside it that is for this file, as JSON.
    """

    file: str
    pool: str
    root: str
    told: str = "{}"


def manifests(source: PoolSource) -> list[Manifest]:
    """Find the manifests of a pool: the file itself, those of a folder, or what a glob matches.

    A folder's ``.json`` and ``.csv`` files are left alone, since they are rarely manifests, but for ``metadata.csv``
    and the metadata of clips that Curator has written (`io.clip_folder`). Where a folder has no manifest itself, it may
    be a Hugging Face data set: its Parquet files and ``metadata`` files are looked for below it. The pool bears the
    folder's name.

    Raises:
        PoolError: there is none, or a folder has WebDataset tars beside others, which may be about the same pairs.
    """
    path = os.path.expanduser(source.path)
    remote = is_url(path)
    try:
        files, named = within(source.download_seconds, lambda: _remote(path)) if remote else _local(path)
    except ImportError as error:
        raise PoolError(f"{source.path}: cannot be read: {lacking(path, error)}") from error
    except (OSError, ValueError) as error:
        raise PoolError(f"{source.path}: cannot be read: {' '.join(str(error).split())}") from error
    found = []
    for file in files:
        folder = file.rpartition("/")[0] if remote else os.path.dirname(os.path.abspath(file))
        told = "{}" if remote else json.dumps(_told(folder, os.path.basename(file)), sort_keys=True)
        folder = clip_root(file) if os.path.isdir(file) and not is_lance(file) else folder
        name = source.name or named or split_suffix(file)[0]
        found.append(Manifest(file, name, media_root(source.root or folder, source.trusted_roots), told))
    return found


def media_root(root: str, trusted: Sequence[str] = ()) -> str:
    """Return what a pair's `MEDIA_ROOT` says: the root, and trusted folders on further lines, all absolute."""
    folders = (root if is_url(root) else _absolute(root), *map(_absolute, trusted))
    return "\n".join(folders)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _told(folder: str, name: str) -> dict[str, Any]:
    """Return what LLaMA-Factory's list of data sets in a folder says of a file."""
    file = os.path.join(folder, DATASET_INFO)
    if not os.path.isfile(file) or os.path.getsize(file) > MAX_LINE_BYTES:
        return {}
    with open(file, "rb") as handle:
        try:
            entries = json_object(handle.read())
        except NOT_AN_OBJECT as error:
            raise PoolError(f"{file}: cannot be read: {why_not(error)}") from error
    found = (entry for entry in entries.values() if isinstance(entry, dict) and entry.get("file_name") == name)
    return next(found, {})


def _local(path: str) -> tuple[list[str], str | None]:
    if os.path.isfile(path):
        return [path], None
    if (metas := clip_metas(path)) is not None:
        return [metas], os.path.basename(os.path.abspath(path))
    if is_lance(path):
        return [path], os.path.basename(os.path.abspath(path)).removesuffix(LANCE)
    if os.path.isdir(path):
        files = [os.path.join(path, name) for name in os.listdir(path)]
        files = [file for file in files if os.path.isfile(file)]
        if not any(_is_manifest(file) for file in files):
            files = [file for file in glob.glob(os.path.join(path, "**"), recursive=True) if _is_of_a_data_set(file)]
        return _of_folder(path, files), os.path.basename(os.path.abspath(path))
    return _matching(path, glob.glob(path, recursive=True)), None


def _remote(path: str) -> tuple[list[str], str | None]:
    system, inner = url_to_fs(path)
    if split_suffix(path)[1] is not None and not glob.has_magic(path):
        return [path], None
    if glob.has_magic(path):
        return _matching(path, [system.unstrip_protocol(file) for file in system.glob(inner)]), None
    files = [system.unstrip_protocol(entry["name"]) for entry in system.ls(inner) if entry["type"] == "file"]
    return _of_folder(path, files), inner.rstrip("/").rpartition("/")[2]


def _of_folder(path: str, files: list[str]) -> list[str]:
    found = sorted(filter(_is_manifest, files))
    tars = {split_suffix(file)[0] for file in found if split_suffix(file)[1] == "tar"}
    if tars:  # beside its tars, img2dataset writes what became of each download
        found = [file for file in found if split_suffix(file)[1] != "parquet" or split_suffix(file)[0] not in tars]
    scores = {f"{os.path.splitext(file)[0]}{SCORES}" for file in files}
    found = [file for file in found if file not in scores]  # what `export` writes beside records of the pool's own
    if not found:
        raise PoolError(
            f"{path}: the folder contains no manifest (.jsonl, .ndjson, also .gz or .zst, .parquet or .tar)"
        )
    if len({split_suffix(file)[1] == "tar" for file in found}) > 1:
        raise PoolError(
            f"{path}: the folder contains .tar files and other manifests: say which to read, e.g. '{path}/*.tar'"
        )
    return found


def _is_manifest(file: str) -> bool:
    name = file.rsplit("/", 1)[-1]
    rarely = name.removesuffix(".gz").removesuffix(".zst").endswith((".json", ".csv")) and name != "metadata.csv"
    return split_suffix(name)[1] is not None and not rarely and not name.startswith((".", "_"))


def _is_of_a_data_set(file: str) -> bool:
    name = os.path.basename(file)
    return os.path.isfile(file) and _is_manifest(name) and (name.endswith(".parquet") or name.startswith("metadata."))


def _matching(path: str, files: list[str]) -> list[str]:
    found = sorted(file for file in files if split_suffix(file)[1])
    if not found:
        missing = "no such file or folder" if not glob.has_magic(path) else f"matches no manifest ({KINDS})"
        raise PoolError(f"{path}: {missing}")
    return found


def read_pools(
    pools: Sequence[PoolSource], check_files: bool = True, faults_as_rows: bool = False
) -> Iterator[PoolBatch]:
    """Stream the pools' pairs in the order of the manifests, with ids unique over all of them.

    Args:
        pools: read one after the other.
        check_files: see that every local media file is there (one ``stat`` a row).
        faults_as_rows: see `read_manifest`.

    Raises:
        PoolError: a manifest cannot be found or read, or a column's name is taken.
    """
    seen = Seen()
    for source in pools:
        for manifest in manifests(source):
            yield from read_manifest(manifest, source, seen, check_files, faults_as_rows)


def read_manifest(
    manifest: Manifest, source: PoolSource, seen: Seen, check_files: bool = True, faults_as_rows: bool = False
) -> Iterator[PoolBatch]:
    """Stream the pairs of one manifest; ids that are in ``seen`` are taken.

    Columns that have names which a run adds (those of an earlier run's blend, for example) are renamed.

    Args:
        manifest: a file.
        source: the pool that it is of.
        seen: ids of the run so far.
        check_files: see that every local media file is there.
        faults_as_rows: what ends the reading of a file (it is empty, breaks off, or is something else) counts as one
            bad row after those that could be read, so that it does not stop the other files.

    Raises:
        PoolError: the manifest cannot be read, or a column of the user's has a canonical name.
    """
    references = References(manifest.root, check_files, manifest.file)
    batches, among = _rows(manifest, source)
    batches = _whatever_can_be_read(manifest.file, batches) if faults_as_rows else batches
    yield from pairs_of(batches, source, manifest.pool, references, seen, json.loads(manifest.told), among)


def pairs_of(
    batches: Iterator[Rows],
    source: PoolSource,
    pool: str,
    references: References,
    seen: Seen,
    told: Mapping[str, Any] = MappingProxyType({}),
    among: Sequence[Format] = FORMATS,
) -> Iterator[PoolBatch]:
    """Yield rows as pairs, whatever format they are written in, wherever they are from.

    Args:
        batches: rows as they are read.
        source: the pool's configuration.
        pool: its name, for rows that do not say.
        references: opens what the rows refer to.
        seen: the ids of the run so far; those of these rows are added.
        told: what a ``dataset_info.json`` says of them.
        among: the formats that they may be written in.

    Raises:
        PoolError: a column of the user's has a canonical name.
    """
    for rows, form in converted(batches, source, pool, told, among):
        ours = {name: theirs for name, theirs in source.fields.items() if form is ROWS or name in (PAIR_ID, POOL)}
        named = source.model_copy(update={"fields": ours})  # a format has named the sides already
        yield replace(_freely_named(canonical(rows, named, pool, references, seen)), format=form)


def _rows(manifest: Manifest, source: PoolSource) -> tuple[Iterator[Rows], Sequence[Format]]:
    """Return what a manifest holds, and the formats that it may be written in."""
    if os.path.isdir(manifest.file) and is_lance(manifest.file):
        return lance_rows(manifest.file), FORMATS
    if os.path.isdir(manifest.file):
        return clip_rows(manifest.file, source), (ROWS,)
    if split_suffix(manifest.file)[1] == "tar":
        return tar_rows(manifest.file, source, manifest.pool, manifest.root), (ROWS, *CONVERSATIONS)
    return read_rows(manifest.file, source.download_seconds), FORMATS


def _freely_named(batch: PoolBatch) -> PoolBatch:
    """Return ``batch`` with those columns of the user's renamed that have names which a run adds."""
    taken = [name for name in batch.extras if name in RESERVED or name.startswith(RESERVED_PREFIXES)]
    if not taken:
        return batch
    renamed = {name: _free(name, batch.extras) for name in taken}
    extras = {renamed.get(name, name): column for name, column in batch.extras.items()}
    return replace(batch, extras=extras, renamed=renamed)


def _free(name: str, names: Collection[str]) -> str:
    free = ORIGINAL + name
    while free in names:
        free = ORIGINAL + free
    return free


def _whatever_can_be_read(file: str, batches: Iterator[Rows]) -> Iterator[Rows]:
    line = 0
    try:
        for rows in batches:
            line = max([line, *rows.lines[-1:].tolist(), *(bad.line for bad in rows.bad)])
            yield rows
    except PoolError as error:
        found = str(error).removeprefix(f"{file}: ").removeprefix("cannot be read: ")
        bad = BadRow(file, line + 1, "file", "a manifest that can be read to its end", found)
        yield Rows(file, np.zeros(0, np.int64), {}, (bad,))


@dataclass
class Report:
    """What was found.

    Attributes:
        rows_in: rows of the manifests that could be read.
        bad: how many of them are bad.
        bad_rows: those, by manifest and line; only so many as were to be kept.
        by_field: bad rows by the field at fault (``row``: cannot be read at all).
        counts: good rows by pool and modality.
        errors: one line for each manifest that cannot be read (to its end).
        formats: manifest -> what it was taken for, where that is not rows of pairs.
        renamed: columns whose names a run adds -> the names that they go by.
    """

    rows_in: int = 0
    bad: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    by_field: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every manifest can be read, every row is good, and there is one."""
        return not self.bad and not self.errors and self.rows_in > 0

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text, printable: unreadable manifests, bad rows, then the counts."""
        return map(printable, self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"error: {error}" for error in self.errors)
        yield from (f"{file}: {title}" for file, title in self.formats.items())
        yield from map(str, self.bad_rows)
        if self.bad > len(self.bad_rows):
            yield f"... and {self.bad - len(self.bad_rows):,} more bad rows"
        several = sorted({modality for _, modality in self.counts} - set(names()))
        modalities = [*names(), *several]
        table = [["pool", *modalities, "all"]]
        for pool in sorted({pool for pool, _ in self.counts}):
            numbers = [self.counts[pool, modality] for modality in modalities]
            table.append([printable(pool), *(f"{number:,}" for number in (*numbers, sum(numbers)))])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for name, *cells in table if self.counts else []:
            numbers_right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            yield "  ".join([name.ljust(widths[0]), *numbers_right])
        if self.renamed:
            yield "note: " + renamed_note(self.renamed)
        faults = ", ".join(f"{number:,} {name}" for name, number in sorted(self.by_field.items()))
        good = self.rows_in - self.bad
        yield f"{self.rows_in:,} rows: {good:,} good, {self.bad:,} bad" + (f" ({faults})" if faults else "")


def renamed_note(renamed: Mapping[str, str]) -> str:
    """Say which columns go by other names."""
    names = ", ".join(f"{name!r} as {new!r}" for name, new in sorted(renamed.items())[:5])
    more = f" and {len(renamed) - 5} more" if len(renamed) > 5 else ""
    return f"columns with names that nemo-mm-rank uses itself are kept under other names: {names}{more}"


def gathered_note() -> str:
    """Say where the columns are of a pool that has too many for a table."""
    return (
        f"the pool has more than {MAX_COLUMNS:,} columns; those that nemo-mm-rank does not use are "
        f"kept as JSON in {OTHER_FIELDS!r}"
    )


def validate(pools: Sequence[PoolSource], check_files: bool = True, most: int = 10_000) -> Report:
    """Read the pools and report everything that is wrong with them; only the pools' configuration can raise.

    Args:
        pools: checked as one run would, so that ids are unique over all of them.
        check_files: see that every local media file is there.
        most: how many bad rows are kept to be listed; all are counted.
    """
    report, seen = Report(), Seen()
    for source in pools:
        try:
            found = manifests(source)
        except PoolError as error:
            report.errors.append(str(error))
            continue
        for manifest in found:
            try:
                for batch in read_manifest(manifest, source, seen, check_files):
                    if batch.format is not ROWS:
                        report.formats[manifest.file] = batch.format.title
                    _count(report, batch, most)
            except PoolError as error:
                report.errors.append(str(error))
    return report


def _count(report: Report, batch: PoolBatch, most: int) -> None:
    report.rows_in += batch.rows_in
    report.bad += len(batch.bad)
    report.renamed |= batch.renamed
    report.bad_rows += batch.bad[: most - len(report.bad_rows)]
    report.by_field.update(row.field for row in batch.bad)
    groups = pa.table({name: batch.pairs[name] for name in (POOL, MODALITY)}).group_by([POOL, MODALITY])
    for row in groups.aggregate([([], "count_all")]).to_pylist():
        report.counts[row[POOL], row[MODALITY]] += row["count_all"]

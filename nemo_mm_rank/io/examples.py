"""Examples of what is wanted, read as pairs: a pool of them, media files without words, or texts without media."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import EmptyPoolError, PoolError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.ingest import BAD_ROWS, ingest
from nemo_mm_rank.io.manifest import split_suffix
from nemo_mm_rank.io.part_files import is_part
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.modality import by_extension
from nemo_mm_rank.schema import ANNOTATION, CANONICAL, DATA, MEDIA_ROOT, MODALITY, PAIR_ID, POOL, WHERE, Modality

MOST = 100_000
"""Examples of one query."""

Kind = Literal["pairs", "media", "texts"]


@dataclass(frozen=True)
class Found:
    """Examples as they were read.

    Attributes:
        kind: what they are made of: ``media`` have no annotation; ``texts`` are both sides of a pair at once.
        rows: in canonical columns.
        key: what they are told by: contents, and sizes and times of media.
        bad: rows that cannot be read.
    """

    kind: Kind
    rows: pa.Table
    key: Any
    bad: int = 0


def kind_of(source: PoolSource) -> Kind:
    """Return what a path holds, without reading it.

    Raises:
        PoolError: there is nothing of the name, or nothing in it that can be an example.
    """
    path = source.path
    if is_url(path) or not os.path.exists(path):
        manifests(source)
        return "pairs"
    if os.path.isfile(path) and path.lower().endswith(".txt"):
        return "texts"
    if next(_media(path), None) is None or (os.path.isdir(path) and _has_manifest(path)):
        manifests(source)
        return "pairs"
    return "media"


def read_examples(source: PoolSource) -> Found:
    """Read the examples of a query.

    Args:
        source: a pool, a media file or a folder of them (and of their folders), or a ``.txt`` with one text a line.

    Raises:
        PoolError: it cannot be read, holds no example, or more than `MOST`.
    """
    kind = kind_of(source)
    found = {"pairs": _pairs, "media": _files, "texts": _texts}[kind](source)
    if found.rows.num_rows > MOST:
        raise PoolError(f"{source.path}: {found.rows.num_rows:,} examples, where a query takes {MOST:,} at most")
    return found


def _pairs(source: PoolSource) -> Found:
    with tempfile.TemporaryDirectory(prefix="nemo-mm-rank-examples-") as folder:
        into = Path(folder) / "pool"
        try:
            report = ingest([source], into, on_bad_row="quarantine")
        except EmptyPoolError:
            bad = read_table(into / BAD_ROWS).slice(0, 1).to_pylist()
            why = f"; the first row: {bad[0]['message']}" if bad else ""
            raise PoolError(f"{source.path}: none of its examples can be read{why}") from None
        tables = [read_table(part) for part in sorted(into.iterdir()) if is_part(part)]
    rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    kept = [name for name in (*CANONICAL, *WHERE) if name in rows.column_names]
    return Found("pairs", rows.select(kept), list(report.digests), report.bad)


def _files(source: PoolSource) -> Found:
    root = source.path if os.path.isdir(source.path) else os.path.dirname(source.path)
    names = [os.path.relpath(path, root) for path in sorted(_media(source.path))]
    stamps = [os.stat(os.path.join(root, name)) for name in names]
    kinds = [source.modality or by_extension(_suffix(name)) for name in names]
    key = [[name, kind, at.st_size, at.st_mtime_ns] for name, kind, at in zip(names, kinds, stamps, strict=True)]
    roots = "\n".join([source.root or root, *source.trusted_roots])
    return Found("media", _table(names, kinds, names, None, source, roots), key)


def _texts(source: PoolSource) -> Found:
    try:
        lines = Path(source.path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PoolError(f"{source.path}: cannot be read: {' '.join(str(error).split())}") from error
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise PoolError(f"{source.path}: it contains no example; a text file has one example on each line")
    names = [f"line {number}" for number, _ in texts]
    data, modality = [text for _, text in texts], source.modality or str(Modality.TEXT)
    return Found("texts", _table(names, [modality] * len(data), data, data, source, ""), [modality, data])


def _table(
    names: list[str], kinds: list[Any], data: list[str], annotations: list[str] | None, source: PoolSource, root: str
) -> pa.Table:
    n = len(names)
    nothing: list[str | None] = [None] * n
    columns = {
        PAIR_ID: names,
        POOL: [source.name or split_suffix(os.path.basename(source.path))[0]] * n,
        MODALITY: kinds,
        DATA: data,
        ANNOTATION: annotations if annotations is not None else nothing,
        MEDIA_ROOT: [root] * n,
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _media(path: str) -> Iterator[str]:
    """Yield a media file, or those below a folder; hidden ones are passed by, and links to folders not followed."""
    if os.path.isfile(path):
        if by_extension(_suffix(path)) is not None:
            yield path
        return
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and by_extension(_suffix(name)) is not None:
                yield os.path.join(folder, name)


def _has_manifest(path: str) -> bool:
    names = (name for name in os.listdir(path) if not name.startswith((".", "_")))
    return any(split_suffix(name)[1] is not None and not name.endswith(".json") for name in names)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()

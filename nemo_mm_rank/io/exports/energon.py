"""Blends as Megatron Energon reads them: for each class of data a folder of tars with an index (``.nv-meta``).

A sample's ``json`` is its conversation; its media stand beside it, all of a modality under one extension, so that one
loader fits all samples. A ``metadataset.yaml`` blends the classes by their numbers of pairs.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import tarfile
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from nemo_mm_rank.errors import PairError, UserError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.export import Shards, jsonable
from nemo_mm_rank.io.exports.base import Export, Row, Settings, rows_of, talk_of, told
from nemo_mm_rank.io.exports.records import parts
from nemo_mm_rank.media.tar import walk
from nemo_mm_rank.modality import of
from nemo_mm_rank.schema import MODALITY, PAIR_ID

_META = ".nv-meta"
_TABLES = (
    "CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, "
    "sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER)",
    "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, "
    "content_byte_offset INTEGER, content_byte_size INTEGER)",
)
_INDICES = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts"
    "(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)


def _energon(blend: pa.Table, folder: Path, settings: Settings) -> None:
    classes = list(dict.fromkeys(blend[MODALITY].to_pylist()))
    for name in classes:
        mine = blend.filter(pc.equal(blend[MODALITY], name))
        _write_class(mine, folder / name, settings, name)
    counts = {name: pc.sum(pc.equal(blend[MODALITY], name)).as_py() for name in classes}
    _yaml(
        folder / "metadataset.yaml",
        {
            "__module__": "megatron.energon",
            "__class__": "MetadatasetV2",
            "splits": {"train": {"blend": [{"path": name, "weight": counts[name]} for name in classes]}},
        },
    )


def _write_class(blend: pa.Table, folder: Path, settings: Settings, modality: str) -> None:
    (folder / _META).mkdir(parents=True)
    names: list[str] = []

    def file(number: int) -> Path:
        names.append(f"blend-{number:06d}.tar")
        return folder / names[-1]

    with Shards(file, settings.max_samples, settings.max_bytes) as shards:
        for at, row in enumerate(rows_of(blend), 1):
            members = _members(row, settings)
            try:
                shards.add(f"{at:08d}", members)
            finally:
                for member in members.values():
                    member.close()
    counts = _index(folder, names)
    meta = folder / _META
    (meta / ".info.json").write_text(json.dumps({"energon_version": "7.4.1", "shard_counts": counts}, indent=2))
    _yaml(meta / "split.yaml", {"split_parts": {"train": names, "val": [], "test": []}, "exclude": []})
    _yaml(
        meta / "dataset.yaml",
        {"__module__": "megatron.energon", "__class__": "CrudeWebdataset", "subflavors": {"modality": modality}},
    )


def _members(row: Row, settings: Settings) -> dict[str, IO[bytes]]:
    """Return a sample: extension -> content."""
    talk = talk_of(row, settings)
    members: dict[str, IO[bytes]] = {}
    files: dict[str, list[str]] = {}
    for medium in talk.media:
        own = files.setdefault(medium.kind, [])
        usual = of(medium.kind).extensions.split()[0]
        name = usual if not own else f"{len(own) + 1}.{usual}"
        own.append(name)
        try:
            members[name] = medium.open(settings.media)
        except PairError as error:
            said = f"{shown(medium.reference)} {error}"
            raise UserError(f"pair {row[PAIR_ID]!r}: {said}; nothing was exported") from error
    waiting = {kind: iter(names) for kind, names in files.items()}
    system = [{"role": "system", "content": [{"type": "text", "text": talk.system}]}] if talk.system else []
    turns = [{"role": role, "content": parts(text, files, waiting)} for role, text in talk.turns]
    record = {"messages": [*system, *turns], **told(row)}
    members["json"] = BytesIO(json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False).encode())
    return members


def _samples(tar: Path) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """Yield the samples of a tar of ours: key, and parts by extension."""
    key, found = "", list[tuple[str, tarfile.TarInfo]]()
    with tar.open("rb") as file:
        for member in walk(file):
            own, _, extension = member.name.partition(".")
            if own != key and found:
                yield key, found
                found = []
            key = own
            found.append((extension, member))
    yield key, found


def _index(folder: Path, names: list[str]) -> dict[str, int]:
    """Write where each sample lies, as Energon looks it up; return how many each tar has."""
    counts: dict[str, int] = {}
    database = sqlite3.connect(folder / _META / "index.sqlite")
    for statement in _TABLES:
        database.execute(statement)
    for tar, name in enumerate(names):
        offsets, end = [], 0
        for at, (key, members) in enumerate(_samples(folder / name)):
            start, last = members[0][1].offset, members[-1][1]
            end = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            offsets.append(start)
            database.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", (tar, key, at, start, end - start))
            rows = [(tar, at, extension, member.offset_data, member.size) for extension, member in members]
            database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", rows)
        counts[name] = len(offsets)
        (folder / f"{name}.idx").write_bytes(struct.pack(f"<{len(offsets) + 1}Q", *offsets, end))
    for statement in _INDICES:
        database.execute(statement)
    database.commit()
    database.close()
    made_of = json.dumps(counts) + "".join(str((folder / name).stat().st_size) for name in names)
    (folder / _META / "index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_OID, made_of)))
    return counts


def _yaml(path: Path, values: object) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


ENERGON = Export("energon", "Megatron Energon: tars by class of data, with an index", _energon)

"""WebDataset tars as manifests: members that share a key are a sample, and a sample is one row.

The row's fields are the keys of the sample's ``.json``, and beside them its other members by their extensions: a text
(`TEXTS`, and what the field map names as a field other than the data) as what it says, any other as a reference to
where it lies in the archive. So a pool's field map can name either, and what it does not name, and no rule below uses,
is a column of the user's own. A key ends at the first dot; dots that all members of a sample share are of the key, too.

A sample whose json is a conversation (`io.formats.conversations`), as Energon's are, keeps it, with references in place
of the members that its parts name, or of all media in a list. Of any other:

* annotation: the field ``annotation``, else the first of `ANNOTATIONS` that the sample has;
* data: the field ``data``, else the one member of the pair's modality: by its extension (`Medium.extensions`), or,
  where the modality is given, any one member of an extension that says nothing;
* modality: the field ``modality``, the pool's, or else what the data's extension says;
* pair_id: the field ``pair_id``, else ``pool/archive/key`` (``archive/key`` where the pool has the archive's name).
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow, shown
from nemo_mm_rank.io.fields import ANNOTATION_PATH, DATA_PATH
from nemo_mm_rank.io.formats.conversations import MEDIA, TURNS
from nemo_mm_rank.io.json_text import NOT_AN_OBJECT, json_object, why_not
from nemo_mm_rank.io.manifest import opened, split_suffix
from nemo_mm_rank.io.references import MAX_TEXT_BYTES
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, Rows, gathered
from nemo_mm_rank.media.source import is_url
from nemo_mm_rank.media.tar import Place, place_of, walk
from nemo_mm_rank.modality import by_extension, is_media, names
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_PARTS, MODALITY, PAIR_ID, POOL, SOURCE_MEDIA

JSON = ("json", "jsn")
TEXTS = ("txt", "text", "transcript", "caption")
"""Extensions of what is read into the row (also behind others, as in ``outputs.txt``), as `webdataset` decodes them."""

ANNOTATIONS = ("txt", "caption", "text", "transcript")
"""Fields, each a key of the json or a member, that are taken for the annotation where none has that name."""

MAX_MEMBERS = 100

_WHOLE = "whole members"


class _FaultError(Exception):
    """Why a sample is no row: the field at fault, what was expected of it, and what was found."""

    def __init__(self, field_name: str, expected: str, found: str) -> None:
        super().__init__(f"{field_name}: expected {expected}, found {found}")
        self.told = (field_name, expected, found)


class _ApartError(_FaultError):
    """The members of the sample do not follow each other."""


@dataclass
class _Sample:
    """Consecutive members of one key.

    Attributes:
        number: of the sample in the archive, from 1.
        members: by extension.
        fault: what is wrong with it already.
    """

    number: int
    key: str | None
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    fault: _FaultError | None = None


def tar_rows(file: str, source: PoolSource, pool: str, root: str) -> Iterator[Rows]:
    """Stream the samples of one archive as rows; media stay where they are.

    An archive that breaks off gives the samples before the break, and one bad row for it.

    Args:
        file: local path or URL.
        source: the pool's configuration: field map, fixed modality.
        pool: name of the pool, for ids.
        root: folder or URL that the references to members are to be relative to (its first line).

    Raises:
        PoolError: the file is missing or no archive, or does not lie below the root.
    """
    archive, stem = _below(file, root), split_suffix(file)[0]
    prefix = stem if pool == stem else f"{pool}/{stem}"
    told: set[int] = set()
    with opened(file, source.download_seconds) as handle:
        reader = _Reader(handle, archive, prefix, source)
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        bad: list[BadRow] = []
        for sample in _samples(handle, file):
            row: dict[str, Any] = {}
            try:
                reader.fill(row, sample)
            except _FaultError as fault:
                if isinstance(fault, _ApartError):
                    if hash(sample.key) in told:
                        continue
                    told.add(hash(sample.key))
                bad.append(BadRow(file, sample.number, *fault.told, *reader.named(row, sample, pool)))
            else:
                rows.append(row)
                numbers.append(sample.number)
            if len(rows) + len(bad) >= BATCH_ROWS or reader.held >= BLOCK_BYTES:
                yield gathered(file, rows, numbers, bad)
                rows, numbers, bad, reader.held = [], [], [], 0
        yield gathered(file, rows, numbers, bad)


def _below(file: str, root: str) -> str:
    """Return an archive's path relative to the root, as references to its members name it."""
    path = file if is_url(file) else os.path.abspath(file)
    folder = root.split("\n")[0].rstrip("/") + "/"
    if not path.startswith(folder):
        raise PoolError(f"{file}: the archive lies outside the root {root}, below which its members must be found")
    name = path.removeprefix(folder)
    if place_of(str(Place(name, 0, "x"))) != Place(name, 0, "x"):
        raise PoolError(f"{file}: the name cannot be used in references: it must end in .tar, without a query")
    return name


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the extension (lower case) of a member's name: it is cut at the base name's first dot.

    Either is "" for what belongs to no sample: names without an extension, hidden files, and ``__info__``-like names
    that WebDataset keeps for itself.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    first = name.split("/", 1)[0]
    if not stem or (first.startswith("__") and first.endswith("__") and len(first) > 3):
        return "", ""
    return folder + slash + stem, extension.lower()


def kind_of(extension: str) -> str | None:
    """Return the modality that an extension stands for (of ``seg.png``: that of ``png``), None where it says none."""
    return by_extension(extension.rpartition(".")[2])


def _samples(handle: IO[bytes], file: str) -> Iterator[_Sample]:
    size = handle.seek(0, os.SEEK_END)
    sample = _Sample(0, None)
    begun = False
    try:
        for member in walk(handle):
            begun = True
            key, extension = split_name(member.name)
            if not key or not extension or member.isdir():
                continue
            if not sample.number or key != sample.key:
                if sample.number:
                    yield sample
                sample = _Sample(sample.number + 1, key)
            sample.fault = sample.fault or _fault(member, extension, sample, size)
            if sample.fault is None:
                sample.members[extension] = member
    except tarfile.TarError as error:
        if not begun:
            raise PoolError(f"{file}: cannot be read: {error}") from error
        if sample.number:
            yield sample
        if sample.fault is not None and sample.fault.told[1] == _WHOLE:
            return
        fault = _FaultError("row", "a tar archive to its end", f"{error}; what comes after cannot be read")
        sample = _Sample(sample.number + 1, None, fault=fault)
    if sample.number:
        yield sample


def _fault(member: tarfile.TarInfo, extension: str, sample: _Sample, size: int) -> _FaultError | None:
    """Say what is wrong with a member in its sample."""
    name = shown(member.name)
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return _FaultError("row", "member names in UTF-8", name)
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        return _FaultError("row", "member names below the archive's root", name)
    if not member.isreg():
        return _FaultError("row", "regular files", f"{name}, a link or a device")
    if extension in sample.members:
        return _FaultError("row", "every member once", f"{name} twice")
    if len(sample.members) >= MAX_MEMBERS:
        return _FaultError("row", f"at most {MAX_MEMBERS} members", "more")
    if member.offset_data + member.size > size:
        return _FaultError("row", _WHOLE, f"{name}, within which the archive ends")
    return None


@dataclass
class _Reader:
    """Makes rows of samples.

    Attributes:
        held: bytes of text read so far.
    """

    handle: IO[bytes]
    archive: str
    prefix: str
    source: PoolSource
    held: int = 0
    scattered: set[int] | None = None
    """Hashes of the keys of samples whose members lie apart; None until it is asked for."""

    def fill(self, row: dict[str, Any], sample: _Sample) -> None:
        """Make a sample a row, its canonical fields under the names that the field map gives them."""
        if sample.fault is not None:
            raise sample.fault
        self._join_dots(sample)
        for extension in JSON:
            if extension in sample.members:
                row.update(self._object(sample.members[extension]))
        for extension, member in sample.members.items():
            if extension in row:
                raise _FaultError("row", "a field once", f"{extension!r} as a member and in the json")
            if extension not in JSON:
                row[extension] = self._text(member) if self._is_text(extension) else self._reference(member)
        if not self._name_talk(row, sample.members):
            self._name_sides(row, sample)
        given = row.get(self._theirs(PAIR_ID))
        if given is None or given != given:  # NaN is no id
            row[self._theirs(PAIR_ID)] = f"{self.prefix}/{sample.key}"

    def _name_talk(self, row: dict[str, Any], members: dict[str, tarfile.TarInfo]) -> bool:
        """Put references into a conversation: where its parts name a member, and of other media in lists.

        Returns:
            Whether it is one; what has an annotation beside is none.
        """
        turns = next((row[name] for name in TURNS if isinstance(row.get(name), list)), None)
        if turns is None or any(row.get(name) is not None for name in (self._theirs(ANNOTATION), *ANNOTATIONS)):
            return False
        named = False
        for turn in turns:
            parts = turn.get("content") if isinstance(turn, dict) else None
            for part in parts if isinstance(parts, list) else ():
                name = part.get("path") if isinstance(part, dict) else None
                if isinstance(name, str) and name in members:
                    part["path"] = self._reference(members[name])
                    row.pop(name, None)
                    named = True
        files: dict[str, list[str]] = {}
        for name in [] if named else [name for name in members if name in row]:
            kind = kind_of(name)
            if kind in MEDIA and not any(one in row for one in MEDIA[kind]):
                files.setdefault(MEDIA[kind][0], []).append(row.pop(name))
        row.update(files)
        return True

    def _name_sides(self, row: dict[str, Any], sample: _Sample) -> None:
        """Put the two sides of the pair where they belong."""
        self._name_parts(row, sample.members)
        annotated = self._name_annotation(row)
        try:
            self._name_data(row, sample.members)
        except _FaultError as fault:
            raise self._apart(sample) or fault from fault
        if not annotated and (apart := self._apart(sample)):
            raise apart

    def _join_dots(self, sample: _Sample) -> None:
        """Give the key what stands before the last dot of all members (``a.v1.jpg`` and ``a.v1.txt``)."""
        stems = {extension.rpartition(".")[0] for extension in sample.members}
        named = not sample.members.keys().isdisjoint(self.source.fields.values())
        if len(sample.members) > 1 and len(stems) == 1 and "" not in stems and not named:
            sample.key = f"{sample.key}.{stems.pop()}"
            sample.members = {extension.rpartition(".")[2]: each for extension, each in sample.members.items()}

    def _is_text(self, extension: str) -> bool:
        mapped = {self.source.fields.get(name) for name in (ANNOTATION, PAIR_ID, POOL, MODALITY)}
        return extension.rpartition(".")[2] in TEXTS or extension in mapped

    def _apart(self, sample: _Sample) -> _FaultError | None:
        """Return what is wrong with a sample that lacks something: its other members may lie elsewhere."""
        if self.scattered is None:
            self.scattered = _scattered(self.handle)
        if hash(sample.key) not in self.scattered:
            return None
        expected, found = f"the members of sample {shown(sample.key)} side by side", "them apart"
        return _ApartError("row", expected, f"{found}: sort the archive by name (tar --sort=name)")

    def named(self, row: dict[str, Any], sample: _Sample, pool: str) -> tuple[str | None, str | None, str | None]:
        """Return id, pool and modality of a sample that is no row, as far as they are known."""
        # A key may hold bytes that are no UTF-8.
        own = None if sample.key is None else f"{self.prefix}/{sample.key}".encode(errors="replace").decode()
        found = [row.get(self._theirs(name)) for name in (PAIR_ID, POOL, MODALITY)]
        pair_id, named, modality = (value if isinstance(value, str) else None for value in found)
        return pair_id or own, named or pool, modality

    def _theirs(self, ours: str) -> str:
        return self.source.fields.get(ours, ours)

    def _name_annotation(self, row: dict[str, Any]) -> bool:
        """Put the text that is the annotation into its field, where nothing else is there; whether there is one."""
        fields = self.source.fields
        given = row.get(ANNOTATION) is not None or row.get(self._theirs(ANNOTATION_PATH)) is not None
        if given or ANNOTATION in fields:
            return given or row.get(self._theirs(ANNOTATION)) is not None
        for name in ANNOTATIONS:
            if row.get(name) is not None and name not in fields.values():
                row[ANNOTATION] = row.pop(name)
                return True
        return False

    def _name_parts(self, row: dict[str, Any], members: dict[str, tarfile.TarInfo]) -> None:
        """Put the members that parts of the data name by their extension into these parts."""
        for one in row.get(SOURCE_MEDIA) or ():
            name = one.get(DATA) if isinstance(one, dict) else None
            if isinstance(name, str) and name in members:
                one[DATA] = self._reference(members[name])
                if name.startswith("more."):
                    row.pop(name, None)
        for name in (self._theirs(DATA), DATA_PARTS):
            parts = row.get(name)
            for part in parts if isinstance(parts, list) else ():
                extension = part.get(DATA) if isinstance(part, dict) else None
                if isinstance(extension, str) and extension in members and extension in row:
                    part[DATA] = row.pop(extension)
                    if _written(part.get(MODALITY)):
                        part[DATA] = self._text(members[extension])

    def _name_data(self, row: dict[str, Any], members: dict[str, tarfile.TarInfo]) -> None:
        """Put the member that is the pair's data into its field, with its modality, where nothing else is there."""
        name, modality = self._theirs(DATA), row.get(self._theirs(MODALITY)) or self.source.modality
        if DATA in self.source.fields:
            if name not in members:
                return
            extension = name
        elif row.get(name) is not None or row.get(self._theirs(DATA_PATH)) is not None:
            return
        else:
            extension = _only([one for one in members if one in row and one not in TEXTS], modality)
        if modality is None and (modality := kind_of(extension)) is not None:
            row[self._theirs(MODALITY)] = modality
        member = members[extension]
        if not member.size:
            raise _FaultError(DATA, "a member with content", f"{shown(member.name)}, which is empty")
        row[name] = self._text(member) if _written(modality) else self._reference(member)
        if name != extension:
            del row[extension]

    def _reference(self, member: tarfile.TarInfo) -> str:
        return str(Place(self.archive, member.offset, member.name))

    def _object(self, member: tarfile.TarInfo) -> dict[str, Any]:
        try:
            return json_object(self._content(member))
        except NOT_AN_OBJECT as error:
            raise _FaultError("row", f"one JSON object in {shown(member.name)}, in UTF-8", why_not(error)) from error

    def _text(self, member: tarfile.TarInfo) -> str:
        try:
            return self._content(member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _FaultError("row", f"text in UTF-8 in {shown(member.name)}", why_not(error)) from error

    def _content(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_TEXT_BYTES:
            raise _FaultError(
                "row", f"at most {MAX_TEXT_BYTES:,} bytes of text", f"{member.size:,} in {shown(member.name)}"
            )
        self.handle.seek(member.offset_data)
        self.held += member.size
        return self.handle.read(member.size)


def _written(modality: Any) -> bool:
    return modality in names() and not is_media(modality)


def _scattered(handle: IO[bytes]) -> set[int]:
    """Return the hashes of the keys that come again after another: eight bytes of memory for each sample."""
    hashes, last = array("q"), None
    try:
        for member in walk(handle):
            key, extension = split_name(member.name)
            if key and extension and not member.isdir() and key != last:
                hashes.append(hash(key))
                last = key
    except tarfile.TarError:
        pass  # what is wrong behind is told where it is read
    found, counts = np.unique(np.array(hashes), return_counts=True)
    return set(found[counts > 1].tolist())


def _only(extensions: list[str], modality: Any) -> str:
    """Return the one extension that is the data's."""
    kinds = {extension: kind_of(extension) for extension in extensions}
    if modality in names():
        fitting = [one for one, kind in kinds.items() if kind == modality]
        fitting = fitting or [one for one, kind in kinds.items() if kind is None]
    else:
        fitting = [one for one, kind in kinds.items() if kind is not None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = ", ".join(fitting)
        dots = "; a key ends at the first dot of a name: are these several samples?" if "." in several else ""
        raise _FaultError(
            DATA, "one member with the data", f"several ({several}); map one: fields: {{data: {fitting[0]}}}{dots}"
        )
    wanted = "the data" if modality is None else f"the {modality}"
    there = ", ".join(extensions) or "nothing else"
    raise _FaultError(DATA, f"a member with {wanted}, or a field 'data' in the json", there)

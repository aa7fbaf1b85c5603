"""Members of tar archives: walked header by header, and opened where they lie, without unpacking anything."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from nemo_mm_rank.errors import MediaError

MAX_HEADER_BYTES = 16 * 2**10
"""Bound on an extended header (long names, pax records), which the standard library reads whole, whatever its size."""

_REFERENCE = re.compile(r"(?s)(.+?\.tar)@([0-9]{1,18})!(.+)")


@dataclass(frozen=True)
class Place:
    """Where a member lies: written ``folder/shard.tar@1536!key.jpg``.

    Attributes:
        archive: the tar, as a reference of its own.
        offset: of the member's header in bytes, so that no archive has to be searched.
        name: of the member, which the header must have. It is compared and never used as a path.
    """

    archive: str
    offset: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}@{self.offset}!{self.name}"


def place_of(reference: str) -> Place | None:
    """Return the place that a reference names, None where it names a file."""
    match = _REFERENCE.fullmatch(reference)
    return Place(match[1], int(match[2]), match[3]) if match else None


class _Header(tarfile.TarInfo):
    """A header, refused where reading on would take memory or time that the file's maker decides on."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in (
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        )
        if self.size < 0 or (extended and self.size > MAX_HEADER_BYTES):
            raise tarfile.HeaderError(f"a header of {self.size:,} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.HeaderError("a sparse file")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]  # tarfile names it for subclasses
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.HeaderError("a sparse file")


def walk(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed archive in order, of any type; their contents are passed over.

    The consumer may read from ``file`` between two members.

    Raises:
        tarfile.ReadError: a header is broken, the file ends within a member (which has been yielded) or without the end
            mark, or it goes on behind that. (The standard library takes a broken header for the end.)
    """
    size = file.seek(0, io.SEEK_END)
    offset = 0
    tar: tarfile.TarFile | None = None
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the file ends without the archive's end mark")
        if not block.strip(b"\0"):
            break
        try:
            file.seek(offset)
            tar = tar or _tar(file)
            file.seek(offset)
            member = _Header.fromtarfile(tar)
        except (tarfile.TarError, ValueError, RecursionError) as error:
            raise tarfile.ReadError(f"no header that can be read at byte {offset:,} ({error})") from error
        if member.size < 0 or tar.offset <= offset:
            raise tarfile.ReadError(f"no header that can be read at byte {offset:,} (a size below nothing)")
        offset = tar.offset
        yield member
        if member.offset_data + member.size > size:
            raise tarfile.ReadError(f"the file ends within a member at byte {member.offset:,}")
    if file.read(tarfile.RECORDSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"more behind the archive's end mark at byte {offset:,} (archives put together?)")


def _tar(file: IO[bytes]) -> tarfile.TarFile:
    # It reads the header that the file stands before, and more only when asked.
    return tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")


def find(file: IO[bytes], place: Place) -> tarfile.TarInfo:
    """Return the member at ``place`` of an open archive.

    Raises:
        MediaError: another one is there or none, it is no regular file, or it is cut off.
    """
    size = file.seek(0, io.SEEK_END)
    member = None
    if place.offset < size:
        file.seek(place.offset)
        try:
            member = _tar(file).next()
        except (tarfile.TarError, ValueError, RecursionError):
            member = None
    if member is None or member.name != place.name:
        raise MediaError("is not in the archive where the reference says")
    if not member.isreg():
        raise MediaError("is not a regular file in the archive")
    if member.offset_data + member.size > size:
        raise MediaError("is cut off: the archive ends within it")
    return member


class Window(io.RawIOBase):
    """The content of one member as a file of its own, read-only and seekable, which closes the archive with itself."""

    def __init__(self, file: IO[bytes], member: tarfile.TarInfo) -> None:
        super().__init__()
        self._file = file
        self._start = member.offset_data
        self._position = 0
        self.size = member.size

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can be searched: always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place within the member, or behind it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the place within the member."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with what is left of the member."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self.size - self._position))
        self._file.seek(self._start + self._position)
        content = self._file.read(wanted)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Close the archive too."""
        self._file.close()
        super().close()

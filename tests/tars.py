"""Tar archives as tests need them: sound, hostile and damaged, member by member."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from PIL import Image

Member: TypeAlias = tuple[str | tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return the header of a member of any type."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header


def write_tar(path: Path, members: Iterable[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write an archive with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def png(red: int, side: int = 8) -> bytes:
    """Return a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def header_at(path: Path, name: str) -> int:
    """Return where the header of a member begins."""
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def damage(path: Path, offset: int, content: bytes) -> None:
    """Write over some bytes of a file."""
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)

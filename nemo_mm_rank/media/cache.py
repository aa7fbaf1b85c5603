"""Media from behind URLs, kept on this machine up to a bound: those that were opened longest ago go first."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PLACE = "NEMO_MM_RANK_CACHE"
"""Environment variable: the folder for what is kept on this machine of what lies elsewhere."""

STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "last_modified", "LastModified", "created")
"""What file systems say of the state of a file, the best first."""

MEDIA = "nemo-mm-rank-media"
"""The folder in it for media, by a name that is ours alone: who names the folder above may have media there."""

_OURS = re.compile(r"[0-9a-f]{40}|\.[^/]*\.copying")
"""What is kept, and what is being copied: nothing else is ever removed."""

_SHARE = 16
"""So large a part of the bound a process writes before it looks again how much there is."""

_written = 0


def folder() -> Path:
    """Return the folder for what is kept on this machine."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nemo-mm-rank")
    return Path(os.path.abspath(os.path.expanduser(os.environ.get(PLACE) or usual)))


def state(info: dict[str, Any]) -> str | None:
    """Return what stands for the state of a file, by what its file system says of it; None where that is nothing."""
    said = next((str(info[name]) for name in STAMPS if info.get(name)), None)
    return None if said is None else json.dumps([info.get("size"), said])


def kept(what: Any, bound: int, copy: Callable[[IO[bytes]], None]) -> IO[bytes]:
    """Return an open file of what was kept; else let ``copy`` fill one, and keep it.

    Args:
        what: JSON-able: where the content comes from, and its state there.
        bound: most bytes of all that is kept; each process may be over it by a sixteenth.
        copy: writes the content.

    Raises:
        OSError: there is no room for it.
    """
    global _written
    place = folder() / MEDIA
    file = place / hashlib.blake2b(json.dumps(what).encode(), digest_size=20).hexdigest()
    with suppress(FileNotFoundError):
        found = file.open("rb")
        os.utime(found.fileno())
        return found
    place.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".copying", dir=place)
    new = os.fdopen(handle, "w+b")
    try:
        copy(new)
        _written += new.tell()
        new.seek(0)  # which flushes
        Path(name).replace(file)
    except BaseException:
        new.close()
        Path(name).unlink()
        raise
    if _written > bound / _SHARE:
        _written = 0
        _forget(place, bound)
    return new


def _forget(place: Path, bound: int) -> None:
    """Remove what was opened longest ago, until the rest is below the bound."""
    with os.scandir(place) as entries:
        files = []
        for entry in entries:
            if not _OURS.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                files.append((found.st_mtime_ns, found.st_size, entry.path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= bound:
            break
        Path(path).unlink(missing_ok=True)
        total -= size

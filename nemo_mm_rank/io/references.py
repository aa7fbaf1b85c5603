"""What the rows of a manifest refer to: media files that must be there, and text files that are read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, PairError
from nemo_mm_rank.io.bad_rows import MISSING_FILE, shown
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.tar import place_of

MAX_TEXT_BYTES = 16 * 2**20

_TEXT_FILES = MediaSettings(max_bytes=MAX_TEXT_BYTES)


def is_url(path: str) -> bool:
    """Whether ``path`` is for fsspec rather than a local path."""
    return "://" in path or "::" in path


class References:
    """Resolves references below one root.

    Args:
        root: local folder (absolute) or fsspec URL.
        check_files: look whether media files are there. References behind URLs are never looked up one by one:
            what is not there shows when it is opened.
    """

    def __init__(self, root: str, check_files: bool = True) -> None:
        self.root = root
        self.check_files = check_files and not is_url(root)
        self._real_root = root if is_url(root) else os.path.realpath(root)
        self._inside = self._real_root.rstrip("/") + "/"
        self._real_folders: dict[str, str] = {}

    def stamp(self, reference: str) -> tuple[int, int]:
        """Return size and modification time (ns) of a local media file, or of the tar it lies in; (-1, -1) for a URL.

        Refuses what `open_source` refuses, without opening anything, at the cost of two system calls a file.

        Raises:
            MediaError: it is not there, is no file, is empty, or lies outside the root.
        """
        if (place := place_of(reference)) is not None:
            reference = place.archive
        if is_url(reference):
            return -1, -1
        if reference.startswith("/"):
            raise MediaError(f"the absolute path {shown(reference)}")
        if ".." in reference.split("/"):
            raise MediaError(f"{shown(reference)}, which leads out of the pool's root")
        try:
            found = os.lstat(path := self._path(reference))
            if stat.S_ISLNK(found.st_mode):
                found = os.lstat(path := os.path.realpath(path, strict=True))
        except FileNotFoundError as error:
            raise MediaError(f"{MISSING_FILE}: {shown(reference)}") from error
        except OSError as error:
            raise MediaError(f"{shown(reference)}: {error.strerror}") from error
        except ValueError as error:
            raise MediaError(f"{shown(reference)}, which is no file name") from error
        if not path.startswith(self._inside):
            raise MediaError(f"{shown(reference)}, which leads out of the pool's root")
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{shown(reference)}, which is no file")
        if not found.st_size:
            raise MediaError(f"{shown(reference)}, which is empty")
        return found.st_size, found.st_mtime_ns

    def _path(self, reference: str) -> str:
        """Return the absolute path, the links in its folders resolved (once a folder: many files share one)."""
        folder, name = os.path.split(reference)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(os.path.join(self._real_root, folder))
        return os.path.join(self._real_folders[folder], name)

    def text(self, reference: str) -> str:
        """Read a text file of at most `MAX_TEXT_BYTES`.

        Raises:
            MediaError: it is not there, lies outside the root, is a URL, is too long, or is not UTF-8.
        """
        try:
            with open_source(reference, self.root, _TEXT_FILES) as file:
                return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise MediaError(f"{shown(reference)}, which is not UTF-8 at byte {error.start + 1}") from error
        except PairError as error:
            raise MediaError(f"{shown(reference)}, which {error}") from error


def folded(stamps: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return one stamp for those of several media files; (-1, -1) where there was nothing to look at."""
    if all(stamp == (-1, -1) for stamp in stamps):
        return -1, -1
    digest = hashlib.blake2b(repr(list(stamps)).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") >> 1, int.from_bytes(digest[8:], "little") >> 1

"""What the rows of a manifest refer to: media files that must be there, and text files that are read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, PairError
from nemo_mm_rank.io.bad_rows import MISSING_FILE, shown
from nemo_mm_rank.media.source import Roots, is_local, is_url, open_source
from nemo_mm_rank.media.tar import place_of
from nemo_mm_rank.media.window import without_window

MAX_TEXT_BYTES = 16 * 2**20

_TEXT_FILES = MediaSettings(max_bytes=MAX_TEXT_BYTES)


class References:
    """Resolves references below one root.

    Args:
        root: local folder (absolute) or fsspec URL, and trusted folders on further lines, as `open_source` takes them.
        check_files: look whether media files are there. References behind URLs are never looked up one by one:
            what is not there shows when it is opened.
        manifest: the file that the references stand in.
    """

    def __init__(self, root: str, check_files: bool = True, manifest: str | None = None) -> None:
        self.root = root
        self.check_files = check_files and not is_url(root)
        self._roots = Roots((root,)) if is_url(root) else Roots.of(root)
        self._inside = self._roots.folders[0].rstrip("/") + "/"
        self._real_folders: dict[str, str] = {}
        self._beside = None
        if manifest is not None and not is_url(root) and not is_url(manifest):
            folder = os.path.dirname(os.path.abspath(manifest))
            self._beside = folder if folder != root.split("\n")[0] else None

    @property
    def settles(self) -> bool:
        """Whether `settled` may return another reference than it is given."""
        return self._beside is not None

    def settled(self, reference: str) -> str:
        """Return a manifest's reference as one that is relative to the root.

        It is that already, unless there is nothing of the name below the root, but below it beside the manifest.
        """
        if self._beside is None or not is_local(reference) or place_of(reference) is not None:
            return reference
        if not self.check_files and not reference.startswith(".."):
            return reference
        path = without_window(reference)
        beside = os.path.relpath(os.path.join(self._beside, path), self.root.split("\n")[0])
        return beside + reference[len(path) :] if not self._holds(path) and self._holds(beside) else reference

    def _holds(self, reference: str) -> bool:
        try:
            return bool(self._roots.find(reference))
        except (MediaError, OSError, ValueError):
            return False

    def stamp(self, reference: str) -> tuple[int, int]:
        """Return size and modification time (ns) of a local media file, or of the tar it lies in; (-1, -1) for a URL.

        Refuses what `open_source` refuses, without opening anything, at the cost of two system calls a file.

        Raises:
            MediaError: it is not there, is no file, is empty, or lies outside the root.
        """
        reference = without_window(reference)
        if (place := place_of(reference)) is not None:
            reference = place.archive
        if not is_local(reference):
            return -1, -1
        try:
            found = self._plain_file(reference) or os.lstat(self._roots.find(reference))
        except FileNotFoundError as error:
            raise MediaError(f"{MISSING_FILE}: {shown(reference)}") from error
        except OSError as error:
            raise MediaError(f"{shown(reference)}: {error.strerror}") from error
        except ValueError as error:
            raise MediaError(f"{shown(reference)}, which is not a file name") from error
        except MediaError as error:
            raise MediaError(f"{shown(reference)}, which {error}") from error
        if not stat.S_ISREG(found.st_mode):
            raise MediaError(f"{shown(reference)}, which is not a file")
        if not found.st_size:
            raise MediaError(f"{shown(reference)}, which is empty")
        return found.st_size, found.st_mtime_ns

    def _plain_file(self, reference: str) -> os.stat_result | None:
        """Look at a file below the root that is no link (links in its folders are resolved once a folder)."""
        folder, name = os.path.split(reference)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(os.path.join(self._roots.folders[0], folder))
        path = os.path.join(self._real_folders[folder], name)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        return found if stat.S_ISREG(found.st_mode) and path.startswith(self._inside) else None

    def text(self, reference: str) -> str:
        """Read a text file of at most `MAX_TEXT_BYTES`.

        Raises:
            MediaError: it is not there, lies outside the root, is a URL, is too long, or is not UTF-8.
        """
        try:
            with open_source(self.settled(reference), self.root, _TEXT_FILES) as file:
                return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise MediaError(f"{shown(reference)}, which is not UTF-8 at byte {error.start + 1}") from error
        except PairError as error:
            raise MediaError(f"{shown(reference)}, which {error}") from error


def folded(stamps: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return one stamp for those of several media files; (-1, -1) where there was nothing to look at."""
    if len(stamps) == 1:
        return stamps[0]
    if all(stamp == (-1, -1) for stamp in stamps):
        return -1, -1
    digest = hashlib.blake2b(repr(list(stamps)).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") >> 1, int.from_bytes(digest[8:], "little") >> 1


class Rootless(References):
    """For rows that need no root: texts, content that they carry, URLs. Whatever else they name is refused."""

    root = None  # type: ignore[assignment]
    check_files = True
    settles = False

    def __init__(self) -> None:
        """There is nothing to resolve."""

    def settled(self, reference: str) -> str:
        """Return it as it is."""
        return reference

    def stamp(self, reference: str) -> tuple[int, int]:
        """Return (-1, -1) for a URL.

        Raises:
            MediaError: it is a file.
        """
        if place_of(reference) is None and not is_local(reference):
            return -1, -1
        raise MediaError(f"{shown(reference)}; give a root (--root) that it is relative to")

    def text(self, reference: str) -> str:
        """Raise `MediaError`."""
        raise MediaError(f"{shown(reference)}; give a root (--root) that it is relative to")

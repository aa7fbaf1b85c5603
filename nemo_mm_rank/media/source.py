"""From a media reference to an open file: below the pool's root, at a URL that the user allows, or in the row.

What lies in a tar archive is opened in its place (``shard.tar@1536!key.jpg``), under the same rules as the archive.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import IO, Any
from urllib.parse import unquote

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError, PairError, TransientError
from nemo_mm_rank.media import cache
from nemo_mm_rank.media.limits import within
from nemo_mm_rank.media.tar import Place, Window, find, place_of
from nemo_mm_rank.media.window import without_window

REMOTE_SCHEMES = frozenset(
    (
        *("http", "https", "ftp", "sftp", "webdav", "hf", "memory"),
        *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "tos", "hdfs", "webhdfs"),
    )
)
"""What a row may name. The rest of fsspec's schemes can be turned on this machine's own files (``file``, ``zip``,
``reference``, caches ...) or are for roots, which the user gives, not the rows."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = re.compile(r"(?:file|local)://")
OUTSIDE = (
    "leads out of the root of the pool: name a folder that contains it with --root, or another folder that references "
    "may lead to with --trust-root"
)
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""To go through a folder, which may be one that cannot be listed."""
_CHUNK = 1 << 20
_IN_MEMORY = 1 << 24  # a larger download waits on disk


def is_url(path: str) -> bool:
    """Whether ``path`` is for fsspec rather than a local path."""
    return "://" in path or "::" in path


@dataclass(frozen=True)
class Roots:
    """Local folders that media may lie below: what references are relative to, and others that are trusted.

    Attributes:
        folders: absolute, without links; the root first.
    """

    folders: tuple[str, ...]

    @classmethod
    def of(cls, media_root: str) -> Roots:
        """Return the folders that a ``media_root`` names: the root, and trusted ones each on a line of its own."""
        root, *trusted = media_root.split("\n")
        return cls((os.path.realpath(_LOCAL.sub("", root)), *map(os.path.realpath, trusted)))

    def holder(self, path: str) -> str | None:
        """Return the folder that holds ``path``, which has no links; None where none does."""
        return next((folder for folder in self.folders if os.path.commonpath((folder, path)) == folder), None)

    def find(self, reference: str) -> str:
        """Return the path, without links, of what a reference names.

        Where there is nothing of this spelling, what there is in another one of the same meaning: composed or
        decomposed letters (which differ between systems), slashes for backslashes.

        Raises:
            MediaError: it leads out of all folders.
            OSError: it is not there.
            ValueError: it is no file name.
        """
        for spelling in (*_spellings(reference), reference):
            path = os.path.realpath(os.path.join(self.folders[0], spelling))
            if self.holder(path) is None:  # and what there is beyond is nobody's business
                raise MediaError(OUTSIDE)
            if os.path.lexists(path):
                return path
        os.lstat(path)
        return path


def _spellings(reference: str) -> Iterator[str]:
    if reference.lower().startswith("file://"):
        reference = "/" + unquote(reference[len("file://") :].removeprefix("localhost")).lstrip("/")
    for separated in dict.fromkeys((reference, reference.replace("\\", "/"))):
        yield from dict.fromkeys((separated, *(unicodedata.normalize(form, separated) for form in ("NFC", "NFD"))))


def is_local(reference: str) -> bool:
    """Whether a reference of a row is for this machine's files: no URL but ``file://``."""
    return not is_url(reference) or (reference.lower().startswith("file://") and "::" not in reference)


def open_source(ref: str, root: str, settings: MediaSettings, content: bytes | None = None) -> IO[bytes]:
    """Open what ``ref`` names for reading, as a seekable file at its start; the caller closes it.

    Args:
        ref: a path below ``root`` (relative to it, absolute or ``file://``), or an fsspec URL where
            ``settings.allow_urls``; of a file, or of a member of a tar archive. With ``content`` only a name.
        root: a folder or an fsspec URL, given by the user and trusted; further lines name folders that references and
            links may lead to besides.
        settings: for ``allow_urls`` and ``max_bytes``.
        content: the bytes themselves.

    Raises:
        MediaError: missing, refused, empty or too large, without the name: the caller knows what the user calls it.
    """
    if content is not None:
        _check_size(len(content), settings.max_bytes)
        file: IO[bytes] = BytesIO(content)
    else:
        ref = without_window(ref)
        place = place_of(ref)
        file = _open_path(ref if place is None else place.archive, root, settings, place)
    if not file.read(1):
        file.close()
        raise MediaError("is empty")
    file.seek(0)
    return file


def _open_path(path: str, root: str, settings: MediaSettings, place: Place | None) -> IO[bytes]:
    """Open the file at ``path``, or the member at ``place`` of the archive at ``path``."""
    if (match := _URL.match(path)) and not is_local(path):
        return _open_url(path, match[1].lower(), settings, place)
    if _LOCAL.match(root) or not _URL.search(root):
        return _open_local(path, root, settings, place)
    if path.startswith("/") or match:
        raise MediaError("is an absolute path; below a URL, a reference is a path relative to it")
    # A server undoes %2e%2e before it looks for the file, so it counts as written out.
    if ".." in re.split(r"[/\\]", unquote(path)):
        raise MediaError("leads out of the root of the pool")
    return _open_below_url(path, root.split("\n")[0], settings, place)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise MediaError(f"has {size:,} bytes, more than the {limit:,} allowed")


def _open_local(ref: str, root: str, settings: MediaSettings, place: Place | None) -> IO[bytes]:
    try:
        roots = Roots.of(root)
        path = roots.find(ref)
        handle = _open_below(str(roots.holder(path)), path)
    except OSError as error:
        raise _failed(error) from error
    except ValueError as error:  # a NUL or an unpaired surrogate
        raise MediaError("is not a file name") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise MediaError("is not a regular file")
    file = os.fdopen(handle, "rb")
    try:
        if place is None:
            _check_size(status.st_size, settings.max_bytes)
            return file
        window = Window(file, find(file, place))
        _check_size(window.size, settings.max_bytes)
        return BufferedReader(window)
    except (MediaError, OSError):
        file.close()
        raise


def _open_below(base: str, path: str) -> int:
    """Open a file for reading, folder by folder: ``path`` has no links, and follows none that is put into it meanwhile.

    Args:
        base: the root, without links.
        path: the file, below it.

    Raises:
        OSError: it cannot be opened.
        MediaError: there is a link by now.
    """
    *folders, name = os.path.relpath(path, base).split(os.sep)
    here: int | None = None
    try:
        for folder in (base, *folders):
            inner = os.open(folder, _FOLDER, dir_fd=here)
            if here is not None:
                os.close(here)
            here = inner
        # Not to wait for the other end of a FIFO.
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise MediaError("has moved: a link has taken its place, or the place of a folder on its path") from error
        raise
    finally:
        if here is not None:
            os.close(here)


def _open_below_url(ref: str, root: str, settings: MediaSettings, place: Place | None) -> IO[bytes]:
    # The root is resolved alone: joined first, a '::' in the reference could name another file system.
    return _download(root, ref, settings, place)


def _open_url(ref: str, scheme: str, settings: MediaSettings, place: Place | None) -> IO[bytes]:
    if not settings.allow_urls:
        raise MediaError("is a URL; set media.allow_urls to true to open URLs")
    if scheme not in REMOTE_SCHEMES or "::" in ref:
        raise MediaError(f"is not a URL that a row may name ({', '.join(sorted(REMOTE_SCHEMES))})")
    return _download(ref, None, settings, place)


def _file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    import fsspec

    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise MediaError(f"cannot be opened: {lacking(url, error)}") from error
    except ValueError as error:  # not well-formed
        raise MediaError(f"cannot be opened: {error}") from error
    except OSError as error:
        raise _failed(error) from error
    return fs, path


def lacking(url: str, error: ImportError) -> str:
    """Say what to install for a URL, where fsspec finds no library for it (fsspec names the package itself)."""
    hint = "; pip install 'fsspec[http]'" if url.lower().startswith(("http:", "https:")) else ""
    return f"a library is missing: {error}{hint}"


def _download(url: str, below: str | None, settings: MediaSettings, place: Place | None) -> IO[bytes]:
    """Copy a remote file, or a member of it, once: it is read twice (hashed, decoded), and decoders seek."""
    seconds = settings.download_seconds
    end = time.monotonic() + seconds
    try:
        return within(seconds, lambda: _fetch(url, below, settings, place, end))
    except TimeoutError as error:
        raise MediaError(f"cannot be read: {error}") from error


def _fetch(url: str, below: str | None, settings: MediaSettings, place: Place | None, end: float) -> IO[bytes]:
    fs, path = _file_system(url)
    if below is not None:
        path = f"{path.rstrip('/')}/{below}"
    limit, bound = settings.max_bytes, settings.cache_bytes
    spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (handed to the caller)
    try:
        if bound and (state := cache.state(fs.info(path))) is not None:
            spool.close()
            what = [fs.unstrip_protocol(path), None if place is None else place.offset, state]
            kept = cache.kept(what, bound, lambda file: _copy(fs, path, limit, place, end, file))
            _check_size(os.fstat(kept.fileno()).st_size, limit)
            return kept
        _copy(fs, path, limit, place, end, spool)
    except MediaError:
        spool.close()
        raise
    except FileNotFoundError as error:  # fsspec says so, too, where a server does not answer
        spool.close()
        if may_pass(error):
            raise TransientError("cannot be found: its server does not answer as it should") from error
        raise MediaError("cannot be found") from error
    except Exception as error:  # every file system brings its own error classes
        spool.close()
        raise _failed(error) from error
    spool.seek(0)
    return spool


def _copy(fs: Any, path: str, limit: int, place: Place | None, end: float, file: IO[bytes]) -> None:
    with fs.open(path, "rb") as opened:
        stream = opened if place is None else Window(opened, find(opened, place))
        _check_size(getattr(stream, "size", None) or 0, limit)
        # The size above is what the server says, where it says anything.
        while chunk := stream.read(_CHUNK):
            if file.tell() + len(chunk) > limit:
                raise MediaError(f"has more than the {limit:,} bytes allowed")
            file.write(chunk)
            if time.monotonic() > end:  # nobody waits any more
                raise MediaError("cannot be read in time")


_PASSING = frozenset({errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
_NETWORK = ("aiohttp", "botocore", "urllib3")


def may_pass(error: BaseException | None) -> bool:
    """Whether it is the way to a file that failed (time-outs, refused connections, servers in trouble), or memory."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status in (408, 425, 429) or status >= 500
        if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, MemoryError)):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        if type(error).__module__.startswith(_NETWORK) and not isinstance(error, ValueError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _failed(error: Exception) -> PairError:
    return (TransientError if may_pass(error) else MediaError)(_why(error))


def _why(error: Exception) -> str:
    """Say what went wrong without the path or URL, which is this machine's affair."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    said = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read: {said or type(error).__name__}"

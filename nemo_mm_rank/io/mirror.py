"""Folders in object stores. Each has a mirror on this machine, where all code finds files as in any other folder.

The mirror of ``s3://bucket/run`` is ``<cache>/nemo-mm-rank-stores/s3/bucket/run``: a path says by itself what it
mirrors, on whichever machine. What is written goes to the store first, and is the mirror's only then. What is there is
learnt by one listing of a folder (`refresh`): it leaves an empty file for each object, whose content comes when it is
read. A file of the mirror has as its time a digest of the object's own stamp, so that one that has changed is told.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from nemo_mm_rank.console import MIRROR
from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.media import cache

TEMPORARY = ".nemo-mm-rank.tmp"
"""How the names of unfinished files and folders end, and no other's; they begin with a dot, so that no pattern of ours
finds them."""

LOCK, HOLDER = ".lock", ".lock-holder"
"""The lock of a folder here, and the one in the store: neither is mirrored."""

lost: dict[Path, str] = {}
"""Folders whose lock this process has lost, and why: nothing is written there any more."""


def temporary_name(path: Path) -> Path:
    """Return a new name beside ``path`` for what will be put in its place."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def root() -> Path:
    """Return the folder of all mirrors, which every worker has to be able to make under the same path."""
    return cache.folder() / MIRROR


def at(url: str) -> Path:
    """Return the mirror of a folder or file in a store.

    Raises:
        UserError: it is none that can be written.
    """
    scheme, _, rest = url.partition("://")
    parts = rest.rstrip("/").split("/")
    if "::" in url or not scheme.isalnum() or scheme in ("file", "local", "http", "https"):
        raise UserError(f"{url}: outputs must be local folders or URLs of an object store, such as s3://bucket/run")
    if len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise UserError(f"{url}: name a folder in the bucket, such as {scheme}://bucket/run")
    return root().joinpath(scheme, *parts)


def url_of(path: str | Path) -> str | None:
    """Return the URL that a path mirrors, None for any other path."""
    _, here, rest = str(path).partition(f"{os.sep}{MIRROR}{os.sep}")
    return rest.replace(os.sep, "://", 1) if here else None


def named(path: str | Path) -> str:
    """Return a path as its user knows it: the URL where it is a mirror."""
    return url_of(path) or str(path)


def refresh(folder: Path) -> None:
    """Make a mirror agree with its store, by one listing; does nothing for other paths.

    Raises:
        StorageError: there is no such bucket, or the store cannot be reached.
    """
    if (url := url_of(folder)) is None:
        return
    here = dict(_files(folder))  # before the listing: what appears here meanwhile is in the store already
    with asking(url):
        store, key = file_system(url)
        store.invalidate_cache()
        there = set()
        for name, info in store.find(key, detail=True).items():
            inner = name.removeprefix(key).removeprefix("/")
            path = folder / inner if inner else folder
            leads_out = {".", ".."} & set(inner.split("/")) or "//" in inner or "\0" in inner
            if info["type"] != "file" or leads_out or not _mirrored(path, folder):
                continue
            there.add(path)
            if (stamp := _stamp(info)) is None or here.get(path) != stamp:
                _put(path, stamp)
        for path in here.keys() - there:
            path.unlink(missing_ok=True)


_known: set[tuple[Path, str] | str] = set()


def refresh_once(folder: Path, state: str) -> None:
    """Make a mirror agree with its store where this process has not done so for a ``state`` of it."""
    if url_of(folder) is not None and not {(folder, state), state} & _known:
        refresh(folder)
        _known.add((folder, state))


def know(state: str) -> str:
    """Return a state that all mirrors of this process agree with."""
    _known.add(state)
    return state


def fetch(path: Path) -> None:
    """Bring the content of a mirror's file, or of all files of a folder at once, where it is not here; else do nothing.

    A file that the store has not either stays missing.

    Raises:
        StorageError: the store cannot be reached.
    """
    if (url := url_of(path)) is None:
        return
    if not path.is_dir():
        _download(url, [path])
    elif files := [file for file, _ in _files(path)]:
        _download(url, files)


def bring(path: Path) -> None:
    """Bring a file or folder whole, also to a machine that does not know yet what it is; else do nothing.

    Raises:
        StorageError: the store cannot be reached.
    """
    if not path.exists():
        refresh(path)
    fetch(path)


def _download(url: str, files: list[Path]) -> None:
    """Bring the files that are empty or missing here; those that the store has not are left out."""
    times = {file: file.stat() if file.exists() else None for file in files}
    wanted = {file: temporary_name(file) for file, state in times.items() if state is None or not state.st_size}
    if not wanted:
        return
    try:
        with asking(url, missing=True):
            store, key = file_system(url)
            keys = [f"{key}{str(url_of(file)).removeprefix(url)}" for file in wanted]
            for file in wanted:
                file.parent.mkdir(parents=True, exist_ok=True)
            if len(keys) == 1:
                store.get_file(keys[0], str(*wanted.values()))
            else:
                store.get(keys, [str(temporary) for temporary in wanted.values()])
            for file, temporary in wanted.items():
                if (state := times[file]) is not None:
                    os.utime(temporary, ns=(state.st_mtime_ns, state.st_mtime_ns))
                temporary.replace(file)
    except FileNotFoundError:
        if len(files) > 1:  # one has gone meanwhile
            for file in files:
                _download(str(url_of(file)), [file])
    finally:
        for temporary in wanted.values():
            temporary.unlink(missing_ok=True)


def here(path: str) -> str:
    """Return where a file that may be in a store can be read on this machine; raises as `refresh`."""
    if "://" not in path:
        return path
    place = at(path)
    refresh(place)
    fetch(place)
    return str(place)


def push(written: Path, path: Path) -> None:
    """Bring a finished file into the store that ``path`` mirrors, before it is put into its place here.

    Raises:
        StorageError: the store cannot be reached, or another run has taken the folder over.
    """
    if (url := url_of(path)) is None:
        return
    for folder, why in lost.items():
        if folder in path.parents:
            raise StorageError(f"{named(folder)}: {why}; start the same command again to continue from here")
    with asking(url):
        store, key = file_system(url)
        store.put_file(str(written), key)
        if (stamp := _stamp(store.info(key))) is not None:
            os.utime(written, ns=(stamp, stamp), follow_symlinks=False)


def put(written: Path, path: Path) -> None:
    """Put a finished file in its place, in the store first where that is one's mirror; raises as `push`."""
    push(written, path)
    written.replace(path)


def unlink(path: Path) -> None:
    """Remove a file that may be there, and the object that it mirrors; raises as `push`."""
    if (url := url_of(path)) is not None and os.path.lexists(path):
        with suppress(FileNotFoundError), asking(url, missing=True):
            store, key = file_system(url)
            store.rm_file(key)
    path.unlink(missing_ok=True)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the key in it; what it needs to know it has from the environment."""
    store, key = fsspec.url_to_fs(url)
    return store, str(key)


@contextmanager
def asking(url: str, missing: bool = False) -> Iterator[None]:
    """Turn what a store raises into one line; that something is not there only where it may not be ``missing``.

    Raises:
        StorageError: naming the URL and the way out.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        extra = "; pip install 'nemo-mm-rank[s3]'" if url.startswith("s3") else ""
        raise StorageError(f"{url}: a library is missing: {error}{extra}") from error
    except FileNotFoundError as error:
        if missing:
            raise
        raise StorageError(f"{url}: there is no such bucket: {_said(error)}") from error
    except Exception as error:  # every file system brings its own error classes
        hint = "; keys are taken from the environment" if "credential" in str(error).lower() else ""
        raise StorageError(f"{url}: the store cannot be used: {type(error).__name__}: {_said(error)}{hint}") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _stamp(info: dict[str, Any]) -> int | None:
    """Return a time that stands for the state of an object, None where its store says nothing of that."""
    if (state := cache.state(info)) is None:
        return None
    number = int.from_bytes(hashlib.blake2b(state.encode(), digest_size=8).digest())
    return (number % 2**31) * 10**9 + (number >> 31) % 10**9  # every file system keeps so much


def _put(path: Path, stamp: int | None) -> None:
    """Leave an empty file that stands for an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.touch()
    if stamp is not None:
        os.utime(temporary, ns=(stamp, stamp))
    temporary.replace(path)


def _mirrored(path: Path, folder: Path) -> bool:
    ours = path.name == LOCK or path.name.startswith(HOLDER)
    return not ours and not any(part.endswith(TEMPORARY) for part in path.relative_to(folder).parts)


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the mirrored files in and below a folder with their times, or the file itself."""
    if folder.is_file():
        yield folder, folder.stat().st_mtime_ns
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if _mirrored(path, folder):
                with suppress(FileNotFoundError):
                    yield path, path.stat().st_mtime_ns

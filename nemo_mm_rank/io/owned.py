"""Which folders are ours: those that carry our mark. Nobody else's is written to, and nothing in it removed.

Whatever writes a folder claims it first. The mark is a file that nothing else writes; it goes into a folder that this
makes or that was empty, and says what the folder holds and which pools or runs that comes from.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.io import lease, mirror
from nemo_mm_rank.io.files import lock, write_text
from nemo_mm_rank.io.mirror import HOLDER, TEMPORARY, temporary_name
from nemo_mm_rank.io.mirror import LOCK as LOCK
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.media.source import is_url

MARK = ".nemo-mm-rank.json"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What file systems answer that have no `flock`, as some network mounts do."""
_FORMAT, _MAX_BYTES = 1, 2**24

KINDS = {
    "run": "a run of the main job",
    "traditional": "a job of the text-only baseline",
    "ecodatum": "an EcoDatum job",
    "benchmark": "a benchmark",
    "adaptation": "an adaptation",
    "mix": "a search for a mix",
    "export": "an exported blend",
    "pool": "a pool's shards",
    "planted": "a planted pool",
    "demo": "a demo pool",
    "projection": "a projection",
    "ensemble": "an ensemble",
    "training": "a training job",
    "quarantine": "a pipeline's quarantine",
    "batches": "what a pipeline's writer wrote",
}
"""What a folder of ours can hold."""

_LIKE_OURS = (
    *("blend.parquet", "blend.jsonl", "quarantine.parquet", "results.parquet", "pool.jsonl", "blend-000000.tar"),
    *("pool/part-00000.parquet", "pool/bad_rows.parquet", "ranking/chosen.parquet", "steps/a/part-00000.parquet"),
)
"""Names such as are found in folders of ours, for patterns that might reach them."""


@dataclass(frozen=True)
class Mark:
    """What a folder says of itself.

    Attributes:
        kind: one of `KINDS`, or what a later version knows.
        sources: the pools and runs that its content comes from: absolute paths without links, or URLs.
        files: names of files that were written and that may be removed, where their names alone do not tell.
        version: of the format.
    """

    kind: str
    sources: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    version: int = _FORMAT

    @classmethod
    def read(cls, folder: Path) -> Mark | None:
        """Return the mark of a folder, None where it has none that we can have written."""
        mirror.fetch(folder / MARK)
        try:
            handle = os.open(folder / MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            try:
                found = json.loads(file.read(_MAX_BYTES))
                sources, files = (tuple(map(str, found.get(name, ()))) for name in ("sources", "files"))
                return cls(str(found["kind"]), sources, files, int(found["version"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                return None

    def text(self) -> str:
        """Return the mark as it is written."""
        values = {"made_by": "nemo-mm-rank", "version": self.version, "kind": self.kind}
        return json.dumps({**values, "sources": self.sources, "files": self.files}, indent=2) + "\n"


@dataclass(frozen=True)
class Claim:
    """A folder that somebody wants to write.

    Attributes:
        kind: what it is to hold, one of `KINDS`.
        pools: that its content is made from.
        runs: finished runs, or other folders of ours, that its content is made from.
        overwrite: whether what we made from others may be replaced.
        again: whether a folder of ours may be taken up where its content comes from the same.
    """

    kind: str
    pools: Sequence[PoolSource] = ()
    runs: Sequence[str | Path] = ()
    overwrite: bool = False
    again: bool = True

    @property
    def mark(self) -> Mark:
        """What the folder will say of itself."""
        paths = [*(pool.path for pool in self.pools), *map(str, self.runs)]
        real = (path if is_url(path) else _real(path) for path in map(mirror.named, paths))
        return Mark(self.kind, tuple(sorted(set(real))))

    def check(self, path: str | Path) -> Path:
        """Return the absolute path of the folder if it may be written; nothing is written yet.

        Raises:
            UserError: in one line: no name, a link, a file, a folder that we did not make or that holds something
                else, or one that an input lies in.
            StorageError: it cannot be looked into.
        """
        folder = local(path)
        try:
            if folder.is_symlink():
                raise UserError(
                    f"{folder}: this is a link; name the folder that it leads to, {os.path.realpath(folder)}"
                )
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder}: this exists already and is not a folder; choose another output")
            if Mark.read(folder) is not None:
                recognised(folder, self.kind)
            self._refuse_inputs(folder)
            return self._fitting(folder)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be used: {error.strerror}") from error

    def _fitting(self, folder: Path) -> Path:
        if not folder.exists():
            return folder
        if empty(folder):
            if folder in _places():
                raise UserError(f"{folder}: is {_places()[folder]}; name a folder in it as the output")
            return folder
        mark = recognised(folder, self.kind, " (--overwrite replaces only what it made)" if self.overwrite else "")
        refused = not self.again or (mark.sources != self.mark.sources and not _barren(folder))
        if refused and not self.overwrite:
            others = "" if not self.again else f" of {_named(mark.sources)}, not of {_named(self.mark.sources)}"
            raise UserError(
                f"{folder}: contains {KINDS[self.kind]} already{others}; choose another output, or replace it with "
                "--overwrite (in Python: overwrite=True)"
            )
        return folder

    def make(self, path: str | Path) -> Path:
        """Return the folder, made where it was missing, with our mark in it.

        Raises:
            UserError: as `check`.
            StorageError: it cannot be written.
        """
        return self._marked(self.check(path))

    def _marked(self, folder: Path) -> Path:
        earlier = Mark.read(folder)
        mark = replace(self.mark, files=earlier.files if earlier else ())
        if earlier != mark:
            write_text(folder / MARK, mark.text())
        return folder

    @contextmanager
    def held(self, path: str | Path) -> Iterator[Path]:
        """Make the folder and hold it for this process, what one that was killed had begun to write cleared away.

        Raises:
            UserError: as `check`, or another process works in it.
            StorageError: it cannot be written.
        """
        folder = self.check(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error
        with locked(folder):
            self._marked(self._fitting(folder))  # another process may have been faster
            clear(folder)
            yield folder

    def _refuse_inputs(self, folder: Path) -> None:
        own = _real(folder)
        for run in self.runs:
            if _below(_real(mirror.at(str(run)) if is_url(str(run)) else run), own):
                raise UserError(f"{folder}: the run {run} lies in it; choose an output folder that contains no input")
        for pool in self.pools:
            places = [*([pool.root] if pool.root else []), *pool.trusted_roots]
            if not is_url(pool.path):  # which would be listed anew
                places += [manifest.file for manifest in manifests(pool)]
            for place in places:
                if not is_url(place) and _below(_real(place), own):
                    raise UserError(
                        f"{folder}: the pool {pool.path} lies in it ({place}); choose an output folder that contains "
                        "no input"
                    )
            if not is_url(pool.path) and has_magic(pool.path):
                pattern = os.path.abspath(os.path.expanduser(pool.path)).split(os.sep)
                if any(_matches(pattern, str(folder / name).split(os.sep)) for name in _LIKE_OURS):
                    raise UserError(
                        f"{folder}: the pool {pool.path} would read what is written there; choose an output that "
                        "the pattern does not match"
                    )


def local(path: str | Path) -> Path:
    """Return an output's absolute path; links in it are left. For a URL, that of its mirror, as the store is now.

    Raises:
        UserError: no name, or a URL of what is no object store.
        StorageError: the store cannot be reached.
    """
    if not str(path).strip():
        raise UserError("output: the name is empty; is a variable of the shell unset?")
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: not a valid name of a folder or file")
    if is_url(str(path)):
        place = mirror.at(str(path))
        mirror.refresh(place)
        return place
    return Path(os.path.abspath(Path(path).expanduser()))


def empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a claim that was cut short has left: a lock, half a mark."""
    for name in os.listdir(folder):
        path = folder / name
        lock = name == LOCK and stat.S_ISREG(path.lstat().st_mode) and not path.lstat().st_size
        if not lock and not (name.startswith(f".{MARK}.") and name.endswith(TEMPORARY)):
            return False
    return True


def _barren(folder: Path) -> bool:
    """Whether nothing was made in a folder of ours: what began there has failed before it had read its input."""
    begun = {MARK, LOCK, HOLDER, "config.yaml", "bad_rows.parquet"}
    return all(name in begun for _, _, names in os.walk(folder) for name in names)


def recognised(folder: Path, kind: str, more: str = "") -> Mark:
    """Return the mark of a folder of ours.

    Raises:
        UserError: it has none, or one of another kind, or of a later version.
    """
    mark = Mark.read(folder)
    if mark is None:
        damaged = os.path.lexists(folder / MARK)
        lacks = f"{MARK} in it is damaged, or was not made by nemo-mm-rank" if damaged else f"there is no {MARK} in it"
        raise UserError(
            f"{folder}: the folder is not empty, and nothing shows that nemo-mm-rank made it ({lacks}); "
            f"choose another folder{more}"
        )
    if mark.version > _FORMAT:
        raise UserError(f"{folder}: was made by a later version of nemo-mm-rank; choose another output")
    if mark.kind != kind:
        raise UserError(f"{folder} contains {KINDS.get(mark.kind, mark.kind)}; choose another output")
    return mark


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder of ours for this process. The lock is a file that is never written to.

    Where the file system knows no locks, a file that is made exclusively says who holds the folder instead.

    Raises:
        UserError: another process works in it, or the lock is a link.
        StorageError: it cannot be written.
    """
    path = folder / LOCK
    if path.is_symlink():
        raise UserError(f"{path}: this is a link that no run made; remove it and start again")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another run is using this folder") from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise StorageError(f"{path}: cannot be locked: {error.strerror}") from error
            with _held_by_file(folder / HOLDER), lease.held(folder):
                yield
        else:
            with lease.held(folder):
                yield
    finally:
        os.close(handle)


@contextmanager
def _held_by_file(path: Path) -> Iterator[None]:
    """Hold a folder by a file that names this machine and process; one of a process that is gone is taken over."""
    me = lease.me()
    for attempt in (1, 2):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            holder = path.read_text(encoding="utf-8", errors="replace")[:300] if not path.is_symlink() else ""
            if attempt == 2 or not lease.gone(holder):
                raise UserError(
                    f"{path.parent}: another run is using this folder ({holder or 'unknown'}); "
                    f"if it is not running any more, remove {path} and start again"
                ) from error
            path.unlink(missing_ok=True)
        else:
            break
    warnings.warn(f"{path.parent}: the file system has no locks; {path.name} holds it instead", stacklevel=2)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(me)
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def whole(claim: Claim, path: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes ``path`` when it is full: that is there whole or not at all.

    What a process that was killed has left beside it on the way to the same folder is cleared away. Where a folder of
    ours is replaced, the files go that it was said to have been given, and only those.

    Raises:
        UserError: as `Claim.check`.
        StorageError: it cannot be written.
    """
    folder = claim.check(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished_folders(folder)
        unfinished = temporary_name(folder)
        unfinished.mkdir()
        handle = os.open(unfinished / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            lock(handle)  # says that somebody is at work on it
            os.write(handle, claim.mark.text().encode())
            yield unfinished
            names = tuple(sorted(name for name in _files(unfinished) if name != MARK))
            text = replace(claim.mark, files=names).text().encode()
            os.ftruncate(handle, 0)
            os.pwrite(handle, text, 0)
            os.fsync(handle)
            _put_in_place(unfinished, folder, names)
        finally:
            _remove_unfinished(unfinished)
            os.close(handle)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _put_in_place(unfinished: Path, folder: Path, names: Iterable[str]) -> None:
    if mirror.url_of(folder) is None and (not folder.exists() or not os.listdir(folder)):
        unfinished.replace(folder)
        return
    earlier = Mark.read(folder)
    for name in earlier.files if earlier else ():
        path = folder / name
        inside = not {"", ".", ".."} & set(name.split("/")) and not any(
            above.is_symlink() for above in path.parents if above != folder and folder in above.parents
        )
        if inside:
            mirror.unlink(path)
            for above in path.parents:  # the folders that were made for it
                if above == folder or os.listdir(above):
                    break
                above.rmdir()
    # In a store the mark comes first: what is killed halfway there has to be ours to replace.
    for name in (*names, MARK) if mirror.url_of(folder) is None else (MARK, *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mirror.put(unfinished / name, folder / name)


def _files(folder: Path) -> Iterator[str]:
    """Yield all files and links below a folder, by their paths from there."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name).relative_to(folder).as_posix() for name in (*names, *links))


def _clear_unfinished_folders(folder: Path) -> None:
    for name in os.listdir(folder.parent):
        path = folder.parent / name
        named = name.startswith(f".{folder.name}.") and name.endswith(TEMPORARY) and not path.is_symlink()
        if named and path.is_dir() and Mark.read(path) is not None and _abandoned(path / MARK):
            _remove_unfinished(path)


def _remove_unfinished(folder: Path) -> None:
    """Remove a folder that was never finished, the mark last; all in it is ours, since its name was never known."""
    with suppress(OSError):
        for name in sorted(_files(folder), key=lambda name: name == MARK):
            (folder / name).unlink()
        for place, _, _ in os.walk(folder, topdown=False):
            os.rmdir(place)


def clear(folder: Path) -> None:
    """Remove the unfinished files in and below a folder of ours that nobody works on any more."""
    for place, _, files in os.walk(folder):
        for name in files:
            if name.startswith(".") and name.endswith(TEMPORARY) and _abandoned(path := Path(place, name)):
                path.unlink(missing_ok=True)


def _abandoned(file: Path) -> bool:
    """Whether the process is gone that was writing a file: those at work hold a lock on it."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return lock(handle)
    finally:
        os.close(handle)


def remove(folder: Path, ours: Callable[[Path], bool]) -> None:
    """Remove the files of a folder that are ours, and the folder if nothing else is in it. Links are not followed."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in os.listdir(folder):
        path = folder / name
        if stat.S_ISREG(path.lstat().st_mode) and ours(path):
            mirror.unlink(path)
    with suppress(OSError):  # somebody else's file is there
        folder.rmdir()


def take(folder: Path, name: str) -> Path:
    """Return the path of a file that a folder of ours has only now and then, noted as ours before it is written.

    Raises:
        UserError: somebody else's file is there.
    """
    mark = Mark.read(folder)
    if mark is not None and name not in mark.files:
        if os.path.lexists(folder / name):
            raise UserError(f"{folder / name}: the file exists already, and no run made it; move it elsewhere")
        write_text(folder / MARK, replace(mark, files=(*mark.files, name)).text())
    return folder / name


def drop(folder: Path, name: str) -> None:
    """Remove a file that was taken (`take`); somebody else's stays."""
    mark = Mark.read(folder)
    if mark is not None and name in mark.files:
        mirror.unlink(folder / name)
        write_text(folder / MARK, replace(mark, files=tuple(one for one in mark.files if one != name)).text())


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links to folders at, or below, the named folders of one of ours: they would lead writing elsewhere.

    Raises:
        UserError: naming the link.
    """
    for name in names:
        top = folder / name
        links = [top] if top.is_symlink() else []
        links += [path for place, below, _ in os.walk(top) for one in below if (path := Path(place, one)).is_symlink()]
        for link in links[:1]:
            raise UserError(f"{link}: this is a link that no run made; remove it and start again")


def check_file(path: str | Path, ours: Callable[[Path], bool], what: str) -> Path:
    """Return the path of a file that may be written: there is none, or one that we made.

    Args:
        path: the file.
        ours: whether a file is one that we made.
        what: what it is to be, for people.

    Raises:
        UserError: no name, a link, a folder, or somebody else's file.
    """
    file = local(path)
    if file.is_symlink():
        raise UserError(f"{file}: this is a link; name the file that it leads to, {os.path.realpath(file)}")
    if file.is_dir():
        raise UserError(f"{file}: this is a folder; name a file in it")
    mirror.fetch(file)
    if file.exists() and not (file.is_file() and ours(file)):
        raise UserError(f"{file}: the file exists already, and is not a {what} of nemo-mm-rank; choose another file")
    return file


def _places() -> dict[Path, str]:
    """Return folders that nobody means to give away."""
    found = {Path("/"): "the root of the file system"}
    with suppress(RuntimeError):
        found[Path.home()] = "your home folder"
    with suppress(OSError):
        found[Path.cwd()] = "the current folder"
    return found


def _real(path: str | Path) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _named(sources: Sequence[str]) -> str:
    return ", ".join(sources[:2]) + (f" and {len(sources) - 2} more" if len(sources) > 2 else "") or "no pool"


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether a recursive glob finds a path, both taken apart."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[start:]) for start in range(len(path) + 1))
    hidden = bool(path) and path[0].startswith(".") and not pattern[0].startswith(".")
    return bool(path) and not hidden and fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])

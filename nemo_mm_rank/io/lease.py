"""The lock of a folder in an object store: an object that is made only where there is none, and that runs out.

Whoever holds it renews it. One that has run out, or whose process is known to be gone, is taken over: by an object
named after its token, which only one process can make.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_mm_rank.errors import StorageError, UserError
from nemo_mm_rank.io import mirror

SECONDS = 300.0
"""After so long without a renewal a lock may be taken over; it is renewed five times as often."""


def me() -> str:
    """Return this machine and process, as a lock names its holder."""
    return f"{socket.gethostname()} {os.getpid()}"


def gone(holder: str) -> bool:
    """Whether the process that a lock names ran on this machine, and runs no more."""
    host, _, process = holder.rpartition(" ")
    if host != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the store's folder that ``folder`` mirrors, and see what it has now; for other folders do nothing.

    Raises:
        UserError: another process works in it.
        StorageError: the store cannot be reached, or makes no object only where there is none.
    """
    if (url := mirror.url_of(folder)) is None:
        yield
        return
    lease = _Lease(url, folder)
    lease.take()
    beat = threading.Thread(target=lease.keep, daemon=True)
    beat.start()
    try:
        mirror.refresh(folder)
        yield
    finally:
        lease.ended.set()
        beat.join()
        lease.release()


@dataclass
class _Lease:
    url: str
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    until: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        with mirror.asking(self.url):
            self._store, key = mirror.file_system(self.url)
        self._key = f"{key}/{mirror.HOLDER}"

    def take(self) -> None:
        for _ in range(3):
            if self._make(self._key, self._text()):
                if self._make(self._key, self._text()):
                    raise self._careless()
                return
            other = self._read()
            if other and (gone(other["holder"]) or other["until"] < time.time()):
                if self._take_over(other):
                    return
            elif other:
                until = datetime.fromtimestamp(other["until"], UTC).strftime("%H:%M:%S UTC")
                raise UserError(
                    f"{self.url}: another run is using this folder ({other['holder']}); if it is not running any "
                    f"more, its lock runs out at {until}, or remove {self.url}/{mirror.HOLDER} and start again"
                )
        raise UserError(f"{self.url}: another run is using this folder")

    def _take_over(self, other: dict[str, Any]) -> bool:
        claim = f"{self._key}-{other['token']}"
        if not self._make(claim, self._text()):
            raise UserError(
                f"{self.url}: another run is taking this folder over; if none is, remove "
                f"{self.url}/{mirror.HOLDER}-{other['token']} and start again"
            )
        try:
            if self._read().get("token") != other["token"]:  # another was faster, and is through with it
                return False
            self._write()
            return True
        finally:
            with mirror.asking(self.url):
                self._store.rm_file(claim)

    def keep(self) -> None:
        """Renew the lock until the end; where that is too late, see that nothing more is written."""
        while not self.ended.wait(SECONDS / 5):
            with suppress(StorageError):
                if self._read().get("token") != self.token:
                    mirror.lost[self.folder] = "another run has taken this folder over"
                    return
                if time.time() < self.until:
                    self._write()
            if time.time() >= self.until:
                mirror.lost[self.folder] = "the store could not be reached, and the lock of this folder has run out"
                return

    def release(self) -> None:
        if mirror.lost.pop(self.folder, None) is None:
            with suppress(StorageError), mirror.asking(self.url):  # it runs out
                if self._read().get("token") == self.token:
                    self._store.rm_file(self._key)

    def _text(self) -> bytes:
        self.until = time.time() + SECONDS
        return json.dumps({"holder": me(), "token": self.token, "until": self.until}).encode()

    def _write(self) -> None:
        with mirror.asking(self.url):
            self._store.pipe_file(self._key, self._text())

    def _make(self, key: str, content: bytes) -> bool:
        with mirror.asking(self.url):
            try:
                self._store.pipe_file(key, content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, ValueError, TypeError) as error:
                raise self._careless() from error
        return True

    def _careless(self) -> StorageError:
        return StorageError(
            f"{self.url}: this store has no conditional writes, which keep two runs apart; use another store or a "
            "local folder"
        )

    def _read(self) -> dict[str, Any]:
        """Return what the lock says, nothing where there is none; what nobody can have written has run out."""
        try:
            with mirror.asking(self.url, missing=True):
                content = self._store.cat_file(self._key)
        except FileNotFoundError:
            return {}
        with suppress(KeyError, TypeError, ValueError):
            found = json.loads(content)
            return {"holder": str(found["holder"]), "token": str(found["token"]), "until": float(found["until"])}
        return {"holder": "unknown", "token": "unknown", "until": 0.0}

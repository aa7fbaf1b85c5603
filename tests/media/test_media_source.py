"""References: what stays below the root, what is refused, and how much is read."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.errors import MediaError, PoolError, TransientError
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.io.references import References
from nemo_mm_rank.media import source
from nemo_mm_rank.media.source import open_source

CONTENT = bytes(range(256)) * 16
OPEN = MediaSettings(allow_urls=True)


def read(ref: str, root: object, settings: MediaSettings | None = None, content: bytes | None = None) -> bytes:
    with open_source(ref, str(root), settings or MediaSettings(), content) as file:
        assert file.tell() == 0
        assert file.seekable()
        return file.read()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Return a pool with a file, beside it what it must not lead to."""
    root = tmp_path / "pool"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.bin").write_bytes(CONTENT)
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (tmp_path / "pool-two").mkdir()
    (tmp_path / "pool-two" / "a.bin").write_bytes(b"secret")
    return root


def test_a_path_below_the_root(pool: Path) -> None:
    for ref in ("sub/a.bin", "./sub/a.bin", "sub//a.bin"):
        assert read(ref, pool) == CONTENT
    assert read("sub/a.bin", f"file://{pool}") == CONTENT


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("../secret.bin", "leads out of the root of the pool"),
        ("sub/../../secret.bin", "leads out of the root of the pool"),
        ("..\\secret.bin", "leads out of the root of the pool"),
        (
            "/etc/hostname",
            "leads out of the root of the pool: name a folder that contains it with --root, or another "
            "folder that references may lead to with --trust-root",
        ),
        ("/etc/nothing", "leads out of the root of the pool"),
        ("nothing.bin", "does not exist"),
        ("sub/a.bin/b", "Not a directory"),
        ("sub", "not a regular file"),
        ("", "not a regular file"),
        ("a\0b", "not a file name"),
        ("\ud800.bin", "not a file name"),
        ("x" * 5000, "File name too long"),
        ("file:///etc/hostname", "leads out of the root of the pool"),
        ("file:///nothing/%2e%2e/etc/hostname", "leads out of the root of the pool"),
        ("https://example.org/a.bin", "is a URL; set media.allow_urls"),
    ],
)
def test_refused(pool: Path, ref: str, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        read(ref, pool)
    assert str(pool.parent) not in str(caught.value)


def test_absolute_paths_below_the_root(pool: Path) -> None:
    path = pool / "sub" / "a.bin"
    for ref in (
        str(path),
        f"file://{path}",
        f"file://localhost{path}",
        "sub/../sub/a.bin",
        f"{pool}/../pool/sub/a.bin",
    ):
        assert read(ref, pool) == CONTENT
        assert References(str(pool)).stamp(ref)[0] == len(CONTENT)
    (pool / "two words.bin").write_bytes(CONTENT)
    assert read(f"file://{pool}/two%20words.bin", pool) == CONTENT


def test_other_spellings_of_the_same_name(pool: Path) -> None:
    composed, decomposed = "caf\u00e9.bin", "cafe\u0301.bin"
    for there, ref in ((composed, decomposed), (decomposed, composed)):
        (pool / there).write_bytes(there.encode())
        assert read(ref, pool) == there.encode()
        assert References(str(pool)).stamp(ref)[0] == len(there.encode())
        (pool / there).unlink()
    assert read("sub\\a.bin", pool) == CONTENT
    assert References(str(pool)).stamp("sub\\a.bin")[0] == len(CONTENT)
    (pool / "sub\\a.bin").write_bytes(b"its own name")
    assert read("sub\\a.bin", pool) == b"its own name"
    for both in (composed, decomposed):
        (pool / both).write_bytes(both.encode())
    assert read(composed, pool) == composed.encode()


def test_a_trusted_folder_may_be_led_to_and_nothing_else(pool: Path) -> None:
    blobs = pool.parent / "blobs"
    blobs.mkdir()
    (blobs / "h0").write_bytes(CONTENT)
    (blobs / "out").symlink_to(pool.parent / "secret.bin")
    (pool / "0.jpg").symlink_to("../blobs/h0")
    (pool / "1.jpg").symlink_to("../blobs/out")
    (pool / "2.jpg").symlink_to("../secret.bin")
    trusting = f"{pool}\n{blobs}"
    for ref in ("0.jpg", str(blobs / "h0"), "../blobs/h0"):
        assert read(ref, trusting) == CONTENT
        assert References(trusting).stamp(ref)[0] == len(CONTENT)
        with pytest.raises(MediaError, match="--trust-root"):
            read(ref, pool)
        with pytest.raises(MediaError, match="--trust-root"):
            References(str(pool)).stamp(ref)
    for ref in ("1.jpg", "2.jpg", "h0"):
        with pytest.raises(MediaError):
            read(ref, trusting)
        with pytest.raises(MediaError):
            References(trusting).stamp(ref)


def test_links_that_lead_out_are_refused_and_those_that_stay_followed(pool: Path) -> None:
    (pool / "out.bin").symlink_to(pool.parent / "secret.bin")
    (pool / "beside.bin").symlink_to(pool.parent / "pool-two" / "a.bin")
    (pool / "up").symlink_to(pool.parent)
    (pool / "loop").symlink_to("loop")
    (pool / "in.bin").symlink_to(Path("sub") / "a.bin")
    for ref in ("out.bin", "beside.bin", "up/secret.bin", "up/pool-two/a.bin"):
        with pytest.raises(MediaError, match="leads out of the root of the pool"):
            read(ref, pool)
    with pytest.raises(MediaError):
        read("loop", pool)
    assert read("in.bin", pool) == CONTENT
    (pool.parent / "link-to-pool").symlink_to(pool)
    assert read("in.bin", pool.parent / "link-to-pool") == CONTENT
    assert read("up/pool/sub/a.bin", pool) == CONTENT


def test_what_is_no_regular_file_is_refused_without_waiting(pool: Path) -> None:
    os.mkfifo(pool / "fifo")
    with pytest.raises(MediaError, match="not a regular file"):
        read("fifo", pool)
    with pytest.raises(MediaError, match="not a regular file"):
        read("null", "/dev")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(MediaError):
            read("sub", pool)
    assert len(os.listdir("/proc/self/fd")) == before


def test_size_and_emptiness(pool: Path) -> None:
    exact = MediaSettings(max_bytes=len(CONTENT))
    less = MediaSettings(max_bytes=len(CONTENT) - 1)
    assert read("sub/a.bin", pool, exact) == CONTENT
    assert read("any name", pool, exact, CONTENT) == CONTENT
    for content in (None, CONTENT):
        with pytest.raises(MediaError, match="4,096 bytes, more than the 4,095 allowed"):
            read("sub/a.bin", pool, less, content)
    (pool / "empty").touch()
    for content in (None, b""):
        with pytest.raises(MediaError, match="is empty"):
            read("empty", pool, content=content)


@pytest.fixture
def memory() -> Iterator[str]:
    """Return the URL of a folder in memory with ``sub/a.bin`` in it."""
    fs = fsspec.filesystem("memory")
    fs.pipe("/media-test/sub/a.bin", CONTENT)
    fs.pipe("/media-secret.bin", b"secret")
    yield "memory://media-test"
    fs.rm("/media-test", recursive=True)
    fs.rm("/media-secret.bin")


def test_urls_only_where_allowed(memory: str, tmp_path: Path) -> None:
    assert read(f"{memory}/sub/a.bin", tmp_path, OPEN) == CONTENT
    with pytest.raises(MediaError, match="allow_urls"):
        read(f"{memory}/sub/a.bin", tmp_path)
    with pytest.raises(MediaError, match="cannot be found"):
        read(f"{memory}/nothing", tmp_path, OPEN)


def test_a_root_may_be_a_url_and_holds_its_references_too(memory: str) -> None:
    assert read("sub/a.bin", memory) == CONTENT
    for ref in ("../media-secret.bin", "sub/%2e%2e/%2E%2E/media-secret.bin", "sub/..%2f../media-secret.bin"):
        with pytest.raises(MediaError, match="leads out of the root of the pool"):
            read(ref, memory)
    with pytest.raises(MediaError, match="cannot be found"):
        read("sub/a.bin::memory://media-secret.bin", memory)
    with pytest.raises(MediaError, match="absolute"):
        read("/media-secret.bin", memory)


@pytest.mark.parametrize(
    "ref",
    [
        "local:///etc/hostname",
        "zip://a::file:///etc/hostname",
        "http://host/a::file:///etc/hostname",
        "reference://x",
        "nonsense://x",
    ],
)
def test_urls_that_reach_this_machine_are_never_allowed(ref: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a URL that a row may name"):
        read(ref, tmp_path, OPEN)


class Handler(BaseHTTPRequestHandler):
    """Serves one file, one that never says how long it is, and one that promises less than it sends."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.path in ("/pool/drip.bin", "/pool/drip.jsonl"):
            self._drip(body)
            return
        if self.path not in ("/pool/a%20b.bin", "/pool/long.bin"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/pool/a%20b.bin":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if body:
            self.wfile.write(CONTENT * (1 if self.path == "/pool/a%20b.bin" else 64))

    def _drip(self, body: bool) -> None:
        """Send a byte now and then: no time-out for one answer of a socket ever comes."""
        self.send_response(200)
        self.send_header("Content-Length", "60")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(60 if body else 0):
                self.wfile.write(b"x")
                time.sleep(0.1)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """Return the address of a server on this machine's loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/pool"
        http.shutdown()
        thread.join()


def test_a_server_that_dribbles_is_not_waited_for(server: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"cannot be read: the download did not end within 0.5 s \(download_seconds\)"):
        read(f"{server}/drip.bin", tmp_path, MediaSettings(allow_urls=True, download_seconds=0.5))
    with pytest.raises(MediaError, match=r"the download did not end within 0\.5 s"):
        read("drip.bin", server, MediaSettings(download_seconds=0.5))
    with pytest.raises(PoolError, match=r"drip\.jsonl: cannot be read: the download did not end within 0\.5 s"):
        list(read_pools([PoolSource(path=f"{server}/drip.jsonl", download_seconds=0.5)]))
    assert time.monotonic() - start < 4


MISSING = """
import sys
sys.modules.update(aiohttp=None, s3fs=None)  # as where they are not installed
from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.errors import MediaError, PoolError
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.io.references import References
from nemo_mm_rank.media import source
from nemo_mm_rank.media.source import open_source

allowed = MediaSettings(allow_urls=True)
for url, root in (("http://127.0.0.1:1/a.bin", "."), ("a.bin", "https://127.0.0.1:1"), ("s3://bucket/a.bin", ".")):
    try:
        open_source(url, root, allowed)
    except MediaError as error:
        print(error)
for path in ("http://127.0.0.1:1/pool.tar", "s3://bucket/pool.tar"):
    try:
        manifests(PoolSource(path=path))
    except PoolError as error:
        print(error)
"""


def test_a_library_that_is_missing_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=120)
    http = 'a library is missing: HTTPFileSystem requires "requests" and "aiohttp" to be installed; '
    http += "pip install 'fsspec[http]'"
    s3 = "a library is missing: Install s3fs to access S3"
    assert done.stdout.splitlines() == [
        f"cannot be opened: {http}",
        f"cannot be opened: {http}",
        f"cannot be opened: {s3}",
        f"http://127.0.0.1:1/pool.tar: cannot be read: {http}",
        f"s3://bucket/pool.tar: cannot be read: {s3}",
    ], done.stderr


def test_http(server: str, tmp_path: Path) -> None:
    assert read(f"{server}/a b.bin", tmp_path, OPEN) == CONTENT
    assert read("a b.bin", server) == CONTENT
    assert read("long.bin", server) == CONTENT * 64
    with pytest.raises(MediaError, match="cannot be found"):
        read(f"{server}/nothing", tmp_path, OPEN)
    with pytest.raises(MediaError, match="4,096 bytes, more than the 1,000 allowed"):
        read("a b.bin", server, MediaSettings(max_bytes=1000))
    with pytest.raises(MediaError, match="more than the 100,000 bytes allowed"):
        read("long.bin", server, MediaSettings(max_bytes=100_000))
    with pytest.raises(TransientError, match="cannot be found: its server does not answer"):
        read("http://127.0.0.1:1/a.bin", tmp_path, OPEN)


def swapped(monkeypatch: pytest.MonkeyPatch, place: Path, to: Path) -> None:
    """Exchange ``place`` for a link, once it has been looked at and before it is opened."""
    real = source._open_below

    def late(base: str, path: str) -> int:
        place.rename(place.with_name("moved"))
        place.symlink_to(to)
        return real(base, path)

    monkeypatch.setattr(source, "_open_below", late)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Return a pool three folders deep, beside which everything lies again, with other content."""
    for root, content in (("pool", CONTENT), ("secret", b"secret")):
        (tmp_path / root / "a" / "b").mkdir(parents=True)
        (tmp_path / root / "a" / "b" / "c.bin").write_bytes(content)
        with tarfile.open(tmp_path / root / "a" / "b" / "c.tar", "w") as tar:
            member = tarfile.TarInfo("c.bin")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        (tmp_path / root / "a" / "b" / "c.txt").write_text("words" if root == "pool" else "secret", "utf-8")
    return tmp_path / "pool"


@pytest.mark.parametrize("place", [".", "a", "a/b", "a/b/{}"])
@pytest.mark.parametrize("name", ["c.bin", "c.tar"])
def test_a_folder_exchanged_for_a_link(deep: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str) -> None:
    reference = f"a/b/{name}" + ("@0!c.bin" if name == "c.tar" else "")
    assert read(reference, deep) == CONTENT
    where = deep / place.format(name)
    swapped(monkeypatch, where, deep.with_name("secret") / place.format(name))
    with pytest.raises(MediaError, match="a link has taken its place, or the place of a folder"):
        read(reference, deep)


def test_a_text_in_a_folder_exchanged_for_a_link(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert References(str(deep)).text("a/b/c.txt") == "words"
    swapped(monkeypatch, deep / "a", deep.with_name("secret") / "a")
    with pytest.raises(MediaError, match="a link has taken its place"):
        References(str(deep)).text("a/b/c.txt")


def test_folders_exchanged_all_the_time(deep: Path) -> None:
    """Somebody puts a link in a folder's place and takes it away again: what is opened is the pool's, or nothing."""
    place, aside, link = deep / "a", deep / "aside", deep / "link"
    link.symlink_to(deep.with_name("secret") / "a")
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            place.rename(aside)
            link.rename(place)
            place.rename(link)
            aside.rename(place)

    thread = threading.Thread(target=exchange)
    thread.start()
    found, refused = 0, 0
    try:
        while found + refused < 3000:
            try:
                assert read("a/b/c.bin", deep) == CONTENT
                found += 1
            except MediaError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert found


def test_folders_that_cannot_be_listed_and_links_inside(deep: Path) -> None:
    (deep / "a" / "here.bin").symlink_to("b/c.bin")
    (deep / "again").symlink_to("a")
    (deep / "a").chmod(0o711)
    assert read("again/here.bin", deep) == CONTENT

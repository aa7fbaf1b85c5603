"""Members of tar archives: opened where they lie and nowhere else, whatever the archive and the reference claim."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.errors import MediaError
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Image
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.tar import MAX_HEADER_BYTES, Place, place_of, walk
from tests.tars import Member, damage, header_at, member, png, write_tar

LONG = "folder/" + "x" * 200 + ".bin"


def content(ref: str, root: object, settings: MediaSettings | None = None) -> bytes:
    with open_source(ref, str(root), settings or MediaSettings()) as file:
        return file.read()


def ref(path: Path, name: str) -> str:
    return str(Place(path.name, header_at(path, name), name))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    members: list[Member] = [
        ("a.bin", b"first" * 300),
        (LONG, b"second"),
        ("empty.bin", b""),
        (member("link.bin", tarfile.SYMTYPE, "/etc/hostname"), b""),
        (member("hard.bin", tarfile.LNKTYPE, "a.bin"), b""),
        (member("null.bin", tarfile.CHRTYPE), b""),
        (member("folder", tarfile.DIRTYPE), b""),
        ("ümläut!@7!.bin", b"last"),
    ]
    return write_tar(tmp_path / "shard.tar", members)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read(tmp_path: Path, form: int) -> None:
    names = ["a.bin", "folder/" + "y" * 90 + ".bin"] + ([LONG, "ü.bin"] if form != tarfile.USTAR_FORMAT else [])
    path = write_tar(tmp_path / "s.tar", [(name, name.encode() * 9) for name in names], form)
    with path.open("rb") as file:
        assert [found.name for found in walk(file)] == names
    for name in names:
        assert content(ref(path, name), tmp_path) == name.encode() * 9


def test_references() -> None:
    place = Place("a/b.tar", 1536, "c/d.jpg")
    assert str(place) == "a/b.tar@1536!c/d.jpg"
    assert place_of(str(place)) == place
    assert place_of("b.tar@0!x!y@3!.tar@1!z") == Place("b.tar", 0, "x!y@3!.tar@1!z")
    for plain in ("b.tar", "b.tar!x.jpg", "b.tar@x!y", "b.tar@-1!y", "b.tar@5!", ".tar@5!x", "a@5!x.jpg", "b.tar@٣!y"):
        assert place_of(plain) is None


def test_a_member_is_a_file_of_its_own(archive: Path) -> None:
    with open_source(ref(archive, "a.bin"), str(archive.parent), MediaSettings()) as file:
        assert (file.tell(), file.seekable(), file.readable(), file.writable()) == (0, True, True, False)
        assert file.read(7) == b"firstfi"
        assert file.seek(-5, os.SEEK_END) == 1495
        assert file.read() == b"first"
        assert file.read() == b""
        assert file.seek(10_000) == 10_000
        assert file.read(5) == b""
        file.seek(1)
        assert file.read(4) == b"irst"
    assert content(ref(archive, LONG), archive.parent) == b"second"
    assert content(ref(archive, "ümläut!@7!.bin"), archive.parent) == b"last"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.bin", "is empty"),
        ("link.bin", "not a regular file in the archive"),
        ("hard.bin", "not a regular file in the archive"),
        ("null.bin", "not a regular file in the archive"),
        ("folder", "not a regular file in the archive"),
    ],
)
def test_only_regular_files_with_content(archive: Path, name: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        content(ref(archive, name), archive.parent)


@pytest.mark.parametrize("reference", ["shard.tar@0!b.bin", "shard.tar@512!a.bin", "shard.tar@1!a.bin", "s/../x"])
def test_a_reference_must_fit_the_archive(archive: Path, reference: str) -> None:
    with pytest.raises(MediaError):
        content(reference, archive.parent)


def test_hostile_references(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out.tar").symlink_to(archive)
    (root / "plain.tar").write_bytes(b"no archive at all" * 100)
    os.mkfifo(root / "fifo.tar")
    for reference, message in {
        "../shard.tar@0!a.bin": "leads out of the root of the pool",
        "out.tar@0!a.bin": "leads out of the root of the pool",
        f"{archive}@0!a.bin": "leads out of the root of the pool",
        f"file://{archive}@0!a.bin": "leads out of the root of the pool",
        "fifo.tar@0!a.bin": "not a regular file",
        "plain.tar@0!a.bin": "not in the archive where the reference says",
        "plain.tar@999999999999999999!a.bin": "not in the archive where the reference says",
        "none.tar@0!a.bin": "does not exist",
    }.items():
        with pytest.raises(MediaError, match=message):
            content(reference, root)
    # What a member is called is compared, and opens nothing.
    name = "../../etc/hostname"
    path = write_tar(root / "names.tar", [(name, b"harmless")])
    assert content(ref(path, name), root) == b"harmless"


def test_no_handle_is_left_open(archive: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a.bin", "link.bin", "empty.bin", LONG):
        for reference in (ref(archive, name), f"{archive.name}@3!{name}"):
            try:
                content(reference, archive.parent)
            except MediaError:
                continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_size_is_the_members(archive: Path) -> None:
    reference = ref(archive, "a.bin")
    assert archive.stat().st_size > 1500
    assert len(content(reference, archive.parent, MediaSettings(max_bytes=1500))) == 1500
    with pytest.raises(MediaError, match="1,500 bytes, more than the 1,499 allowed"):
        content(reference, archive.parent, MediaSettings(max_bytes=1499))


def test_a_member_that_the_archive_ends_within(archive: Path) -> None:
    reference = ref(archive, "a.bin")
    os.truncate(archive, 1000)
    with pytest.raises(MediaError, match="is cut off"):
        content(reference, archive.parent)


def test_an_archive_behind_a_url(archive: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/tars/shard.tar", archive.read_bytes())
    reference = ref(archive, "a.bin")
    small = MediaSettings(max_bytes=1500)  # the archive is larger
    assert content(reference, "memory://tars", small) == b"first" * 300
    url = f"memory://tars/{reference}"
    assert content(url, "/", small.model_copy(update={"allow_urls": True})) == b"first" * 300
    with pytest.raises(MediaError, match="allow_urls"):
        content(url, "/")
    with pytest.raises(MediaError, match="more than the 1,499 allowed"):
        content(reference, "memory://tars", MediaSettings(max_bytes=1499))
    with pytest.raises(MediaError, match="where the reference says"):
        content("shard.tar@512!a.bin", "memory://tars")
    fs.rm("/tars", recursive=True)


def test_many_threads_one_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n:03d}.png", png(n)) for n in range(200)])
    with path.open("rb") as file:
        references = [str(Place("s.tar", found.offset, found.name)) for found in walk(file)]
    opener = Opener(root=str(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        pictures = list(threads.map(lambda one: opener.open(one, "image"), references))
    assert [picture.pixels.getpixel((3, 3)) for picture in pictures if isinstance(picture, Image)] == [
        (red, 0, 0) for red in range(200)
    ]


def broken(path: Path) -> tuple[list[str], str]:
    """Return what is found before a break, and what is said of it."""
    names: list[str] = []
    with path.open("rb") as file:
        try:
            names.extend(found.name for found in walk(file))
        except tarfile.ReadError as error:
            return names, str(error)
    return names, ""


def test_a_broken_archive_is_no_short_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [(f"{n}.bin", b"x" * 700) for n in range(3)])
    whole = path.read_bytes()
    names = ["0.bin", "1.bin", "2.bin"]
    assert broken(path) == (names, "")
    third = header_at(path, "2.bin")
    damage(path, third + 3, b"?")
    assert broken(path) == (names[:2], f"no header that can be read at byte {third:,} (bad checksum)")
    for size, found, said in (
        (third + 600, names, "the file ends within a member at byte 3,072"),
        (third + 100, names[:2], "the file ends without the archive's end mark"),
        (third, names[:2], "the file ends without the archive's end mark"),
        (third + 1536, names, "the file ends without the archive's end mark"),
    ):
        path.write_bytes(whole[:size])
        assert broken(path) == (found, said)
    path.write_bytes(whole[: third + 1536 + 1024] + whole)
    assert broken(path) == (names, "more behind the archive's end mark at byte 4,608 (archives put together?)")


def raw(name: str, kind: bytes, size: int) -> bytes:
    """Return a header that may claim any size (a negative one as GNU's base 256)."""
    header = tarfile.TarInfo(name)
    header.type = kind
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (raw("x", tarfile.XHDTYPE, MAX_HEADER_BYTES + 1), "a header of 16,385 bytes"),
        (raw("x", tarfile.GNUTYPE_LONGNAME, 2**32), "a header of 4,294,967,296 bytes"),
        (raw("x", tarfile.REGTYPE, -512), "a header of -512 bytes"),
        (raw("x", tarfile.XHDTYPE, -512), "a header of -512 bytes"),
        (raw("x", tarfile.GNUTYPE_SPARSE, 10), "a sparse file"),
    ],
)
def test_headers_that_cost_more_than_they_may(tmp_path: Path, hostile: bytes, why: str) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.bin", b"x")])
    path.write_bytes(path.read_bytes()[:1024] + hostile + bytes(20_000))
    names, said = broken(path)
    assert names == ["a.bin"]
    assert said == f"no header that can be read at byte 1,024 ({why})"
    with pytest.raises(MediaError, match="where the reference says"):
        content("s.tar@1024!x", tmp_path)


def test_pax_records_cannot_turn_the_walk_back(tmp_path: Path) -> None:
    for records in ({"size": "-99999"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}):
        header = tarfile.TarInfo("b.bin")
        header.pax_headers = records
        path = write_tar(tmp_path / "s.tar", [("a.bin", b"x"), (header, b"9\n" * 8), ("c.bin", b"x")])
        names, said = broken(path)
        assert names == ["a.bin"]
        assert said.startswith("no header that can be read at byte 1,024 (")


def test_headers_without_end(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    global_header = raw("x", tarfile.XGLTYPE, 0)
    path.write_bytes(write_tar(tmp_path / "t.tar", [("a.bin", b"x")]).read_bytes()[:1024] + global_header * 5000)
    names, said = broken(path)
    assert names == ["a.bin"]
    assert said.startswith("no header that can be read at byte 1,024 (")
    with pytest.raises(MediaError, match="where the reference says"):
        content("s.tar@1024!x", tmp_path)

"""WebDataset tars as pools: what a sample's members are, ids, and samples that are none, each in its place."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.config import MediaSettings, PoolSource
from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io import webdataset as reader
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.files import file_digest
from nemo_mm_rank.io.pool import manifests, read_pools, validate
from nemo_mm_rank.io.webdataset import kind_of, split_name
from nemo_mm_rank.media.source import open_source
from nemo_mm_rank.media.tar import place_of
from nemo_mm_rank.modality import media_names, of
from nemo_mm_rank.schema import Modality
from tests.tars import Member, damage, header_at, member, png, write_tar

Columns = dict[str, list[Any]]


def read(path: Path | str, **source: Any) -> tuple[Columns, list[BadRow]]:
    columns: Columns = {}
    bad: list[BadRow] = []
    n = 0
    for batch in read_pools([PoolSource(path=str(path), **source)]):
        assert batch.rows_in == len(batch.stamps) + len(batch.bad)
        for name, column in {**batch.pairs, **batch.extras}.items():
            values = column if isinstance(column, list) else column.to_pylist()
            columns.setdefault(name, [None] * n).extend(values)
        n += len(batch.stamps)
        for column in columns.values():
            column += [None] * (n - len(column))
        bad += batch.bad
    return columns, bad


def only(path: Path, **source: Any) -> dict[str, Any]:
    """Read an archive of one good sample."""
    columns, bad = read(path, **source)
    assert bad == []
    return {name: value for name, [value] in columns.items()}


def faults(path: Path, **source: Any) -> list[str]:
    """Read an archive without a good sample; return what is wrong, without the places."""
    columns, bad = read(path, **source)
    assert columns.get("pair_id", []) == []
    return [row.message for row in bad]


def content(reference: str, root: str) -> bytes:
    with open_source(reference, root, MediaSettings()) as file:
        return file.read()


def js(**values: Any) -> bytes:
    return json.dumps(values).encode()


def test_what_the_real_library_writes(tmp_path: Path) -> None:
    expected = []
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard}.tar")) as out:
            for n in range(3):
                key = f"deep/{shard}.d/{n:03d}"
                values = {"n": n, "caption": "of the json", "nested": {"a": [n]}}
                out.write({"__key__": key, "PNG": png(n), "txt": f"number {n} ü", "json": values})
                expected.append((f"{tmp_path.name}/shard-{shard}/{key}", f"number {n} ü", png(n)))
    columns, bad = read(tmp_path)
    assert bad == []
    media = [content(*place) for place in zip(columns["data"], columns["media_root"], strict=True)]
    assert list(zip(columns["pair_id"], columns["annotation"], media, strict=True)) == expected
    assert columns["modality"] == ["image"] * 6
    assert columns["n"] == [0, 1, 2, 0, 1, 2]
    assert columns["caption"] == ["of the json"] * 6
    assert columns["nested"] == [{"a": [n]} for n in (0, 1, 2, 0, 1, 2)]
    assert columns["pool"] == [tmp_path.name] * 6
    assert set(columns) == {"pair_id", "pool", "modality", "data", "annotation", "media_root", "n", "caption", "nested"}


keys = st.lists(st.sampled_from(["a", "b/", "c.d/", "..x", ".", "_", "__", "Ü", "é/"]), min_size=1, max_size=5).map(
    "".join
)


@given(st.lists(st.tuples(keys, st.sampled_from(["png", "txt", "x.PNG", "", "json"])), max_size=8))
@settings(max_examples=300, deadline=None)
def test_keys_are_those_of_the_real_library(names: list[tuple[str, str]]) -> None:
    # Hidden files apart, which it takes for members of a sample without a name.
    for key, extension in names:
        name = f"{key}.{extension}".lstrip("/")
        found = split_name(name)
        known = webdataset.tariterators.base_plus_ext(name)
        hidden = name.rpartition("/")[2].startswith(".")
        own = name.split("/")[0].startswith("__") and name.split("/")[0].endswith("__") and len(name.split("/")[0]) > 3
        if hidden or own or known[0] is None:
            assert found == ("", "")
        else:
            assert found == (known[0], known[1].lower())


def test_where_the_annotation_is(tmp_path: Path) -> None:
    def annotation(members: list[Member], **source: Any) -> tuple[str, dict[str, Any]]:
        row = only(write_tar(tmp_path / "s.tar", [("k.png", png(0)), *members]), **source)
        ours = ("pair_id", "pool", "modality", "data", "annotation", "media_root")
        return row["annotation"], {name: value for name, value in row.items() if name not in ours}

    assert annotation([("k.txt", b"\xef\xbb\xbfby text")]) == ("by text", {})
    assert annotation([("k.json", js(caption="by caption", text="t"))]) == ("by caption", {"text": "t"})
    assert annotation([("k.json", js(text="by text"))]) == ("by text", {})
    assert annotation([("k.transcript", b"spoken")]) == ("spoken", {})
    both: list[Member] = [("k.json", js(annotation="ours", caption="c")), ("k.txt", b"t")]
    assert annotation(both) == ("ours", {"caption": "c", "txt": "t"})
    either: list[Member] = [("k.txt", b"t"), ("k.json", js(caption="c", alt="a"))]
    assert annotation(either) == ("t", {"caption": "c", "alt": "a"})
    assert annotation(either, fields={"annotation": "alt"}) == ("a", {"txt": "t", "caption": "c"})
    assert annotation(either, fields={"annotation": "alt"}, rename={"txt": "said"})[1] == {"said": "t", "caption": "c"}


def test_where_the_data_is(tmp_path: Path) -> None:
    def data(*members: Member, **source: Any) -> tuple[str, Any]:
        row = only(write_tar(tmp_path / "s.tar", [*members, ("k.txt", b"note")]), **source)
        value = row["data"]
        return row["modality"], content(value, row["media_root"]) if "@" in value else value

    for modality in media_names():
        for extension in of(modality).extensions.split():
            assert kind_of(extension) == modality
            assert data((f"k.{extension.upper()}", b"media")) == (modality, b"media")
    # Any extension, where the modality is known.
    assert data(("k.weird", b"media"), modality="audio") == ("audio", b"media")
    assert data(("k.weird", b"media"), ("k.json", js(modality="video"))) == ("video", b"media")
    assert data(("k.wav", b"sound"), ("k.mp4", b"film"), modality="audio") == ("audio", b"sound")
    # One of several, by name; the other is a column.
    two: list[Member] = [("k.png", b"picture"), ("k.seg.png", b"mask")]
    assert data(*two, fields={"data": "seg.png"}) == ("image", b"mask")
    row = only(write_tar(tmp_path / "s.tar", [*two, ("k.txt", b"note")]), fields={"data": "png"})
    assert content(row["seg.png"], row["media_root"]) == b"mask"
    # Text and code: in the json, or in a member where the pool says so.
    assert data(("k.json", js(data="in the json", modality="text"))) == ("text", "in the json")
    assert data(("k.json", js(code="x = 1")), fields={"data": "code"}, modality="code") == ("code", "x = 1")
    assert data(("k.py", b"x = 2"), modality="code") == ("code", "x = 2")
    assert data(("k.py", b"x = 2"), fields={"data": "py"}, modality="code") == ("code", "x = 2")
    # A path in the json is a file beside the archive, as in any manifest.
    (tmp_path / "beside.jpg").write_bytes(b"outside")
    row = only(write_tar(tmp_path / "s.tar", [("k.json", js(data="beside.jpg", modality="image", caption="c"))]))
    assert content(row["data"], row["media_root"]) == b"outside"


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (("k.jpg", "k.caption"), {}),
        (("k.input.jpg", "k.outputs.txt"), {"data": "input.jpg", "annotation": "outputs.txt"}),
        (("k.jpg", "k.en"), {"annotation": "en"}),
        (("k.v1.jpg", "k.v1.txt"), {}),
    ],
)
def test_text_members_are_read(tmp_path: Path, names: tuple[str, str], fields: dict[str, str]) -> None:
    path = write_tar(tmp_path / "s.tar", [(names[0], png(1)), (names[1], "grün".encode())])
    row = only(path, fields=fields)
    assert row["annotation"] == "grün"
    assert row["data"] == f"s.tar@0!{names[0]}"
    assert row["pair_id"] == ("s/k.v1" if "v1" in names[0] else "s/k")


def test_text_parts_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    parts = [{"modality": "image", "data": "png"}, {"modality": "text", "data": "md"}]
    members = [("k.png", png(1)), ("k.md", b"# words"), ("k.json", js(data=parts, annotation="a"))]
    assert only(write_tar(tmp_path / "s.tar", members))["data_parts"][0] == {"modality": "text", "data": "# words"}


def test_ids_named_by_the_field_map_are_texts_and_nan_is_none(tmp_path: Path) -> None:
    members = [("k.png", png(1)), ("k.txt", b"note"), ("k.id", b"my-7")]
    assert only(write_tar(tmp_path / "s.tar", members), fields={"pair_id": "id"})["pair_id"] == "my-7"
    members = [("k.png", png(1)), ("k.txt", b"note"), ("k.json", b'{"pair_id": NaN}')]
    assert only(write_tar(tmp_path / "s.tar", members))["pair_id"] == "s/k"


def test_members_that_lie_apart_are_named_once_a_sample(tmp_path: Path) -> None:
    apart = [(f"{key}.{kind}", png(1) if kind == "png" else b"note") for kind in ("png", "txt") for key in "abc"]
    path = write_tar(tmp_path / "s.tar", [("good.png", png(1)), ("good.txt", b"note"), *apart, ("lone.png", png(1))])
    columns, bad = read(path)
    assert columns["pair_id"] == ["s/good"]
    side = "side by side, found them apart: sort the archive by name (tar --sort=name)"
    assert [row.message for row in bad[:3]] == [f"row: expected the members of sample '{key}' {side}" for key in "abc"]
    assert [row.pair_id for row in bad] == ["s/a", "s/b", "s/c", "s/lone"]
    assert bad[3].field == "annotation"


def test_ids(tmp_path: Path) -> None:
    sample: list[Member] = [("a/b.png", png(1)), ("a/b.txt", b"one"), ("c.png", png(2))]
    for name in ("x.tar", "y.tar"):
        write_tar(tmp_path / "p" / name, [*sample, ("c.json", js(caption="two", id=f"own of {name}"))])
    assert read(tmp_path / "p" / "x.tar")[0]["pair_id"] == ["x/a/b", "x/c"]
    assert read(tmp_path / "p")[0]["pair_id"] == ["p/x/a/b", "p/x/c", "p/y/a/b", "p/y/c"]
    assert read(tmp_path / "p" / "*.tar", name="mine")[0]["pair_id"][:2] == ["mine/x/a/b", "mine/x/c"]
    mapped, bad = read(tmp_path / "p", fields={"pair_id": "id"})
    assert bad == []
    assert mapped["pair_id"] == ["p/x/a/b", "own of x.tar", "p/y/a/b", "own of y.tar"]


def test_what_belongs_to_no_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "s.tar",
        [
            (member("folder", tarfile.DIRTYPE), b""),
            ("__info__/about.json", b"{"),
            ("README", b"read me"),
            ("folder/._a.png", b"of another system"),
            ("folder/a.png", png(1)),
            ("LICENSE", b"in between"),
            ("folder/a.txt", b"note"),
        ],
    )
    assert only(path)["pair_id"] == "s/folder/a"


GOOD_FIRST: list[Member] = [("first.png", png(1)), ("first.txt", b"one")]
GOOD_LAST: list[Member] = [("last.json", js(caption="two")), ("last.png", png(2))]
HALF = os.fsdecode(b"k\xff")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.png", b"x")], "annotation: expected a non-empty string, found nothing"),
        ([("k.png", b"x"), ("k.txt", b" \n")], "annotation: expected a non-empty string, found ' \\n'"),
        ([("k.png", b"x"), ("k.txt", b"a\xff")], "row: expected text in UTF-8 in 'k.txt', found byte 0xff at 2"),
        (
            [("k.png", b"x"), ("k.json", b'{"caption": ')],
            "row: expected one JSON object in 'k.json', in UTF-8, found Expecting value at column 13",
        ),
        (
            [("k.png", b"x"), ("k.json", b"[1]")],
            "row: expected one JSON object in 'k.json', in UTF-8, found '[1]'",
        ),
        (
            [("k.png", b"x"), ("k.json", js(caption=7))],
            "annotation: expected a string, found int 7",
        ),
        (
            [("k.txt", b"note")],
            "data: expected a member with the data, or a field 'data' in the json, found nothing else",
        ),
        (
            [("k.txt", b"note"), ("k.npy", b"x")],
            "data: expected a member with the data, or a field 'data' in the json, found npy",
        ),
        (
            [("k.txt", b"note"), ("k.json", js(modality="audio")), ("k.png", b"x")],
            "data: expected a member with the audio, or a field 'data' in the json, found png",
        ),
        (
            [("k.1.jpg", b"x"), ("k.2.jpg", b"x"), ("k.txt", b"note")],
            "data: expected one member with the data, found several (1.jpg, 2.jpg); map one: fields: {data: 1.jpg}; "
            "a key ends at the first dot of a name: are these several samples?",
        ),
        ([("k.png", b""), ("k.txt", b"note")], "data: expected a member with content, found 'k.png', which is empty"),
        (
            [("k.png", b"x"), ("k.PNG", b"y"), ("k.txt", b"note")],
            "row: expected every member once, found 'k.PNG' twice",
        ),
        (
            [("k.png", b"x"), ("k.txt", b"note"), ("k.json", js(txt="n"))],
            "row: expected a field once, found 'txt' as a member and in the json",
        ),
        (
            [("k.txt", b"note"), (member("k.png", tarfile.SYMTYPE, "/etc/hostname"), b"")],
            "row: expected regular files, found 'k.png', a link or a device",
        ),
        (
            [("k.txt", b"note"), (member("k.png", tarfile.LNKTYPE, "first.png"), b"")],
            "row: expected regular files, found 'k.png', a link or a device",
        ),
        (
            [("k.txt", b"note"), (member("k.png", tarfile.FIFOTYPE), b"")],
            "row: expected regular files, found 'k.png', a link or a device",
        ),
        (
            [("../k.png", b"x"), ("../k.txt", b"note")],
            "row: expected member names below the archive's root, found '../k.png'",
        ),
        (
            [("/etc/k.png", b"x"), ("/etc/k.txt", b"note")],
            "row: expected member names below the archive's root, found '/etc/k.png'",
        ),
        (
            [(f"{HALF}.png", b"x"), (f"{HALF}.txt", b"note")],
            "row: expected member names in UTF-8, found 'k\\udcff.png'",
        ),
        ([(f"k.{n}", b"x") for n in range(101)], "row: expected at most 100 members, found more"),
        (
            [("k.txt", b"x" * (2**24 + 1)), ("k.png", b"x")],
            "row: expected at most 16,777,216 bytes of text, found 16,777,217 in 'k.txt'",
        ),
        (
            [("k.png", b"x"), ("k.json", js(caption="c", pair_id="s/first"))],
            "pair_id: expected an id that no other row has, found the id of {file}:1 again",
        ),
    ],
)
def test_a_sample_that_is_no_pair_shifts_no_other(tmp_path: Path, members: list[Member], message: str) -> None:
    path = write_tar(tmp_path / "s.tar", [*GOOD_FIRST, *members, *GOOD_LAST], tarfile.GNU_FORMAT)
    columns, [bad] = read(path)
    assert columns["pair_id"] == ["s/first", "s/last"]
    assert columns["annotation"] == ["one", "two"]
    assert [content(ref, str(tmp_path)) for ref in columns["data"]] == [png(1), png(2)]
    assert (bad.file, bad.line, bad.pool) == (str(path), 2, "s")
    assert bad.message == message.replace("{file}", str(path))


def test_a_key_that_comes_back_is_another_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*GOOD_FIRST, *GOOD_LAST, ("first.png", png(3)), ("first.txt", b"three")])
    columns, bad = read(path)
    assert columns["pair_id"] == ["s/first", "s/last"]
    assert [str(row) for row in bad] == [
        f"{path}:3: pair 's/first': pair_id: expected an id that no other row has, found the id of {path}:1 again"
    ]


def test_an_archive_that_breaks_off(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*GOOD_FIRST, *GOOD_LAST])
    whole = path.read_bytes()
    picture = header_at(path, "last.png")
    cut = f"{path}:2: pair 's/last': row: expected whole members, found 'last.png', within which the archive ends"
    missing = (
        f"{path}:2: pair 's/last': data: expected a member with the data, or a field 'data' in the json, "
        "found nothing else"
    )
    no_end = (
        f"{path}:3: row: expected a tar archive to its end, found the file ends without the archive's end mark; "
        "what comes after cannot be read"
    )
    for size, said in (
        (picture + 530, [cut]),
        (picture + 100, [missing, no_end]),
        (picture, [missing, no_end]),
        (picture + 1024, [no_end]),
    ):
        path.write_bytes(whole[:size])
        columns, bad = read(path)
        assert columns["pair_id"][0] == "s/first"
        assert len(columns["pair_id"]) == (2 if said == [no_end] else 1)
        assert [str(row) for row in bad] == said
    loose = write_tar(path, [*GOOD_FIRST, ("README", b"of no sample")])
    os.truncate(loose, header_at(loose, "README") + 515)
    within = no_end.replace(f"{path}:3", f"{path}:2").replace(
        "the file ends without the archive's end mark", "the file ends within a member at byte 2,048"
    )
    assert [str(row) for row in read(loose)[1]] == [within]
    path.write_bytes(whole)
    damage(path, picture, b"????")
    assert [row.message for row in read(path)[1]][1:] == [
        f"row: expected a tar archive to its end, found no header that can be read at byte {picture:,} (bad checksum); "
        "what comes after cannot be read"
    ]


@pytest.mark.parametrize("junk", [b"", b"x" * 100, b"x" * 5000, b"\x1f\x8b" + bytes(5000)])
def test_what_is_no_archive(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(junk)
    with pytest.raises(PoolError, match=r"s\.tar: cannot be read: "):
        read(path)
    with pytest.raises(PoolError):
        file_digest(str(tmp_path / "none.tar"))


def test_an_empty_archive_has_no_rows(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "s.tar", [])) == (read(write_tar(tmp_path / "t.tar", []))[0], [])
    assert not validate([PoolSource(path=str(tmp_path / "s.tar"))]).ok


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members: list[Member] = []
    for n in range(51):
        members += [(f"{n:03d}.png", png(n))] + ([(f"{n:03d}.txt", b"x" * 40)] if n % 7 else [])
    path = write_tar(tmp_path / "s.tar", members)
    whole = read(path)
    assert [row.line for row in whole[1]] == [1, 8, 15, 22, 29, 36, 43, 50]
    monkeypatch.setattr(reader, "BATCH_ROWS", 7)
    assert read(path) == whole
    monkeypatch.setattr(reader, "BLOCK_BYTES", 100)
    assert read(path) == whole


@given(st.integers(0, 10_239), st.binary(min_size=1, max_size=20), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_a_row_or_an_error(at: int, noise: bytes, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "s.tar", [*GOOD_FIRST, *GOOD_LAST])
        second = header_at(path, "last.json")
        damage(path, at, noise)
        if cut:
            os.truncate(path, at + len(noise))
        try:
            columns, bad = read(path)
        except PoolError:
            assert at < 512  # the first header
            return
        if at >= second:
            assert columns["pair_id"][0] == "s/first"
            assert columns["annotation"][0] == "one"
        assert all(row.line > 0 and row.message for row in bad)
        file_digest(str(path))


def test_folders_globs_and_roots(tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "b.tar", GOOD_LAST)
    write_tar(tmp_path / "d" / "a.tar", GOOD_FIRST)
    (tmp_path / "d" / "a_stats.json").write_text("{}")
    for path in (tmp_path / "d", tmp_path / "d" / "*.tar"):
        assert [manifest.file for manifest in manifests(PoolSource(path=str(path)))] == [
            str(tmp_path / "d" / name) for name in ("a.tar", "b.tar")
        ]
    row = only(tmp_path / "d" / "a.tar", root=str(tmp_path))
    assert row["media_root"] == str(tmp_path)
    assert row["data"] == "d/a.tar@0!first.png"
    with pytest.raises(PoolError, match=r"a\.tar: the archive lies outside the root .*/other"):
        read(tmp_path / "d" / "a.tar", root=str(tmp_path / "other"))
    (tmp_path / "d" / "about.jsonl").write_text("{}")
    with pytest.raises(PoolError, match=r"\.tar files and other manifests: say which to read, e\.g\. '.*/d/\*\.tar'"):
        read(tmp_path / "d")


def test_validate(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*GOOD_FIRST, ("k.png", b"x"), *GOOD_LAST])
    assert list(validate([PoolSource(path=str(path))]).lines()) == [
        f"{path}:2: pair 's/k': annotation: expected a non-empty string, found nothing",
        "pool  text  code  image  audio  video  all",
        "s        0     0      2      0      0    2",
        "3 rows: 2 good, 1 bad (1 annotation)",
    ]


def test_the_digest_sees_texts_and_places(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [*GOOD_FIRST, *GOOD_LAST])
    digest = file_digest(str(path))
    assert file_digest(str(write_tar(tmp_path / "copy.tar", [*GOOD_FIRST, *GOOD_LAST]))) == digest
    others = [
        [*GOOD_FIRST, ("last.json", js(caption="TWO")), GOOD_LAST[1]],
        [*GOOD_FIRST, GOOD_LAST[0], ("LAST.png", png(2))],
        [*GOOD_FIRST, GOOD_LAST[0], ("last.png", png(2) + b"x")],
        GOOD_FIRST,
    ]
    digests = {file_digest(str(write_tar(path, members))) for members in others}
    os.truncate(path, path.stat().st_size - 512)
    assert len({digest, *digests, file_digest(str(path))}) == 6


class Ranges(BaseHTTPRequestHandler):
    """Serves one file, or any part of it."""

    content = b""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        part, status = self.content, 200
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            part, status = self.content[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(self.content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Return the URL of an archive on this machine's loopback."""
    Ranges.content = write_tar(tmp_path / "shard.tar", [*GOOD_FIRST, *GOOD_LAST]).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/pool/shard.tar"
        http.shutdown()
        thread.join()


def test_an_archive_behind_a_url(url: str) -> None:
    columns, bad = read(url)
    assert bad == []
    assert columns["pair_id"] == ["shard/first", "shard/last"]
    assert columns["media_root"] == [url.removesuffix("/shard.tar")] * 2
    assert [content(ref, columns["media_root"][0]) for ref in columns["data"]] == [png(1), png(2)]
    with pytest.raises(PoolError, match="the name cannot be used in references"):
        read(f"{url}?token=1")
    fs = fsspec.filesystem("memory")
    fs.pipe("/wds/shard.tar", Ranges.content)
    assert read("memory://wds")[0]["annotation"] == columns["annotation"]
    fs.rm("/wds", recursive=True)


def test_modalities_that_have_extensions() -> None:
    names = [extension for modality in media_names() for extension in of(modality).extensions.split()]
    assert not any(of(modality).extensions for modality in ("text", "code"))
    assert len(names) == len(set(names))
    assert kind_of("seg.PNG".lower()) == Modality.IMAGE
    assert kind_of("npy") is None


def test_conversations_with_their_media_beside(tmp_path: Path) -> None:
    """Named by parts, or in the order of the members; a caption beside a conversation is the annotation."""
    talk = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "Both."}]
    twice = [{"from": "human", "value": "<image><image>Which?"}, {"from": "gpt", "value": "Both."}]
    parts = [{"type": "image", "path": "b.png"}, {"type": "text", "text": "What?"}]
    named = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red."}]
    for name, turns, members in (
        ("one", {"conversations": talk}, ["0.png"]),
        ("two", {"conversations": twice}, ["0.a.png", "0.b.png"]),
        ("named", {"messages": named}, ["0.a.png", "0.b.png"]),
        ("short", {"conversations": twice}, ["0.png"]),
    ):
        pictures = [(picture, png(9)) for picture in members]
        path = write_tar(tmp_path / f"{name}.tar", [*pictures, ("0.json", json.dumps(turns).encode())])
        columns, bad = read(path)
        if name == "short":
            assert [row.message for row in bad] == ["images: expected as many images as marks <image> (2), found 1"]
            continue
        assert not bad
        assert columns["modality"] == ["text+image"]
        assert columns["annotation"] == ["Red." if name == "named" else "Both."]
        found = [place_of(medium["data"]) for medium in columns["source_media"][0]]
        assert [one and one.name for one in found] == {"one": members, "two": members, "named": members[1:]}[name]
    path = write_tar(
        tmp_path / "captioned.tar",
        [("0.png", png(9)), ("0.json", json.dumps({"conversations": talk}).encode()), ("0.txt", b"Red.")],
    )
    columns, bad = read(path)
    assert (bad, columns["modality"], columns["annotation"]) == ([], ["image"], ["Red."])

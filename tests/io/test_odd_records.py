"""Records of every format with something odd in every place: a bad row that says where, or a pair; never a stop."""

from __future__ import annotations

import codecs
import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.errors import EmptyPoolError
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.pool import validate
from tests.media_files import write_wav

Record = dict[str, Any]


def said(role: str, content: str, names: tuple[str, str]) -> list[Record]:
    return [{role: name, content: text} for name, text in zip(names, ("<image>Ask?", "Say."), strict=True)]


LLAVA: Record = {"id": "1", "image": "a.png", "conversations": said("from", "value", ("human", "gpt"))}
SHAREGPT: Record = {"conversations": LLAVA["conversations"], "images": ["a.png"], "system": "Be kind."}
SWIFT: Record = {"messages": said("role", "content", ("user", "assistant")), "images": ["a.png"]}
PARTS = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Ask?"}]
OPENAI: Record = {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "Say."}]}
ALPACA: Record = {"instruction": "Ask?", "input": "More.", "output": "Say.", "history": [["Hi", "Hello"]]}
NEMO: Record = {"audio_filepath": "a.wav", "text": "Say.", "duration": 0.5, "offset": 0.1}
CAPTIONS: Record = {"image": "a.png", "caption": "Say."}
LISTS: Record = {"image": "a.png", "captions": ["Say.", "So."]}
URLS: Record = {"url": "https://example.org/a.jpg", "caption": "Say."}
IMG2DATASET: Record = {"key": "0", "status": "success", "url": "https://example.org/a.jpg", "caption": "Say."}
HUB: Record = {"pair_id": "p", "modality": "image", "annotation": "Say.", "text": None, "image": {"path": "a.png"}}
OURS: Record = {"pair_id": "p", "modality": "image", "data": "a.png", "annotation": "Say.", "source_media": None}
SEVERAL: Record = {
    "data": [{"modality": "image", "data": "a.png"}, {"modality": "text", "data": "Ask?"}],
    "annotation": "Say.",
}
FORMATS: dict[str, tuple[str, Record]] = {
    "llava": ("llava", LLAVA),
    "sharegpt": ("sharegpt", SHAREGPT),
    "swift": ("swift", SWIFT),
    "messages": ("messages", OPENAI),
    "alpaca": ("alpaca", ALPACA),
    "nemo-manifest": ("nemo-manifest", NEMO),
    "captions": ("captions", CAPTIONS),
    "lists": ("captions", LISTS),
    "urls": ("urls", URLS),
    "img2dataset": ("img2dataset", IMG2DATASET),
    "hf": ("hf", HUB),
    "rows": ("rows", OURS),
    "parts": ("rows", SEVERAL),
}
ODD: list[Any] = [
    *(None, True, 0, -1.5, 10**400, "", " \t", "\u0000", "\u202e\U0001f600\u2028", "x" * 70_000, "../../etc/passwd"),
    *(
        "file:///etc/passwd",
        "data:image/png;base64,?",
        "data:image/png;base64,",
        "a.png\n",
        "a.png#t=1,2",
        "<image>" * 5,
    ),
    *([], {}, [[]], [None], [3], ["a.png"], [{}], {"x": 1}, {"bytes": "x"}, {"path": 3}, [[[[[[[["deep"]]]]]]]]),
    *({"role": "user"}, [{"from": "human"}], [{"role": "user", "content": {}}], [{"type": "image"}], ["a", "b", "c"]),
]


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path to everything in a record."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


def put(record: Record, place: tuple[Any, ...], value: Any) -> Record:
    changed: Any = copy.deepcopy(record)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return dict(changed)


def without(record: Record, place: tuple[Any, ...]) -> Record:
    changed: Any = copy.deepcopy(record)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return dict(changed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"a picture")
    write_wav(tmp_path, np.zeros(16_000, np.int16), name="a.wav")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/0.jpg").write_bytes(b"a picture")
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_something_odd_in_every_place(folder: Path, name: str, suffix: str) -> None:
    form, good = FORMATS[name]
    odd = [put(good, place, value) for place in places(good) for value in ODD]
    odd += [without(good, place) for place in places(good)]
    rows = [good, *(row for one in odd for row in (one, good))]  # those that are odd have even numbers
    rows = [{**row, "pair_id": f"p{number}"} for number, row in enumerate(rows)]
    path = folder / f"p{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = PoolSource.model_validate({"path": str(path), "format": form})
    report = validate([source])
    assert report.errors == []
    assert len({bad.line for bad in report.bad_rows} | {0}) > 5
    for bad in report.bad_rows:
        assert bad.file == str(path)
        assert bad.line % 2 == 0, bad  # the good ones stand between them
        assert bad.field
        assert bad.expected
        assert bad.found
        assert len(str(bad)) < 900
    done = ingest([source], folder / "pool")
    assert (done.rows_in, done.bad) == (report.rows_in, report.bad)
    table = read_table(folder / "pool/part-00000.parquet")
    assert not {"pair_id", "modality", "annotation", "data"} - set(table.column_names)


RAW: dict[str, tuple[bytes, int, list[tuple[int, str]]]] = {
    "two byte order marks": (codecs.BOM_UTF8 * 2 + b"{}\n", 0, [(1, "row")]),
    "line ends of Windows": (json.dumps(SWIFT).encode() + b"\r\n" + json.dumps(OPENAI).encode() + b"\r\n\r\n", 2, []),
    "half a character": (json.dumps(SWIFT).encode() + b"\n" + b'{"messages": "\\ud800"}\n', 1, [(2, "row")]),
    "not UTF-8": (json.dumps(SWIFT).encode() + b"\n" + b'{"messages": "\xff"}\n', 1, [(2, "row")]),
    "deep": (json.dumps(SWIFT).encode() + b"\n" + b'{"a":' * 100_000 + b"\n", 1, [(2, "row")]),
    "a number without end": (json.dumps(SWIFT).encode() + b"\n" + b'{"id": ' + b"9" * 5000 + b"}\n", 1, [(2, "row")]),
    "a lone bracket": (json.dumps(SWIFT).encode() + b"\n[\n", 1, [(2, "row")]),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("packed", [False, True])
def test_lines_that_are_no_records(folder: Path, name: str, packed: bool) -> None:
    content, good, bad = RAW[name]
    path = folder / f"p.jsonl{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    source = PoolSource(path=str(path))
    report = validate([source])
    assert report.errors == []
    assert report.rows_in - report.bad == good
    assert [(row.line, row.field) for row in report.bad_rows] == bad
    if good:
        assert ingest([source], folder / "pool").good == good


CUT: dict[str, tuple[bytes, int, str]] = {
    "within a string": (json.dumps([SWIFT, OPENAI]).encode()[:-10], 1, "it breaks off in element 2"),
    "between elements": (json.dumps([SWIFT, OPENAI]).encode()[:-1], 2, "it breaks off in element 3"),
    "within a character": (json.dumps([SWIFT, {"a": "\u00e9"}], ensure_ascii=False).encode()[:-4], 1, "utf"),
    "other bytes": (json.dumps([SWIFT]).encode()[:-1] + b', "\xff"]', 0, "utf"),
    "deep": (
        json.dumps([SWIFT]).encode()[:-1] + b"," + b"[" * 100_000,
        1,
        "values that are nested too deeply in element 2",
    ),
    "a number without end": (json.dumps([SWIFT]).encode()[:-1] + b"," + b"9" * 5000 + b"]", 1, "in element 2"),
    "no commas": (b'[{"a": 1} {"a": 2}]', 0, ""),
    "a comma too many": (json.dumps([SWIFT]).encode()[:-1] + b",]", 1, ""),
    "what follows": (json.dumps([SWIFT]).encode() + b"\n\n garbage", 1, ""),
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("packed", [False, True])
def test_arrays_that_are_not_whole(folder: Path, name: str, packed: bool) -> None:
    content, good, said = CUT[name]
    path = folder / f"p.json{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    source = PoolSource(path=str(path))
    report = validate([source])
    assert report.rows_in - report.bad == good
    if said:
        [error] = report.errors
        assert error.startswith(f"{path}: cannot be read: ")
        assert said in error
    try:
        done = ingest([source], folder / "pool")
    except EmptyPoolError:
        assert not good
    else:
        assert (done.good, done.bad > 0) == (good, bool(said))

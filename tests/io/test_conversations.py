"""Conversations as they are: who says what is told by the records, and what is no conversation is a bad row."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nemo_mm_rank.config import POOL_FORMATS, MediaSettings, PoolSource
from nemo_mm_rank.frames import from_table
from nemo_mm_rank.io import json_text
from nemo_mm_rank.io.formats import FORMATS
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.manifest import read_rows
from nemo_mm_rank.io.pool import read_pools, validate
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.rows import take_apart
from nemo_mm_rank.media.source import OUTSIDE
from nemo_mm_rank.schema import SOURCE_MEDIA, SOURCE_RECORD

Record = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / f"img/{number}.png")
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "a.wav").write_bytes(b"audio")
    return tmp_path


def said(*texts: str) -> list[Record]:
    return [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]


def messages(*texts: Any) -> list[Record]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def write(path: Path, records: list[Record]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs(path: Path, **settings: Any) -> list[Record]:
    def rows() -> Iterator[Record]:
        for batch in read_pools([PoolSource(path=str(path), **settings)]):
            assert not batch.bad, batch.bad
            extras = {name: v if isinstance(v, list) else v.to_pylist() for name, v in batch.extras.items()}
            columns = {name: column.to_pylist() for name, column in batch.pairs.items()} | extras
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

    return list(rows())


def sides(row: Record) -> tuple[str, Any, str]:
    parts = row.get("data_parts")
    data = [(part["modality"], part["data"]) for part in parts] if parts else row["data"]
    return row["modality"], data, row["annotation"]


LLAVA = {"id": "000", "image": "img/0.png", "conversations": said("<image>\nWhat is it?", "A dark square."), "odd": [1]}
PAIR = ("text+image", [("text", "What is it?"), ("image", "img/0.png")], "A dark square.")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_llava_in_every_container(folder: Path, suffix: str) -> None:
    path = write(folder / f"pool{suffix}", [LLAVA, {"id": "001", "image": None, "conversations": said("Hi", "Hello")}])
    one, two = pairs(path)
    assert (sides(one), sides(two)) == (PAIR, ("text", "Hi", "Hello"))
    assert (one["id"], one["odd"], json.loads(one[SOURCE_RECORD])) == ("000", [1], LLAVA)
    assert (one[SOURCE_MEDIA], two[SOURCE_MEDIA]) == ([{"modality": "image", "data": "img/0.png"}], None)
    assert one["pair_id"].startswith("pool-")
    assert next(validate([PoolSource(path=str(path))]).lines()) == f"{path}: conversations as of LLaVA"


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("llava", LLAVA),
        ("sharegpt", {"conversations": said("<image>What is it?", "A dark square."), "images": ["img/0.png"]}),
        ("swift", {"messages": messages("<image>What is it?", "A dark square."), "images": ["img/0.png"]}),
        ("swift", {"messages": messages("What is it?", "A dark square."), "images": [{"path": "img/0.png"}]}),
        (
            "alpaca",
            {"instruction": "<image>", "input": "What is it?", "output": "A dark square.", "image": "img/0.png"},
        ),
        (
            "messages",
            {
                "messages": messages(
                    [{"type": "image_url", "image_url": {"url": "img/0.png"}}, {"type": "text", "text": "What is it?"}],
                    [{"type": "text", "text": "A dark square."}],
                )
            },
        ),
    ],
)
def test_each_is_told_by_its_records(folder: Path, name: str, record: Record) -> None:
    path = write(folder / "pool.jsonl", [record])
    batches = list(read_pools([PoolSource(path=str(path))]))
    assert [batch.format.name for batch in batches] == [name]
    [row] = pairs(path)
    assert sides(row) == PAIR
    assert row[SOURCE_RECORD] == json.dumps(record)
    assert sides(pairs(path, format=name)[0]) == PAIR


def test_the_settings_name_the_formats_that_there_are() -> None:
    assert {form.name for form in FORMATS} == set(POOL_FORMATS)


def test_rows_of_ours_stay_rows(folder: Path) -> None:
    row = {"modality": "text", "data": "x", "annotation": "y", "messages": messages("Hi", "Hello")}
    path = write(folder / "pool.jsonl", [row])
    assert sides(pairs(path)[0]) == ("text", "x", "y")
    [asked] = pairs(path, format="messages")
    assert sides(asked) == ("text", "Hi", "Hello")
    assert (asked["original_data"], asked["original_annotation"], asked["original_modality"]) == ("x", "y", "text")


def test_a_data_set_info_says_what_things_are_called(folder: Path) -> None:
    record = {
        "chat": [{"who": "Q", "says": "<image>What?"}, {"who": "A", "says": "That."}],
        "pictures": ["img/1.png"],
        "sys": "Be kind.",
    }
    path = write(folder / "mine.json", [record])
    info = {
        "mine": {
            "file_name": "mine.json",
            "formatting": "sharegpt",
            "columns": {"messages": "chat", "images": "pictures", "system": "sys"},
            "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"},
        }
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    expected = ("text+image", [("text", "What?"), ("image", "img/1.png")], "That.")
    assert sides(pairs(path)[0]) == expected
    assert sides(pairs(path, system="keep")[0])[1][0] == ("text", "Be kind.\nWhat?")
    first = ingest([PoolSource(path=str(path))], folder / "pool")
    info["mine"]["columns"] = {**info["mine"]["columns"], "system": "other"}  # type: ignore[dict-item]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    again = ingest([PoolSource(path=str(path))], folder / "pool")
    assert (first.fresh, again.fresh) == (True, True)


@pytest.mark.parametrize(
    ("turns", "data", "annotation"),
    [("all", "One?\nTwo?", "1\n2"), ("first", "One?", "1"), ("last", "Two?", "2")],
)
def test_turns_that_are_asked_for(folder: Path, turns: str, data: str, annotation: str) -> None:
    talk = [{"role": "system", "content": "Count."}, *messages("One?", "1", "Two?", "2", "Three?")]
    path = write(folder / "pool.jsonl", [{"messages": talk}])
    assert sides(pairs(path, turns=turns)[0]) == ("text", data, annotation)
    assert sides(pairs(path, turns=turns, system="keep")[0])[1] == f"Count.\n{data}"


def test_tools_are_heard_and_called(folder: Path) -> None:
    talk = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "20 degrees"},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Warm."},
    ]
    assert sides(pairs(write(folder / "a.jsonl", [{"messages": talk}]))[0]) == (
        "text",
        "Weather?\n20 degrees\nsunny",
        "Warm.",
    )


def test_several_media_are_parts_and_all_have_to_be_there(folder: Path) -> None:
    record = {
        "messages": messages("<image><image><video><audio>What?", "Much."),
        "images": ["img/0.png", "img/1.png"],
        "videos": ["a.mp4"],
        "audios": ["a.wav"],
    }
    path = write(folder / "pool.jsonl", [record])
    [row] = pairs(path)
    assert sides(row) == (
        "text+image+audio+video",
        [("text", "What?"), ("image", "img/0.png"), ("audio", "a.wav"), ("video", "a.mp4")],
        "Much.",
    )
    assert [medium["data"] for medium in row[SOURCE_MEDIA]] == ["img/0.png", "img/1.png", "a.mp4", "a.wav"]
    source = PoolSource(path=str(path))
    assert ingest([source], folder / "pool").fresh
    assert not ingest([source], folder / "pool").fresh
    Image.new("RGB", (9, 9)).save(folder / "img/1.png")  # the second image, which no part is of
    assert ingest([source], folder / "pool").fresh
    (folder / "img/1.png").unlink()
    [bad] = validate([source]).bad_rows
    assert (bad.file, bad.line, bad.field, bad.found) == (
        str(path),
        1,
        "data",
        "no such file: 'img/1.png' (image part)",
    )


def test_a_video_that_is_marked_as_an_image(folder: Path) -> None:
    path = write(folder / "p.json", [{"video": "a.mp4", "conversations": said("<image>\nWhat happens?", "Nothing.")}])
    assert sides(pairs(path)[0]) == ("text+video", [("text", "What happens?"), ("video", "a.mp4")], "Nothing.")


def test_an_element_of_html_is_no_mark(folder: Path) -> None:
    path = write(folder / "p.jsonl", [{"messages": messages("Is <video> an element?", "Yes, as <audio> is.")}])
    assert sides(pairs(path)[0]) == ("text", "Is <video> an element?", "Yes, as <audio> is.")


def test_content_in_the_record_itself(folder: Path) -> None:
    image = (folder / "img/2.png").read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    part = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    one = write(folder / "one.jsonl", [{"messages": messages(part, "Red.")}, {"messages": messages("Hi", "Hello")}])
    two = write(folder / "two.parquet", [{"messages": messages("<image>What?", "Red."), "images": [{"bytes": image}]}])
    for path in (one, two):
        row = pairs(path)[0]
        assert (row["modality"], row["data_bytes"], row["annotation"]) == ("text+image", image, "Red.")
        ingest([PoolSource(path=str(path))], folder / path.stem)
        frame = from_table(pq.read_table(folder / path.stem / "part-00000.parquet"))
        apart = take_apart(frame, "text+image", [0])
        items: Any = next(apart.decoded(Opener(MediaSettings()), threads=1))
        assert (items[0], items[1].pixels.size) == ("What?", Image.open(BytesIO(image)).size)


BAD: list[tuple[Record, str, str, str]] = [
    ({"conversations": said("Hi")}, "conversations", "a turn of the assistant's with text", "none"),
    ({"conversations": said("Hi", " ")}, "conversations", "a turn of the assistant's with text", "none"),
    (
        {"conversations": said("<image>What?", "That.")},
        "image",
        "as many images as marks <image> (1)",
        "none",
    ),
    (
        {"image": ["img/0.png", "img/1.png"], "conversations": said("<image>What?", "That.")},
        "image",
        "as many images as marks <image> (1)",
        "2",
    ),
    (
        {"conversations": [*said("Hi"), *said("there", "Hello")]},
        "conversations",
        "user and assistant in turn",
        "human after human (turn 2)",
    ),
    ({"conversations": []}, "conversations", "a list of turns", "[]"),
    ({"conversations": "Hi"}, "conversations", "a list of turns", "'Hi'"),
    ({"conversations": None}, "conversations", "a list of turns", "nothing"),
    ({"conversations": ["Hi"]}, "conversations", "turns with a role and a text", "'Hi' (turn 1)"),
    (
        {"conversations": [{"from": "human", "value": 3}]},
        "conversations",
        "a text or a list of parts in each turn",
        "3 (turn 1)",
    ),
    ({"image": 3, "conversations": said("<image>", "x")}, "image", "the path of each image", "3"),
    (
        {"image": "img/9.png", "conversations": said("<image>What?", "That.")},
        "data",
        "a media file below the pool's root",
        "no such file: 'img/9.png' (image part)",
    ),
    (
        {"image": "../x.png", "conversations": said("<image>What?", "That.")},
        "data",
        "a media file below the pool's root",
        f"'../x.png', which {OUTSIDE} (image part)",
    ),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_no_conversation(folder: Path, suffix: str) -> None:
    path = write(folder / f"pool{suffix}", [LLAVA, *(record for record, *_ in BAD), LLAVA | {"id": "002"}])
    report = validate([PoolSource(path=str(path))])
    assert (report.rows_in, report.bad) == (len(BAD) + 2, len(BAD))
    assert [(bad.file, bad.line, bad.field, bad.expected, bad.found) for bad in report.bad_rows] == [
        (str(path), line, *told) for line, (_, *told) in enumerate(BAD, 2)
    ]


def test_a_role_that_nobody_knows(folder: Path) -> None:
    path = write(folder / "p.jsonl", [{"messages": [{"role": "narrator", "content": "Once"}]}])
    [bad] = validate([PoolSource(path=str(path))]).bad_rows
    assert (bad.field, bad.found) == ("messages", "'narrator' (turn 1)")
    assert bad.expected.startswith("a role (human, user, gpt, ")


def test_an_array_that_breaks_off_gives_what_stands_before(folder: Path) -> None:
    path = folder / "cut.json"
    path.write_text(json.dumps([LLAVA, LLAVA | {"id": "1"}, LLAVA | {"id": "2"}])[:-40])
    report = validate([PoolSource(path=str(path))])
    assert (report.rows_in, report.bad) == (2, 0)
    assert report.errors == [f"{path}: cannot be read: a JSON array, but it breaks off in element 3"]
    done = ingest([PoolSource(path=str(path))], folder / "pool")
    assert (done.good, done.bad) == (2, 1)


def test_an_array_is_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "BLOCK_BYTES", 1000)
    path = write(folder / "pool.json", [{**LLAVA, "id": str(n), "more": "x" * 500} for n in range(200)])
    held = [sum(map(len, rows.texts)) for rows in read_rows(str(path))]
    assert sum(held) > 100_000
    assert max(held) < 10_000

"""COCO's captions: one JSON object of images and annotations, which need not fit into memory.

Both are put into a database that lies on disk while it is read, whatever their order, and come out image by image.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.bad_rows import BadRow
from nemo_mm_rank.io.json_text import NOT_AN_OBJECT, Element, Text, checked_object, elements, json_object, why_not
from nemo_mm_rank.io.rows import BATCH_ROWS, Rows, gathered, uncollected

COCO_CAPTIONS = "coco_captions"
"""The captions of an image, which stand apart from the images."""
_TABLES = (
    "CREATE TABLE images (number INTEGER PRIMARY KEY, key TEXT, value TEXT)",
    "CREATE TABLE annotations (number INTEGER PRIMARY KEY, key TEXT, value TEXT)",
)
_CAPTIONS = (
    "SELECT images.number, annotations.value FROM images JOIN annotations ON images.key = annotations.key "
    "WHERE images.number BETWEEN ? AND ? ORDER BY images.number, annotations.number"
)
_ONE_OF = "the id of one of the images"
_LOST = "SELECT number, key FROM annotations WHERE key NOT IN (SELECT key FROM images) ORDER BY number"


def coco_rows(file: str, text: Text) -> Iterator[Rows]:
    """Read COCO's one object: a row is an image, with its captions; what is wrong with annotations comes after them.

    The row of an annotation that is at fault is its number behind the images.

    Raises:
        PoolError: it is no such object, breaks off, or has no captions.
    """
    with closing(
        sqlite3.connect("", isolation_level=None, check_same_thread=False)
    ) as database:  # a file that goes with it
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", *_TABLES, "BEGIN"):
            database.execute(statement)
        try:
            faults = _fill(database, file, text)
            images = _count(database, "images") + len(faults["images"])
            for table in _TABLES:
                name = table.split()[2]
                database.execute(f"CREATE INDEX {name}_key ON {name} (key)")
            yield from _images(database, file, images, faults["images"])
            lost = [
                BadRow(file, images + number, "image_id", _ONE_OF, f"{key} of annotation {number}")
                for number, key in database.execute(_LOST)
            ]
        except sqlite3.Error as error:
            raise PoolError(f"{file}: cannot be read: room on the disk for its captions is short: {error}") from error
        others = [
            BadRow(file, images + number, name, expected, f"{found} (annotation {number})")
            for number, name, expected, found in faults["annotations"]
        ]
        if lost or others:
            yield gathered(file, [], [], sorted([*lost, *others], key=lambda row: row.line))


_Fault = tuple[int, str, str, str]  # number, field, what was expected, and what was found


def _fill(database: sqlite3.Connection, file: str, text: Text) -> dict[str, list[_Fault]]:
    """Read both lists, and return what is wrong with their elements, by list."""
    faults: dict[str, list[_Fault]] = {}
    try:
        if text.next() != "{":
            raise ValueError("Expecting an object")
        text.place += 1
        while text.next() not in ("}", ""):
            name = text.value()
            if not isinstance(name, str) or text.next() != ":":
                raise ValueError("Expecting a name and a colon")
            text.place += 1
            if text.next() == "[":
                text.place += 1
                number = 0
                if name in faults:
                    raise ValueError(f"two lists of {name}")
                for found, failed in elements(text):
                    if name in _SIDES:
                        _put(database, name, number, found, faults.setdefault(name, []))
                    number += len(found)
                    if failed is not None:
                        raise ValueError(f"{failed} in {name}, element {number + 1}")
                faults.setdefault(name, [])
            else:
                text.value()
            if text.next() == ",":
                text.place += 1
        if text.next() != "}":
            raise ValueError("it breaks off")
    except NOT_AN_OBJECT as error:
        raise PoolError(f"{file}: cannot be read: one JSON object, but {why_not(error)}") from error
    lacking = next((name for name in _SIDES if name not in faults), None)
    if lacking is not None or (faults["annotations"] and not _count(database, "annotations")):
        said = f"no list of {lacking}" if lacking else f"none of {len(faults['annotations']):,} annotations has one"
        raise PoolError(f"{file}: cannot be read: no captions as of COCO: {said}")
    return faults


_SIDES: dict[str, tuple[str, str | None]] = {"images": ("id", None), "annotations": ("image_id", "caption")}
"""List -> what its elements are found by, and what is kept of them (None: all)."""


@uncollected()
def _put(database: sqlite3.Connection, name: str, first: int, found: Sequence[Element], faults: list[_Fault]) -> None:
    """Put a batch of elements into their table, those that are objects with what they need."""
    key, kept = _SIDES[name]
    rows: list[tuple[int, str, str]] = []
    for number, (element, written) in enumerate(found, first + 1):
        try:
            row = checked_object(element, written)
        except NOT_AN_OBJECT as error:
            faults.append((number, "row", f"a JSON object in each place of {name}", why_not(error)))
            continue
        lacking = next((one for one in (key, kept) if one is not None and row.get(one) is None), None)
        if lacking is not None:
            faults.append((number, lacking, f"a value in each of the {name}", "nothing"))
        else:
            value = written if kept is None else json.dumps(row[kept], ensure_ascii=False)
            rows.append((number, json.dumps(row[key]), value))
    database.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", rows)  # noqa: S608 (one of two names)


def _images(database: sqlite3.Connection, file: str, count: int, faults: Sequence[_Fault]) -> Iterator[Rows]:
    """Yield images with their captions, and those that are none, batch by batch."""
    for start in range(1, count + 1, BATCH_ROWS):
        between = (start, start + BATCH_ROWS - 1)
        chosen = "SELECT number, value FROM images WHERE number BETWEEN ? AND ? ORDER BY number"
        rows = {number: json_object(value) for number, value in database.execute(chosen, between)}
        captions: dict[int, list[Any]] = {number: [] for number in rows}
        for number, value in database.execute(_CAPTIONS, between):
            captions[number].append(json.loads(value))
        bad = [BadRow(file, *fault) for fault in faults if between[0] <= fault[0] <= between[1]]
        images = [{**row, COCO_CAPTIONS: captions[number]} for number, row in rows.items()]
        yield gathered(file, images, list(rows), bad)


def _count(database: sqlite3.Connection, name: str) -> int:
    [(count,)] = database.execute(f"SELECT count(*) FROM {name}")  # noqa: S608 (one of two names)
    return int(count)

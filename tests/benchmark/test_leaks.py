"""Leaks that were planted: the same pair, the same words in other letters, nearly the same data."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from nemo_mm_rank.benchmark.source import leaks
from nemo_mm_rank.quality.operators.fingerprints import DATA_KEY as FINGERPRINT

PASSAGE = "The river rises in the hills, runs through three towns and reaches the sea after two hundred miles."


def pairs(*rows: tuple[str, str, str, str, int | None]) -> pa.Table:
    names = ("pair_id", "modality", "data", "annotation", FINGERPRINT)
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)]
    types = [*[pa.string()] * 4, pa.uint64()]
    return pa.table({name: pa.array(v, t) for name, v, t in zip(names, columns, types, strict=True)})


HELD_OUT = pairs(
    ("h1", "image", "h1.jpg", "A brown dog runs across a green lawn in the sun.", 0b1111),
    ("h2", "text", PASSAGE, "Where does the river reach the sea?", 7),
    ("h3", "audio", "h3.wav", "The sound of church bells.", 1 << 63),
    ("h4", "image", "h4.jpg", "Two boats.", None),
)


def found(*rows: tuple[str, str, str, str, int | None]) -> set[tuple[str, str, str]]:
    table = leaks(pairs(*rows), HELD_OUT)
    assert table.column_names == ["pair_id", "held_out", "what"]
    return {(row["pair_id"], row["held_out"], row["what"]) for row in table.to_pylist()}


def test_nothing_in_common() -> None:
    assert (
        found(
            ("a", "image", "a.jpg", "A red bus waits at the station.", 0xFFFF0000),
            ("b", "text", "Bread is made of flour, water and salt.", "What is bread made of?", 99),
            ("c", "code", "x = 1", "Set x to one.", 1),
            ("d", "image", "d.jpg", "A cat sleeps on a sofa.", None),
        )
        == set()
    )


def test_the_same_pair() -> None:
    assert found(("h3", "audio", "x.wav", "The sound of rain.", 0xFFFF)) == {("h3", "h3", "pair_id")}


def test_annotations_in_other_letters_and_nearly_the_same() -> None:
    rows = [
        ("a", "video", "a.mp4", "a brown dog runs across a green lawn, in the sun", 5),
        ("b", "image", "b.jpg", "A brown dog runs across a green lawn in the bright sun.", 0xFF00FF),
        ("c", "image", "c.jpg", "A brown dog sleeps.", 0xFF00FF00),
        ("d", "audio", "d.wav", "The sound of crying baby.", 0xFFFF),
    ]
    assert found(*rows) == {("a", "h1", "annotation"), ("b", "h1", "annotation")}


def test_data_of_the_same_modality() -> None:
    rows = [
        ("near", "image", "a.jpg", "A lawn.", 0b1000),
        ("far", "image", "b.jpg", "A wood.", 0b1111 << 8),
        ("film", "video", "c.mp4", "A hill.", 0b1111),
        ("sound", "audio", "d.wav", "Bells ring somewhere.", (1 << 63) + 1),
        ("passage", "text", PASSAGE.replace("two hundred", "200"), "How long is it?", 8),
    ]
    assert found(*rows) == {
        ("near", "h1", "data"),
        ("sound", "h3", "data"),
        ("passage", "h2", "data"),
    }

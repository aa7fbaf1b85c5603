"""One pool with every kind of pair that goes wrong, or that looks as if it might, and what has to become of each."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nemo_mm_rank.demo import make_demo_pool
from tests.media_files import boxes, png_header, write_video, write_wav

RANKED = ""
"""What is expected of pairs that are odd and nothing worse."""


@dataclass(frozen=True)
class Odd:
    """A row that is not like the others.

    Attributes:
        row: as it stands in the manifest.
        expected: a pattern for ``step: error class: message`` of its quarantine, or `RANKED`.
    """

    row: dict[str, Any]
    expected: str = RANKED


def make_pools(folder: Path, pairs_per_modality: int) -> tuple[Path, Path, list[Odd]]:
    """Write a demo pool with odd pairs, once with the bad ones among them and once without.

    Returns:
        The manifest with them, the one without, and what is odd.
    """
    demo = make_demo_pool(folder, pairs_per_modality)
    rows = [json.loads(line) for line in demo.read_text(encoding="utf-8").splitlines()]
    good = [row for row in rows if row["fault"] in (None, "foreign sentence")]
    odd = [*_texts(folder), *_pictures(folder), *_sounds(folder), *_films(folder), *_references(folder)]
    good = [*(one.row for one in odd if one.expected == RANKED), *good]
    # In the midst of the others, so that they share shards and batches with them.
    mixed: list[dict[str, Any] | bytes] = list(good)
    for place, one in enumerate(one for one in odd if one.expected != RANKED):
        mixed.insert(2 * place + len(odd), one.row)
    mixed[9:9] = [line for line, _ in UNREADABLE]
    return _put(folder / "faulty.jsonl", mixed), _put(folder / "clean.jsonl", good), odd


UNREADABLE = [
    (
        b'{"pair_id": "\xff", "modality": "text"}',
        "row: expected one JSON object a line, in UTF-8, found byte 0xff at",
    ),
    (b'{"pair_id": "half \\ud83d of a pair"}', "row: .*found half of a surrogate pair"),
    (b'{"pair_id": "cut", "moda', "row: .*found Unterminated string"),
    (b"[1, 2]", r"row: .*found '\[1, 2\]'"),
]
"""Lines that are no rows, and what is said of them."""


def _put(path: Path, rows: Iterable[dict[str, Any] | bytes]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join([*lines, b""]))
    return path


def _odd(modality: str, name: str, data: str, expected: str = RANKED, annotation: str | None = None) -> Odd:
    annotation = f"An odd pair of {modality}: {name}." if annotation is None else annotation
    row = {"pair_id": f"{modality}-{name}", "pool": "demo", "modality": modality, "data": data}
    return Odd({**row, "annotation": annotation, "on_topic": False, "fault": name}, expected)


def _texts(folder: Path) -> Iterator[Odd]:
    long = "A sentence that comes again. " * 36_000
    yield _odd("text", "empty", "", "pool: BadRow: data: expected a non-empty string, found ''")
    yield _odd("text", "blank", " \t\n ", "pool: BadRow: data: expected a non-empty string")
    yield _odd("text", "no-annotation", "A passage.", "pool: BadRow: annotation: expected a non-empty", "\u2003")
    yield _odd("text", "long", long, "sns: TextError: .*1,044,000 characters.*200,000")
    yield _odd("text", "long-annotation", "A passage.", "sns: TextError: .*1,044,000 characters", long)
    yield _odd("code", "long-code", long, "sns: TextError: .*1,044,000 characters")
    yield _odd("text", "punctuation", "... !!! ???", "sns: EmbeddingError: text: nothing but white space")
    yield _odd("text", "right-to-left", "שלום עולם. السماء زرقاء فوق البحر.", annotation="سماء زرقاء. ים כחול.")
    yield _odd("text", "emoji", "🌊🏖️ 👩‍👩‍👧‍👦 🇫🇷. 🌅🌅🌅", annotation="🌞 sunny 🏝️. ❤️‍🔥")
    yield _odd("text", "control", "A bell\x07 rings.\x1b[31m It is red.", annotation="Bells\x08 and whistles\x7f.")
    yield _odd("text", "nul", "A NUL\x00 in it.", "sns: TextError: the text holds a NUL character")
    yield _odd("text", "one-letter", "a", annotation="b")
    (folder / "latin.txt").write_bytes("Grüße aus dem Süden".encode("latin-1"))
    latin = {**_odd("text", "latin", "").row, "data": None, "data_path": "latin.txt"}
    yield Odd(latin, "pool: BadRow: data_path: .*not UTF-8 at byte 3")


def _pictures(folder: Path) -> Iterator[Odd]:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)

    def save(image: Image.Image, name: str, **options: Any) -> str:
        image.save(folder / name, **options)
        return name

    def put(content: bytes, name: str) -> str:
        (folder / name).write_bytes(content)
        return name

    file = io.BytesIO()
    picture.save(file, "PNG")
    png = file.getvalue()
    alpha = Image.fromarray(np.dstack([noise, np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))]))
    grey = (noise[..., 0].astype(np.uint16) << 8) | noise[..., 1]
    yield _odd("image", "nothing", put(b"", "empty.png"), "pool: BadRow: data: .*empty.png', which is empty")
    yield _odd("image", "truncated", put(png[:5000], "truncated.png"), "sns: MediaError: 'truncated.png': cannot be")
    yield _odd("image", "damaged", put(png[:300] + bytes(4000), "damaged.png"), "sns: MediaError: 'damaged.png': ")
    yield _odd("image", "words", put(b"just some text\n" * 20, "words.jpg"), "sns: MediaError: 'words.jpg': is not a")
    yield _odd("image", "pickle", put(b"\x80\x04\x95pickle.", "p.png"), "sns: MediaError: 'p.png': is not an image in")
    bomb = png_header(20_000, 20_000) + struct.pack(">I", 10) + b"IDAT" + b"\0" * 10
    yield _odd("image", "huge", put(bomb, "huge.png"), "sns: MediaError: 'huge.png': .*100,000,000 allowed")
    yield _odd("image", "mislabelled", put(png, "really-a-png.jpg"))
    yield _odd("image", "sixteen-bit", save(Image.fromarray(grey), "grey16.png"))
    yield _odd("image", "cmyk", save(picture.convert("CMYK"), "cmyk.jpg"))
    yield _odd("image", "alpha", save(alpha, "alpha.png"))
    yield _odd("image", "pixel", save(picture.crop((0, 0, 1, 1)), "pixel.png"))
    frames = [picture, picture.rotate(90, expand=False), picture.rotate(180)]
    yield _odd("image", "animated", save(frames[0], "moves.gif", save_all=True, append_images=frames[1:], duration=80))


def _sounds(folder: Path) -> Iterator[Odd]:
    t = np.arange(2 * 16_000) / 16_000
    tone = (9000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)

    def wav(samples: Any, name: str, rate: int = 16_000) -> str:
        return write_wav(folder, samples, rate, name).name

    whole = (folder / wav(tone, "tone.wav")).read_bytes()
    (folder / "headless.wav").write_bytes(whole[44:])
    (folder / "cut.wav").write_bytes(whole[:20_001])
    (folder / "lying.wav").write_bytes(whole[:40] + struct.pack("<I", 0x7FFFFFFF) + whole[44:])
    yield _odd(
        "audio", "no-samples", wav(tone[:0], "zero.wav"), "sns: MediaError: 'zero.wav': .*no audio that can be decoded"
    )
    yield _odd("audio", "headless", "headless.wav", "sns: MediaError: 'headless.wav': cannot be opened as audio")
    yield _odd("audio", "is-a-picture", "cmyk.jpg", "sns: MediaError: 'cmyk.jpg': .*")
    yield _odd("audio", "cut", "cut.wav")
    yield _odd("audio", "lying", "lying.wav")
    yield _odd("audio", "silent", wav(np.zeros_like(tone), "silent.wav"))
    yield _odd("audio", "one-sample", wav(tone[1:2], "sample.wav"))
    yield _odd("audio", "eight-bit", wav((tone // 256 + 128).astype(np.uint8), "eight.wav"))
    yield _odd("audio", "96-khz", wav(np.repeat(tone, 6), "fast.wav", 96_000))
    yield _odd("audio", "six-channels", wav(np.repeat(tone[:, None], 6, axis=1), "surround.wav"))


def _films(folder: Path) -> Iterator[Odd]:
    whole = write_video(folder, "whole.mp4", 20).read_bytes()
    lying = bytearray(whole)
    for name, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        for header in boxes(whole, name):
            lying[header + offset : header + offset + 4] = struct.pack(">I", 0x7FFFFFF0)
    (folder / "lying.mp4").write_bytes(lying)
    (folder / "cut.mp4").write_bytes(whole[:-400])
    write_video(folder, "none.mkv", 0, codec="mpeg4")
    yield _odd("video", "no-frames", "none.mkv", "sns: MediaError: 'none.mkv': cannot be opened as video")
    yield _odd("video", "cut", "cut.mp4", "sns: MediaError: 'cut.mp4': contains no frames")
    yield _odd("video", "is-a-sound", "tone.wav", "sns: MediaError: 'tone.wav': .*no video stream")
    yield _odd("video", "lying", "lying.mp4")
    yield _odd("video", "one-frame", write_video(folder, "frame.mp4", 1).name)


def _references(folder: Path) -> Iterator[Odd]:
    outside = folder.parent / "outside.png"
    outside.write_bytes(png_header(2, 2))
    if not (folder / "link.png").is_symlink():
        (folder / "link.png").symlink_to(outside)
    escape = "pool: BadRow: data: expected a media file below the pool's root, found .*"
    yield _odd("image", "parent", "../outside.png", escape + "leads out of the root of the pool")
    yield _odd("image", "deeper", "image/../../outside.png", escape + "leads out of the root of the pool")
    yield _odd("image", "link", "link.png", escape + "leads out of the root of the pool")
    yield _odd("image", "absolute", str(outside), escape + "leads out of the root of the pool")
    yield _odd("audio", "missing", "nowhere.wav", escape + "no such file")
    yield _odd("video", "folder", "image", escape + "which is not a file")
    yield _odd("image", "null", "nu\0l.png", escape + "which is not a file name")
    yield _odd("image", "url", "http://127.0.0.1:9/a.png", "sns: MediaError: 'http://127.0.0.1:9/a.png': is a URL")
    yield _odd("image", "file-url", f"file://{outside}", escape + "leads out of the root of the pool")
    yield _odd("smell", "modality", "roses", "pool: BadRow: modality: expected one of text, code, image")
    again = _odd("text", "one-letter", "twice").row
    yield Odd(again, "pool: BadRow: pair_id: expected an id that no other row has")

"""Damaged bytes of every kind in one pool: each row is ranked or quarantined, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import json
import resource
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.integration.runs import command, settings
from tests.tars import member, write_tar

SEED, EACH, MANIFESTS = 16, 50, 12
"""Damaged items of each kind of media, and damaged manifests of each kind."""
SECONDS, MEMORY = 600, 10 * 2**30

PICTURES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
PICTURES |= {"jp2": "JPEG2000", "ppm": "PPM", "tif": "TIFF", "jpeg": "JPEG"}
SOUNDS = {"flac": "flac", "mp3": "mp3", "ogg": "libopus", "m4a": "aac", "aiff": "pcm_s16be"}
FILMS = {"mp4": "libx264", "webm": "libvpx", "mkv": "libx264", "avi": "mpeg4", "mov": "mpeg4"}


def picture(form: str) -> bytes:
    """Return a small picture with some structure."""
    rows, columns = np.mgrid[:48, :64]
    out = io.BytesIO()
    Image.fromarray(np.stack([4 * columns, 5 * rows, columns * rows % 256], -1).astype(np.uint8)).save(out, form)
    return out.getvalue()


def sound(folder: Path, kind: str) -> bytes:
    """Return half a second of a tone."""
    tone = (12_000 * np.sin(np.arange(8_000) / 6)).astype(np.int16)
    path = folder / f"tone.{kind}"
    if kind == "wav":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(tone.tobytes())
        return path.read_bytes()
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(SOUNDS[kind], rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for resampled in av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000).resample(
            frame
        ):
            out.mux(stream.encode(resampled))
        out.mux(stream.encode(None))
    return path.read_bytes()


def film(folder: Path, kind: str) -> bytes:
    """Return a second of a moving edge."""
    path = folder / f"film.{kind}"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(FILMS[kind], rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            array = np.full((48, 64, 3), 40, np.uint8)
            array[:, : 8 * number + 4] = 200
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


def damaged(content: bytes, random: Random) -> bytes:
    """Cut content off, change its header, or put random bytes in the middle or anywhere."""
    way, changed = random.randrange(4), bytearray(content)
    if way == 0:
        return content[: random.randrange(1, len(content))]
    if way == 1:
        for _ in range(random.randint(1, 4)):
            changed[random.randrange(min(64, len(changed)))] ^= 1 << random.randrange(8)
    elif way == 2:
        start, size = random.randrange(len(changed)), random.randint(1, 64)
        changed[start : start + size] = random.randbytes(size)
    else:
        for _ in range(random.randint(1, 16)):
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def rows_of(prefix: str, count: int = 3) -> list[dict[str, str]]:
    """Return rows of text."""
    return [
        {
            "pair_id": f"{prefix}-{number}",
            "modality": "text",
            "data": f"Waves by the sea, {number} of them.",
            "annotation": f"A sea of {prefix} {number}.",
        }
        for number in range(count)
    ]


def manifests(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a sound manifest of every kind, by the end of its name."""
    lines = "".join(json.dumps(row) + "\n" for row in rows_of("line")).encode()
    yield "jsonl", lines
    yield "jsonl.gz", gzip.compress(lines, mtime=0)
    yield "jsonl.zst", pa.Codec("zstd").compress(lines, asbytes=True)
    pq.write_table(pa.Table.from_pylist(rows_of("table")), folder / "a.parquet")
    yield "parquet", (folder / "a.parquet").read_bytes()
    members = [
        (member(f"{n}.{end}"), text) for n in range(3) for end, text in (("jpg", picture("JPEG")), ("txt", b"A"))
    ]
    yield "tar", write_tar(folder / "a.tar", members).read_bytes()


def make_pools(folder: Path) -> list[str]:
    """Write sound pairs, damaged media and damaged manifests; return what to read."""
    random, made = Random(SEED), folder / "made"
    pool, tars = folder / "pool", folder / "tars"
    made.mkdir()
    tars.mkdir()
    (pool / "media").mkdir(parents=True)
    originals = {
        **{(kind, "image"): picture(form) for kind, form in PICTURES.items()},
        **{(kind, "audio"): sound(made, kind) for kind in ("wav", *SOUNDS)},
        **{(kind, "video"): film(made, kind) for kind in FILMS},
    }
    rows: list[dict[str, str]] = rows_of("sound", 12)
    for (kind, modality), content in originals.items():
        for number in range(EACH):
            name = f"media/{kind}-{number}.{kind}"
            (pool / name).write_bytes(damaged(content, random) if number else content)
            annotation = f"A {kind} of the sea, number {number}."
            rows.append({"modality": modality, "data": name, "annotation": annotation, "pair_id": name})
    (pool / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for end, content in manifests(made):
        for number in range(MANIFESTS):
            place = tars if end == "tar" else pool
            (place / f"m{number}.{end}").write_bytes(damaged(content, random))
    return [str(pool), f"{tars}/*.tar"]


@pytest.mark.slow
def test_every_row_is_ranked_or_quarantined(tmp_path: Path) -> None:
    changes = {"pools": make_pools(tmp_path), "sns": {"mode": "off"}, "shards": 4}
    values = settings(tmp_path, tmp_path / "run", **changes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = subprocess.run(
        command("curate", "-c", tmp_path / "config.yaml"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["counts"]
    assert counts["pool"]["rows"] == sum(counts["ranked"].values()) + counts["quarantined"]
    assert counts["pool"]["rows"] >= EACH * (len(PICTURES) + len(SOUNDS) + 1 + len(FILMS))
    quarantine = pq.read_table(tmp_path / "run" / "quarantine.parquet")
    kept = set(pq.read_table(tmp_path / "run" / "blend.parquet")["pair_id"].to_pylist())
    assert not kept & set(quarantine["pair_id"].to_pylist())
    assert all(quarantine["message"].to_pylist())
    sound = {f"media/{kind}-0.{kind}" for kind in (*PICTURES, "wav", *SOUNDS, *FILMS)}
    assert not sound & set(quarantine["pair_id"].to_pylist())

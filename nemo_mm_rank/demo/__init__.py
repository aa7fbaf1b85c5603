"""The built-in demo pool: pairs of all five modalities, made by code alone, with a few faulty ones among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from nemo_mm_rank.demo import audio, images, words
from nemo_mm_rank.demo.images import Landscape, Shapes
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.files import write_bytes, write_text
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.modality import of
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, PAIR_ID, POOL, Modality

QUERY = "natural outdoor scenes with sky, sea, grass or sun"
"""What the pairs with ``on_topic`` are about."""

REAL_QUERY = "photos of space, animals and people"
"""What is asked of the real pool, which a clone of the project has."""

_FOREIGN = [
    "The invoice is due at the end of the month.",
    "Press the button twice to restart the printer.",
    "Our office is closed on public holidays.",
]


def make_demo_pool(folder: Path, pairs_per_modality: int = 40, seed: int = 0) -> Path:
    """Write the demo pool to ``folder`` and return its manifest.

    Half of the pairs of a modality (none of code) have ``on_topic`` set: those that `QUERY` asks for. ``fault`` says
    what is wrong with a pair, where something is: annotations with a foreign sentence added, which trimming should
    take off again, and besides the pairs asked for a corrupt image, a missing file, an empty caption and an id
    that is there twice, which should be quarantined. About 64 KB for each recording, 15 KB for each video.

    The same arguments give the same files, and files that are there already are not written again.

    Args:
        folder: made where it is not there; if it is, empty or with a demo pool.
        pairs_per_modality: good pairs of each modality.
        seed: another one gives another pool.

    Raises:
        UserError: the folder is not ours to write.
    """
    folder = Claim("demo").make(folder)
    rows: list[dict[str, Any]] = []
    for modality, make in _MAKERS.items():
        for number in range(pairs_per_modality):
            random = Random(f"{seed} {modality} {number}")  # noqa: S311 (nothing secret)
            on_topic = number % 2 == 0 and modality != Modality.CODE
            data, annotation = make(random, on_topic, number)
            fault = None
            if number % 9 == 4 and modality != Modality.CODE:
                annotation, fault = f"{annotation} {random.choice(_FOREIGN)}", "foreign sentence"
            name = f"{modality}-{number:03d}"
            if isinstance(data, bytes):
                data = _put(folder, f"{modality}/{name}{_suffix(modality)}", data)
            rows.append(_row(name, modality, data, annotation, on_topic, fault))
    rows[len(rows) // 3 : len(rows) // 3] = _faulty(folder, rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(folder / "pool.jsonl", "".join(lines))
    return folder / "pool.jsonl"


def real_pool() -> Path:
    """Return the manifest of the small pool of real pairs: photos, recordings, texts and code of free licences.

    Raises:
        UserError: it is not there, because the package was installed without the project around it.
    """
    manifest = Path(__file__).parents[2] / "tests" / "data" / "real_pool" / "pool.jsonl"
    if not manifest.exists():
        raise UserError(
            f"{manifest}: no such file: the real pool is part of a clone of the project, not of the installed package"
        )
    return manifest


def make_pair(modality: str, random: Random, number: int) -> tuple[str | bytes, str, str]:
    """Make one pair that is not about what `QUERY` asks for.

    Returns:
        The text or the file's content, the annotation, and the suffix of the file's name ("" for text and code).
    """
    data, annotation = _MAKERS[modality](random, False, 2 * number + 1)
    return data, annotation, _suffix(modality)


def _suffix(modality: str) -> str:
    """Return how the names of its files end: the usual way; "" for text and code."""
    return "".join(f".{extension}" for extension in of(modality).extensions.split()[:1])


def _row(name: str, modality: str, data: str, annotation: str, on_topic: bool, fault: str | None) -> dict[str, Any]:
    row = {PAIR_ID: name, POOL: "demo", MODALITY: str(modality), DATA: data, ANNOTATION: annotation}
    return {**row, "on_topic": on_topic, "fault": fault}


def _faulty(folder: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    image = images.jpeg(Landscape.at_random(Random(0)).draw())  # noqa: S311
    corrupt = _put(folder, "image/corrupt.jpg", image[:200] + bytes(len(image) - 200))
    yield _row("bad-corrupt", "image", corrupt, "The calm blue sea under a clear blue sky.", True, "corrupt file")
    yield _row("bad-missing", "image", "image/missing.jpg", "Green grass in the sun.", True, "missing file")
    yield _row("bad-empty", "text", "Only a passage, and nobody asks about it.", " ", False, "empty annotation")
    yield {**rows[0], "fault": "id there twice"}


def _put(folder: Path, name: str, content: bytes) -> str:
    """Write a file below ``folder`` where it is not there as it should be (a new time would look like a change)."""
    path = folder / name
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)
    return name


def _scene(random: Random, on_topic: bool) -> Landscape | Shapes:
    return (Landscape if on_topic else Shapes).at_random(random)


def _image(random: Random, on_topic: bool, _: int) -> tuple[bytes, str]:
    scene = _scene(random, on_topic)
    return images.jpeg(scene.draw()), scene.caption(random)


def _video(random: Random, on_topic: bool, _: int) -> tuple[bytes, str]:
    scene = _scene(random, on_topic)
    return images.video(scene), scene.video_caption(random)


_Maker = Callable[[Random, bool, int], tuple[str, str] | tuple[bytes, str]]
_MAKERS: dict[str, _Maker] = {
    Modality.TEXT: lambda random, on_topic, number: words.text(random, on_topic, number // 2),
    Modality.CODE: lambda random, _, number: words.code(random, number),
    Modality.IMAGE: _image,
    Modality.AUDIO: lambda random, on_topic, number: audio.audio_clip(random, on_topic, number // 2),
    Modality.VIDEO: _video,
}
"""From chance, whether the pair is on topic, and its number; every second one of a modality can be."""

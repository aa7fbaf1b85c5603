"""What the small real models are worth, each by itself: ``python -m benchmarks.real_weights``.

Recall@1 of photos and captions by what describers say of the photos (200 of COCO, and 400 others of COCO and Flickr8k);
of questions and the paragraphs that they are of; and how many words a recogniser gets wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import real_models, real_pool, weights
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoder, told

READ = Path("/usr/share/pocketsphinx/test/data/librivox")
"""Five sentences that people read, of Debian's pocketsphinx-testdata."""


def rows(pool: str, manifest: Path = real_pool.POOL) -> list[dict[str, str]]:
    """Return the pairs of one pool, in the manifest's order."""
    with manifest.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["pool"] == pool]


def encoder(folder: str) -> Encoder:
    return loader.as_encoder("text", loader.load("text", "sentence-transformers", {"path": folder}))


def recall(found: torch.Tensor, wanted: torch.Tensor, own: torch.Tensor) -> float:
    """Return Recall@1.

    Args:
        found: ``(n, d)`` embeddings that search.
        wanted: ``(m, d)`` embeddings that are searched.
        own: ``(n,)`` int64, which of them each is to find.
    """
    return float(((found @ wanted.T).argmax(dim=1) == own).double().mean())


def described(name: str, items: Sequence[Item], modality: str, **arguments: Any) -> list[str]:
    """Return what the describer of that class says of items."""
    describer = loader.as_describer(name, loader.load(name, name, arguments))
    found = told(describer.describe(items, modality), name, len(items))
    return [text or "" for text in found.texts]


def questions(text: Encoder, n: int) -> float:
    """Return Recall@1 of ``n`` questions and the paragraphs that they are of."""
    asked = rows("xquad")[:n]
    paragraphs = list(dict.fromkeys(row["data"] for row in asked))
    own = torch.tensor([paragraphs.index(row["data"]) for row in asked])
    question = text.encode([row["annotation"].split("?")[0] + "?" for row in asked], "text").vectors
    return recall(question, text.encode(paragraphs, "text").vectors, own)


def read_speech() -> dict[str, str]:
    """Return file -> what is said, of `READ`."""
    lines = (READ / "transcription").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines]
    return {f"{line[2]}.wav": line[1] for line in found if line}


def synthetic_speech() -> dict[str, str]:
    """Return file -> what is said, of the spoken pool."""
    return {row["data"]: row["annotation"] for row in rows("spoken", real_pool.SPOKEN)}


def error_rate(root: Path, spoken: dict[str, str]) -> float:
    """Return how many of a hundred words Whisper gets wrong: put in, left out or exchanged."""
    items = [Opener(root=str(root)).open(file, "audio") for file in spoken]
    heard = described("whisper", items, "audio", path=weights.whisper(), batch_size=1)
    pairs = [(words(own), words(said)) for own, said in zip(heard, spoken.values(), strict=True)]
    return sum(distance(*pair) for pair in pairs) / sum(len(said) for _, said in pairs)


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).replace("mr ", "mister ").split()


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != wanted)))
    return row[-1]


def main() -> None:
    reason = real_pool.missing() or real_models.missing(static=True, speech=True)
    if reason:
        sys.exit(f"skipped: {reason}")
    encoders = {"MiniLM": encoder(weights.minilm()), "WordLlama": encoder(weights.wordllama())}
    folder = str(real_models.FOLDER)
    opener = Opener(root=str(real_pool.POOL.parent))
    coco, flickr = rows("coco"), rows("flickr8k")
    print("| Recall@1, photo to caption / caption to photo | words | MiniLM | WordLlama |\n|---|---|---|---|")
    for what, photos in (("200 of COCO", coco[:200]), ("100 others and 300 of Flickr8k", [*coco[200:], *flickr[:300]])):
        items = [opener.open(row["data"], "image") for row in photos]
        own = torch.arange(len(photos))
        for name, settings in (
            ("eight labels", ("tests.adapters:MobileNetWords", 8)),
            ("three labels", ("tests.adapters:MobileNetWords", 3)),
            ("things and three labels", ("tests.adapters_objects:ObjectWords", 3)),
        ):
            texts = described(settings[0], items, "image", folder=folder, top=settings[1])
            cells = []
            for text in encoders.values():
                said = text.encode(texts, "text").vectors
                captions = text.encode([row["annotation"] for row in photos], "text").vectors
                cells.append(f"{recall(said, captions, own):.3f} / {recall(captions, said, own):.3f}")
            print(f"| {what} | {name} | {' | '.join(cells)} |", flush=True)
    found = " | ".join(f"{questions(text, 700):.3f}" for text in encoders.values())
    print(f"| question to paragraph (700, 235) | - | {found} |", flush=True)
    if READ.is_dir():
        print(f"\nWords wrong, Whisper tiny.en: read speech {error_rate(READ, read_speech()):.3f}", flush=True)
    print(f"Words wrong, synthetic speech (120): {error_rate(real_pool.DATA, synthetic_speech()):.3f}")


if __name__ == "__main__":
    main()

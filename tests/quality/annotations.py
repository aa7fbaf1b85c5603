"""Annotations with known faults, as a pool that the text-only baseline chooses from."""

from __future__ import annotations

import json
from pathlib import Path

PARAGRAPH = (
    "On a bright morning, two children walk along the harbour wall and watch the fishing boats come home. "
    "Gulls circle above them, calling loudly, while an old sailor mends his torn net beside a stack of crates. "
    "Behind the church, smoke rises from a bakery, and the smell of warm bread drifts slowly over the quiet square. "
    "A black cat sleeps under the baker's cart, dreaming of herring."
)
"""Passes every filter of the cascade."""

OTHER = (
    "The mountain hut opened again after a long winter, and its owner swept snow from the wooden steps. "
    "Climbers arrived before noon with heavy packs, ropes and maps, asking about the state of the northern ridge. "
    "She poured them tea, told stories of storms she had seen, and pointed out where the marked path had slid away. "
    "By dusk, every bunk was taken."
)
"""Passes every filter too."""

STUTTER = tuple(f"repeating_dup_{n}gram" for n in range(5, 11))

FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "good": (PARAGRAPH, ()),
    "other": (OTHER, ()),
    "caption": (
        "Two dogs run over the wet grass of a park.",
        ("word_count", "repeating_top_3grams", "repeating_top_4grams"),
    ),
    "numbers": (
        " ".join(str(n) for n in range(10_000, 10_060)) + f" {PARAGRAPH}",
        ("numbers_ratio", "words_without_alphabets"),
    ),
    "urls": (f"{PARAGRAPH} https://example.org/{'harbour-wall/' * 20} So.", ("urls_ratio",)),
    "brackets": (PARAGRAPH.replace(" ", " ([]) "), ("alpha_numeric", "parentheses_ratio", "words_without_alphabets")),
    "lines": ("\n".join([PARAGRAPH, "Ah.", "Oh.", "Ah.", "Oh."]), ("repeated_lines",)),
    "paragraphs": (
        "\n\n".join([PARAGRAPH, "Ah.", "Oh.", "Ah.", "Oh."]),
        ("repeated_lines", "repeated_paragraphs"),
    ),
    "stutter": (
        f"{PARAGRAPH} {'and so on and on it went ' * 6}.",
        STUTTER,
    ),
    "bullets": (
        "\n".join(f"• {line}" for line in PARAGRAPH.split(", ")),
        ("punctuation", "bullet_ratio"),
    ),
    "german": (
        "Am frühen Morgen gehen zwei Kinder an der Hafenmauer entlang und sehen den Booten zu, die heimkehren. "
        "Möwen kreisen über ihnen und rufen, während ein alter Seemann neben einem Stapel Kisten ein Netz flickt. "
        "Hinter der Kirche steigt Rauch aus einer Bäckerei auf, und der Duft von warmem Brot zieht über den Platz. "
        "Unter dem Karren des Bäckers schläft eine schwarze Katze.",
        ("common_english_words",),
    ),
}
"""Name -> annotation, and the filters of the cascade that it fails."""


def write_pool(folder: Path, annotations: dict[str, str]) -> Path:
    """Write a pool of code pairs, whose data nobody reads, in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "pool.jsonl"
    rows = [
        {"pair_id": name, "modality": "code" if row % 3 else "text", "data": "x = 1", "annotation": text, "mine": row}
        for row, (name, text) in enumerate(annotations.items())
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest

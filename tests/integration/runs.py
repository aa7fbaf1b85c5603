"""Runs small enough to be made again and again, and what they leave, as digests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

QUERY = "natural outdoor scenes with sky, sea, grass or sun"

OUTCOME = ("blend.parquet", "blend.jsonl", "quarantine.parquet", "manifest.json")
"""The files that a run is made for: the same for the same input, seed and versions."""


def settings(pool: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return a whole configuration: classical models, everything trimmed, a projection that is soon fitted."""
    return {
        "pools": str(pool),
        "queries": QUERY,
        "budget": 12,
        "output": str(output),
        "jsonl": True,
        "models": {
            "text": {"class": "hashed-text", "dim": 128},
            "words": {"class": "plain-words"},
            "image": {"class": "image-features"},
            "audio": {"class": "audio-features"},
            "video": {"class": "video-features"},
        },
        "sns": {"mode": "bidirectional", "region_grid": 2},
        "projection": {"max_epochs": 3, "folds": 2, "threads": 1},
        **changes,
    }


def digests(run: Path, names: tuple[str, ...] = OUTCOME) -> dict[str, str]:
    """Return the SHA-256 of each file that a run was made for."""
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}


def command(*arguments: object) -> list[str]:
    """Return the command line that a user would type."""
    return [str(Path(sys.executable).with_name("nemo-mm-rank")), *map(str, arguments)]


def say(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is captured as text."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=300)


def tree(folder: Path) -> dict[str, str]:
    """Return every file and link below a folder, hidden ones too, and what it holds or leads to."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in [*names, *(one for one in folders if Path(place, one).is_symlink())]:
            path = Path(place, name)
            held = f"-> {os.readlink(path)}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = held
    return found


def many_texts(file: Path, pairs: int = 120) -> Path:
    """Write a pool of texts, a fifth called code, half of the sea and half of a town: enough for broad objectives."""
    scenes = {
        "sea": (("A boat", "A gull", "A child", "A swimmer"), "the sea under a blue sky", ("waves", "sand", "wind")),
        "town": (("A tram", "A dog", "A baker", "A clerk"), "a street at night", ("lamps", "walls", "bells")),
    }
    lines = []
    for number in range(pairs):
        who, where, what = scenes["sea" if number % 2 else "town"]
        left, right = who[number // 2 % 4], what[number // 8 % 3]
        kind = "code" if number % 5 == 0 else "text"
        row = {"pair_id": f"p{number:03d}", "modality": kind, "annotation": f"{left} and {right} {number}."}
        lines.append(json.dumps({**row, "data": f"{left} by {where}. There are {right}, {number % 7} of them."}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


BROAD = {"skewness": [50.0, 100.0]}
"""Takes every objective for one that asks for much of the pool."""

"""A small pool with data of several parts among data of one, made of the demo pool's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_mm_rank.demo import make_demo_pool

COMBINATIONS = {"text+image": ("text", "image"), "image+audio": ("image", "audio"), "text+video": ("text", "video")}


def parts_pool(folder: Path, pairs: int = 6) -> list[dict[str, Any]]:
    """Write the demo pool's files; return ``pairs`` rows of each combination, and of each modality by itself."""
    manifest = make_demo_pool(folder, pairs)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    good = [row for row in rows if row["fault"] in (None, "foreign sentence")]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in good:
        by_kind.setdefault(row["modality"], []).append(row)
    out = [{key: row[key] for key in ("pair_id", "modality", "data", "annotation")} for row in good]
    for name, kinds in COMBINATIONS.items():
        for number in range(pairs):
            parts = [by_kind[kind][number] for kind in kinds]
            out.append(
                {
                    "pair_id": f"{name}-{number}",
                    "data": [{"modality": part["modality"], "data": part["data"]} for part in parts],
                    "annotation": " ".join(part["annotation"] for part in parts),
                }
            )
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a manifest."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path

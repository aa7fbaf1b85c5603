"""How fast conversations are taken in, against plain rows of the same texts, and how much memory that takes.

    python -m benchmarks.formats [RECORDS]

Each reading is a process of its own, so that its peak of memory is its own: JSON lines of our rows, then LLaVA as JSON
lines and as one array, and that array four times as long, whose memory must not be more.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.ingest import ingest

WORDS = [f"word{n}" for n in range(5000)]


def make(folder: Path, records: int, form: str) -> Path:
    """Write a pool of two turns and an image each; ``rows`` have the same texts."""
    random = Random(0)  # noqa: S311
    image = folder / "a.png"
    image.write_bytes(b"an image")
    array = form == "array"
    path = folder / f"{form}-{records}.{'json' if array else 'jsonl'}"
    with path.open("w", encoding="utf-8") as file:
        for n in range(records):
            asked, said = (" ".join(random.choices(WORDS, k=k)) for k in (20, 60))
            row: dict[str, Any] = {"id": f"{n}", "image": "a.png", "source": "made"}
            row["conversations"] = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}]
            if form == "rows":
                row = {"id": f"{n}", "source": "made", "modality": "image", "data": "a.png", "annotation": said}
                row["asked"] = asked
            file.write(("[" if n == 0 else ",") * array + json.dumps(row) + "\n")
        file.write("]" * array)
    return path


def take_in(path: Path, folder: Path) -> None:
    """Print how long it takes, in seconds of this process, and the peak of memory in MiB."""
    start = time.process_time()
    report = ingest([PoolSource(path=str(path))], folder)
    seconds = time.process_time() - start
    assert not report.bad
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(records: int) -> None:
    """Print a line for each pool."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pools = [(form, records) for form in ("rows", "llava", "array")] + [("array", 4 * records)]
        rates: dict[str, float] = {}
        print("pool        records     rate/s  of rows  peak MiB  file MiB")
        for form, count in pools:
            path = make(folder, count, form)
            command = [sys.executable, "-m", "benchmarks.formats", str(path), str(folder / f"{form}-{count}")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak = map(float, done.stdout.split())
            rates.setdefault(form, count / seconds)
            share = count / seconds / rates["rows"]
            size = path.stat().st_size / 2**20
            print(f"{form:10} {count:8,} {count / seconds:10,.0f} {share:8.0%} {peak:9,.0f} {size:9,.0f}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        take_in(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)

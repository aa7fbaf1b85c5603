"""Say which extras can be installed together: every two of ours, and ours beside Curator's own. Nothing is installed.

    python tools/resolve.py [3.11 3.12 ...]

Exit status 1 where two that should go together do not. Needs `uv` and a package index.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = [{"gpu", "gpu-cu12"}]
"""Two releases of CUDA."""

CURATOR = {
    "curator,models": ["audio-cpu", "video-cpu", "image-cpu", "text-cpu", "interleaved-cpu"],
    "curator,gpu-cu12": ["deduplication-cuda12"],
}
"""Ours -> the extras of Curator that go beside them, each by itself."""


def sets() -> Iterator[tuple[str, list[str]]]:
    """Yield what is to go together: a name, and the requirements."""
    for two in combinations(EXTRAS, 2):
        if {*two} not in APART:
            yield " + ".join(two), [one for extra in two for one in EXTRAS[extra]]
    for ours, theirs in CURATOR.items():
        own = [one for extra in ours.split(",") for one in EXTRAS[extra]]
        for extra in theirs:
            yield f"{ours.replace(',', ' + ')} + nemo-curator[{extra}]", [*own, f"nemo-curator[{extra}]"]


def main() -> int:
    """Resolve every set for every Python; return how many do not."""
    failed = 0
    for python in sys.argv[1:] or ["3.11"]:
        command = ["uv", "pip", "compile", "-q", "--no-config", "-p", python, "--python-platform", "linux", "-"]
        for name, requirements in sets():
            told = "\n".join([*PROJECT["dependencies"], *requirements])
            done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)  # noqa: S603
            print(f"{python}: {name}: {'yes' if done.returncode == 0 else 'NO'}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main()))

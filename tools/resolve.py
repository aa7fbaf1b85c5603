"""Say which extras can be installed together: all of ours, hence every two, and ours beside each of Curator's own.

    python tools/resolve.py [3.11 3.12 3.13]

Nothing is installed. Exit status 1 where what should go together does not. Needs `uv` and a package index.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = ["gpu", "gpu-cu12"]
"""Two releases of CUDA."""

CURATOR = {
    "curator,models": ["audio-cpu", "video-cpu", "image-cpu", "text-cpu", "interleaved-cpu"],
    "curator,gpu-cu12": ["deduplication-cuda12"],
}
"""Ours -> the extras of Curator that go beside them, each by itself."""

OLDER = {"3.13": {"gpu-cu12", "deduplication-cuda12"}}
"""What is for older Pythons alone: RAPIDS for CUDA 12 wants other libraries of CUDA than torch for 3.13 has."""


def sets(python: str) -> Iterator[tuple[str, list[str]]]:
    """Yield what is to go together: a name, and the requirements."""
    for one in (one for one in APART if one not in OLDER.get(python, set())):
        names = [extra for extra in EXTRAS if extra == one or extra not in APART]
        yield " + ".join(names), [requirement for extra in names for requirement in EXTRAS[extra]]
    for ours, theirs in CURATOR.items():
        own = [one for extra in ours.split(",") for one in EXTRAS[extra]]
        for extra in theirs:
            if extra not in OLDER.get(python, set()):
                yield f"{ours.replace(',', ' + ')} + nemo-curator[{extra}]", [*own, f"nemo-curator[{extra}]"]


AT_ONCE = 8
"""A resolver waits for the index most of its time."""


def resolve(python: str, requirements: list[str]) -> str:
    """Return what the resolver says against a set; nothing where it has none against it."""
    command = ["uv", "pip", "compile", "-q", "--no-config", "-p", python, "--python-platform", "linux", "-"]
    asked = "\n".join([*PROJECT["dependencies"], *requirements])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)  # noqa: S603
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


def main() -> int:
    """Resolve every set for every Python; return how many do not."""
    failed = 0
    for python in sys.argv[1:] or ["3.11", "3.12", "3.13"]:
        names, wanted = zip(*sets(python), strict=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, against in zip(names, pool.map(partial(resolve, python), wanted), strict=True):
                print(f"{python}: {name}: {'NO' if against else 'yes'}", flush=True)
                if against:
                    failed += 1
                    print(against, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main()))

"""A pool's folder with modules in it: none of them runs, by any way in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import command

CASES = Path(__file__).parents[3] / "shared" / "cases"
ROOT = Path(__file__).parents[2]
MODULES = (
    *("torch", "json", "av", "typing", "multiprocessing", "pickle", "distributed", "dask", "accelerate"),
    *("sitecustomize", "usercustomize", "nemo_mm_rank", "numpy", "pyarrow"),
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A pool of texts, beside which lie modules with the names of ours and others."""
    folder = tmp_path / "pool"
    folder.mkdir()
    rows = [{"modality": "text", "data": f"words {n} here", "annotation": f"words {n}"} for n in range(16)]
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN-')!r} + {name!r}, 'w').close()\n", "utf-8")
    return folder


def ran(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.glob("RAN-*"))


def done(folder: Path, words: list[str]) -> str:
    # The package as it is imported here, and not by a relative entry of PYTHONPATH, which is the user's own.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_command(hostile: Path) -> None:
    assert "16 good" in done(hostile, command("validate", "pool.jsonl"))
    assert ran(hostile) == []


def test_python_m(hostile: Path) -> None:
    # Of a module called as the package itself Python runs that, before anything of ours: -P keeps it from it.
    done(hostile, [sys.executable, "-P", "-m", "nemo_mm_rank.cli", "validate", "pool.jsonl"])
    (hostile / "nemo_mm_rank.py").unlink()
    assert "16 good" in done(hostile, [sys.executable, "-m", "nemo_mm_rank.cli", "validate", "pool.jsonl"])
    assert ran(hostile) == []


SCRIPT = """
from nemo_mm_rank import curate
if __name__ == "__main__":
    config = {"engine": {"workers": 1}, "projection": {"max_epochs": 1, "folds": 2, "threads": 1}}
    curate("pool.jsonl", "words", 4, config=config, output="run", progress=False)
"""


def test_workers_of_a_script_elsewhere(hostile: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    (tmp_path / "script").mkdir()
    script = tmp_path / "script" / "mine.py"
    script.write_text(SCRIPT, "utf-8")
    done(hostile, [sys.executable, str(script)])
    assert ran(hostile) == []


OWN = """
from nemo_mm_rank.models.classical.text import HashedText

class Mine(HashedText):
    pass
"""


def test_classes_of_ones_own(hostile: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "my_texts.py").write_text(OWN, "utf-8")
    (own / "json.py").write_text((hostile / "json.py").read_text("utf-8"), "utf-8")  # never before the library's
    config = {
        "models": {"text": {"class": "my_texts:Mine", "dim": 32}},
        "experts": [{"name": "words", "kind": "text-based", "encoder": "text"}],
        "projection": {"max_epochs": 1, "folds": 2, "threads": 1},
    }
    (own / "c.yaml").write_text(json.dumps(config), "utf-8")
    words = ["curate", "pool.jsonl", "-q", "words", "-c", str(own / "c.yaml"), "-b", "4", "-o"]
    refused = subprocess.run(command(*words, "none"), cwd=hostile, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: model class 'my_texts:Mine': cannot import 'my_texts'")
    assert "--import-from FOLDER" in refused.stderr
    assert not (hostile / "none").exists()
    pytest.importorskip("distributed", reason="needs the extra 'dask'")
    assert "blend" in done(hostile, command(*words, "run", "--import-from", "../own", "--workers", 2))
    assert (hostile / "run" / "blend.parquet").exists()
    (own / "c.yaml").write_text(json.dumps({**config, "import_from": "."}), "utf-8")
    assert "budget   count 4" in done(hostile, command(*words, "none", "--dry-run"))
    assert ran(hostile) == []


def test_the_case() -> None:
    script = CASES / "cwd_code_execution" / "repro.sh"
    if not script.exists():
        pytest.skip("needs the case scripts beside the checkout")
    path = os.pathsep.join([str(Path(command()[0]).parent), os.environ["PATH"]])
    found = subprocess.run(
        ["sh", str(script)], capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path}
    )
    assert found.stdout.splitlines()[-1] == "12 rows: 12 good, 0 bad"

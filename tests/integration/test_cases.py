"""What was found from outside: the scripts of ``../shared/cases``, each with the outcome that is right.

A script runs in a folder of its own, with the environment's programs before all others and this checkout before the
installed package. To add one: a test that says what `run` has to print, and what not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="the shared folder of cases does not lie beside this checkout"
)


def run(name: str, folder: Path) -> tuple[list[str], str]:
    """Run ``CASES/name`` and return what it printed: lines of standard output, and all of standard error.

    Args:
        name: of the script; skipped where there is none.
        folder: where it makes the folder that it works in.
    """
    script = CASES / name
    if not script.exists():
        pytest.skip(f"the shared folder has no {name}")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable if script.suffix == ".py" else "bash", str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.splitlines(), done.stderr


def test_a_pool_that_lies_in_the_output_is_not_deleted(tmp_path: Path) -> None:
    said, errors = run("output-deletes-pool.sh", tmp_path)
    parts = [f"part-{number:05d}-abc.snappy.parquet" for number in range(4)]
    own = "# my own notes on this job"
    assert said == [*parts, own, "exit 2", "after:", *parts, own]
    [error] = errors.splitlines()
    assert error.startswith("error: ")
    assert error.endswith("; name an output that no input lies in")


def test_a_score_of_the_users_in_a_batch_is_not_replaced(tmp_path: Path) -> None:
    pytest.importorskip("nemo_curator", reason="needs the extra 'curator'")
    said, _ = run("curator-score-overwritten.sh", tmp_path)
    assert said == []  # it was refused; the script hides with what words, which tests/curator check
    [made] = tmp_path.glob("*/r/blend.parquet")
    assert made.exists()


def test_a_run_in_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    said, errors = run("all-quarantined-traceback.sh", tmp_path)
    assert [line for line in said if line.startswith("exit ")] == ["exit 1"] * 3
    assert said.count("quarantine.parquet") == 2  # the script lists two folders of three
    pointers, urls, ecodatum = errors.splitlines()
    for line in (pointers, ecodatum):
        assert line.startswith("error: no pair is left of 6 rows: 6 x experts: MediaError: '0.jpg': is not a picture")
    assert ": is a URL; set media.allow_urls to open those (" in urls


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="needs the extra 'models'")
    assert run("transient_error_is_forever/repro.py", tmp_path) == (
        [
            "endpoint sick rc 0 requests 18 ranked {'image': 6} quarantined 6",
            "endpoint healthy rc 0 requests 12 ranked {'image': 12} quarantined 0",
        ],
        "",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep_json_kills_run", ["depth 100 rc 0 lines of stderr 0 []"] * 2),
        ("wav64_kills_run", ["rc 0 lines of stderr 0 []"]),
        ("video_without_times_kills_run", ["rc 0 lines of stderr 0 []"]),
    ],
)
def test_one_odd_item_stops_no_run(tmp_path: Path, name: str, said: list[str]) -> None:
    assert run(f"{name}/repro.py", tmp_path) == (said, "")

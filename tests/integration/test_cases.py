"""What was found from outside: the scripts of ``../shared/cases``, each with the outcome that is right.

A script runs in a folder of its own, with the environment's programs before all others and this checkout before the
installed package. To add one: a test that says what `run` has to print, and what not.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nemo_mm_rank.cli import app

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="the shared folder of cases does not lie beside this checkout"
)


def run(name: str, folder: Path, *arguments: str) -> tuple[list[str], str]:
    """Run ``CASES/name`` and return what it printed: lines of standard output, and all of standard error.

    Args:
        name: of the script; skipped where there is none.
        folder: where it makes the folder that it works in.
        arguments: of the script.
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
        [sys.executable if script.suffix == ".py" else "bash", str(script), *arguments],
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
    assert error.endswith("; choose an output folder that contains no input")


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
        assert line.startswith("error: no pair is left of 6 rows: 6 x experts: MediaError: '0.jpg': cannot be decoded")
    assert ": is a URL; set media.allow_urls to true to open URLs (" in urls


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


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("progressive_jpeg_hang", "'j_prog_scans.jpg': is a JPEG of more than 100 scans, which no image needs"),
        ("video_without_times_kills_run", "'v.webm': has frames that do not say when they are shown"),
    ],
)
def test_media_that_ended_the_run_are_one_bad_row(tmp_path: Path, case: str, said: str) -> None:
    assert run(f"{case}/repro.py", tmp_path) == (["rc 0 lines of stderr 0 []"], "")
    [quarantine] = tmp_path.glob("*/run/quarantine.parquet")
    [row] = pq.read_table(quarantine).to_pylist()
    assert (row["pair_id"], row["error"]) == ("v", "MediaError")
    assert row["message"].startswith(said)
    assert pq.read_table(quarantine.with_name("blend.parquet")).num_rows > 0


def test_channels_that_cancel_each_other_out_are_heard(tmp_path: Path) -> None:
    said, _ = run("antiphase-stereo.sh", tmp_path)
    words = "A loud, low-pitched, steady and tonal sound like an engine."
    assert [line.split(maxsplit=2)[1:] for line in said[1:]] == [["anti", words], ["left", words]]


def test_captions_in_members_are_read(tmp_path: Path) -> None:
    said, _ = run("tar-text-member.sh", tmp_path)
    assert said[2:5] == ["6 rows: 6 good, 0 bad", "exit 0", "exit 0"]
    for line in said[6:9] + said[10:13]:
        _, pair_id, annotation = line.split(maxsplit=2)
        assert annotation == f"a green field number {pair_id[2:]}"


def test_members_that_lie_apart_are_named(tmp_path: Path) -> None:
    said, _ = run("unsorted-tar.sh", tmp_path)
    assert said == [
        *(
            f"a.tar:{number + 1}: pair 'a/{number}': row: expected the members of sample '{number}' side by side, "
            "found them apart: sort the archive by name (tar --sort=name)"
            for number in range(6)
        ),
        "6 rows: 0 good, 6 bad (6 row)",
    ]


def test_nan_is_no_id(tmp_path: Path) -> None:
    said, _ = run("nan-ids.sh", tmp_path)
    ids = ast.literal_eval(said[0])
    assert ids[:7] == ["0.0", "1.0", "3.0", "4.0", "6.0", "8.0", "9.0"]
    assert len(ids) == 10
    assert all(re.fullmatch("pool-[0-9a-f]{16}", name) for name in ids[7:])
    assert said[1] == "Empty DataFrame"


def test_absolute_paths_below_the_root_are_taken(tmp_path: Path) -> None:
    said, errors = run("absolute-paths.sh", tmp_path)
    assert errors == ""
    assert [line.split() for line in said] == [["pool", "text", "code", "image", "audio", "video", "all"]] * 4


def test_links_of_a_hub_are_followed_below_trusted_folders(tmp_path: Path) -> None:
    said, _ = run("hub-snapshot-links.sh", tmp_path)
    assert said[0].endswith(
        "found '0.jpg', which leads out of the root of the pool: name a folder that contains it with --root, "
        "or another folder that references may lead to with --trust-root"
    )
    assert said[3].split() == ["pool", "0", "0", "6", "0", "0", "6"]
    [repo] = tmp_path.glob("*/repo")
    pool = str(repo / "snapshots" / "rev" / "pool.jsonl")
    done = CliRunner().invoke(app, ["validate", pool, "--trust-root", str(repo / "blobs")])
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == "6 rows: 6 good, 0 bad"


def test_a_terminal_that_cannot_show_a_letter(tmp_path: Path) -> None:
    said, errors = run("console-encoding.sh", tmp_path)
    assert (said[-2:], errors) == (["exit 0", "r/blend.parquet"], "")


def test_an_array_of_rows_is_a_pool(tmp_path: Path) -> None:
    said, _ = run("json-array.sh", tmp_path)
    assert "3 rows: 3 good, 0 bad" in said


def test_lists_of_one_and_files_as_hugging_face_keeps_them_are_read(tmp_path: Path) -> None:
    said, _ = run("lists-and-structs.sh", tmp_path)
    assert "3 rows: 3 good, 0 bad" in said
    assert said[-1] == "5 rows: 3 good, 2 bad (1 annotation, 1 pair_id)"  # two captions, and the same pair twice
    assert any(line.startswith("pool.jsonl:4: annotation: expected a caption or a list of captions") for line in said)


def test_a_blend_and_its_export_are_pools(tmp_path: Path) -> None:
    said, _ = run("own-blend-as-pool.sh", tmp_path)
    assert said.count("6 rows: 6 good, 0 bad") == 2
    assert (
        sum(
            line.startswith("note: columns with names that nemo-mm-rank uses itself are kept under other names: ")
            for line in said
        )
        == 2
    )


def test_a_script_without_guard_runs_once(tmp_path: Path) -> None:
    said, errors = run("script-without-guard.sh", tmp_path)
    assert (said[-2:], errors) == (["2", "1"], "")  # two pairs in the blend, and no line but that the second time


@pytest.mark.parametrize("command", [["validate"], ["curate", "-q", "words"]])
def test_modules_beside_the_pool_are_not_run(tmp_path: Path, command: list[str]) -> None:
    said, errors = run("cwd_code_execution/repro.sh", tmp_path, *command)
    assert errors == ""
    assert not any("CODE_RAN" in line or "BROKEN" in line for line in said)


def test_a_parquet_dictionary_is_read_in_bounds(tmp_path: Path) -> None:
    lines, errors = run("parquet_dictionary_bomb/repro.py", tmp_path, "2000")
    assert errors == ""
    said = " ".join(lines)
    assert said.startswith("rc 0 ")
    assert "2,000 rows: 2,000 good, 0 bad" in said
    assert int(said.rpartition(" ")[2]) < 2500  # MB at the most

"""Every error that the documentation quotes is one of the code, and those of a first hour appear as they are quoted."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.command_line import CommandLine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GAP = "\N{BULLET}"
"""Stands for a value in a message of the code, as ``...`` does in a quotation."""


def _quoted() -> list[str]:
    """Return the messages that the page quotes: what is code in the first column of tables of messages."""
    found = []
    for table in re.findall(r"^\| The message contains .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for line in table.splitlines():
            first = line.split(" | ")[0]
            found += [] if "(from the shell)" in first else re.findall(r"`([^`]+)`", first)
    return found


def _messages() -> list[str]:
    """Return all texts of the code as they stand there, each value a gap; texts that are put together, line by line."""
    found = []
    for path in (ROOT / "nemo_mm_rank").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                pieces = (one.value if isinstance(one, ast.Constant) else GAP for one in node.values)
                found.append("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    return found + (ROOT / "tools" / "make_env.sh").read_text(encoding="utf-8").splitlines()


def _pattern(quoted: str) -> re.Pattern[str]:
    return re.compile(".*?".join(re.escape(piece.strip()) for piece in quoted.split("...")))


QUOTED, MESSAGES = _quoted(), _messages()

FIRST_HOUR = {
    "queries: missing": ["curate", "pool.jsonl"],
    "no such file or folder": ["curate", "nowhere.jsonl", "-q", "sea"],
    "expected one of ..., found no field 'modality'": ["validate", "other.jsonl"],
    "found no field ... (the fields are: ...; name yours with --field": [
        "validate",
        "other.jsonl",
        "--modality",
        "text",
    ],
    "no pair is left of ... rows": ["curate", "other.jsonl", "-q", "sea", "-o", "none"],
    "found no such file": ["validate", "media.jsonl"],
    "the folder contains no manifest": ["curate", "photos", "-q", "sea"],
    "the folder is not empty, and nothing shows that nemo-mm-rank made it": [
        *("curate", "pool.jsonl", "-q", "sea", "-o", "photos"),
    ],
    "the pool ... lies in it": ["curate", "pool.jsonl", "-q", "sea", "-o", "."],
    "is not a run: it has no": ["report", "photos"],
    "there is no preset": ["curate", "pool.jsonl", "-q", "sea", "-p", "cpu_smal"],
    "unknown key; did you mean": ["curate", "pool.jsonl", "-q", "sea", "-c", "bad.yaml"],
    "a budget must be a number of pairs or a share such as 20%": ["curate", "pool.jsonl", "-q", "sea", "-b", "lots"],
    "outputs must be local folders or URLs of an object store": [
        *("curate", "pool.jsonl", "-q", "sea", "-o", "https://bucket/run")
    ],
    "each object must be on one line of its own": ["validate", "lines.jsonl"],
}
"""What the page quotes, and a command that says it."""


def test_the_page_quotes_as_many_as_it_has() -> None:
    assert len(QUOTED) > 50
    assert FIRST_HOUR.keys() <= set(QUOTED)


@pytest.mark.parametrize("quoted", [text for text in QUOTED if text not in FIRST_HOUR])
def test_what_is_quoted_is_a_message_of_the_code(quoted: str) -> None:
    assert any(map(_pattern(quoted).search, MESSAGES)), quoted


@pytest.mark.parametrize(("quoted", "command"), FIRST_HOUR.items(), ids=lambda one: str(one)[:40])
def test_what_is_quoted_is_what_a_command_says(
    quoted: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos", "a.jpg").touch()
    Path("bad.yaml").write_text("queris: [x]\n", encoding="utf-8")
    Path("pool.jsonl").write_text('{"data": "The sea.", "modality": "text", "annotation": "Sea."}\n', encoding="utf-8")
    Path("other.jsonl").write_text('{"body": "The sea.", "words": "Sea."}\n', encoding="utf-8")
    Path("media.jsonl").write_text('{"data": "b.jpg", "modality": "image", "annotation": "Sea."}\n', encoding="utf-8")
    Path("lines.jsonl").write_text('{\n  "data": "The sea."\n}\n', encoding="utf-8")
    status, printed = command_line(*command)
    assert status in (1, 2)
    assert _pattern(quoted).search(" ".join(printed.split())), printed

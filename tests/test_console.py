"""What is printed: nothing that comes from data steers a terminal, is taken for markup, or shows a password."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from nemo_mm_rank.console import SafeConsole, guard_messages, printable
from nemo_mm_rank.errors import MediaError, PairError, PoolError, UserError
from nemo_mm_rank.steps import reason
from tests.command_line import HARMFUL, CommandLine

EVIL = "\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1b[31m\x9b2J\x7f\u202eabc\u2066[red]x[/red][link=http://x]y[/link]"
SHOWN = r"\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1b[31m\x9b2J\x7f\u202eabc\u2066[red]x[/red][link=http://x]y[/link]"


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\r\nb\tc") == r"a\r\nb\tc"
    assert printable("a\r\nb\tc", lines=True) == "a\\r\nb\tc"
    assert printable("\udcff\u2028\u200f\u061c") == r"\udcff\u2028\u200f\u061c"
    plain = "naïve, 日本語, العربية, עברית, 👩‍👩‍👧 …"
    assert printable(plain) == plain
    assert printable(printable(EVIL)) == printable(EVIL)
    assert printable(Path("a\x1bb")) == r"a\x1bb"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("ftp://user:word@host/a", "ftp://(hidden)@host/a"),
        ("https://:word@host/a?b", "https://(hidden)@host/a?b"),
        ("x 'memory://a:b@c' y", "x 'memory://(hidden)@c' y"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        ("hf://datasets/a/b@main/c", "hf://datasets/a/b@main/c"),
        ("abfs://box@name.net/a", "abfs://box@name.net/a"),
    ],
)
def test_passwords_in_urls(said: str, shown: str) -> None:
    assert printable(said) == shown


def drawn(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr()
    return out.out + out.err


def test_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    console = SafeConsole(soft_wrap=True)
    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL, no_wrap=True)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.width = 400
    for said in (EVIL, Text(EVIL), table):
        console.print(said)
    console.print(f"two\n{EVIL}", style="bold")
    found = drawn(capsys)
    assert HARMFUL.search(found) is None
    assert found.count(SHOWN) == 6
    assert found.count(SHOWN.replace(r"\x07", "")) == 2  # a text of Rich's own leaves bells out by itself


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    SafeConsole(soft_wrap=True).print(f"error: {EVIL}", style="red")
    found = drawn(capsys)
    assert SHOWN in found
    assert re.sub(r"\x1b\[\d*m", "", found) == f"error: {SHOWN}\n"


def test_warnings_and_logging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    guard_messages()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        warnings.warn(EVIL, stacklevel=1)
    found = drawn(capsys)
    # Under pytest the root logger has handlers: what stands in where nobody has set one up is asked itself.
    assert logging.lastResort is not None
    found += logging.lastResort.format(logging.LogRecord("x", logging.WARNING, "f", 1, "%s", (EVIL,), None))
    assert HARMFUL.search(found) is None
    assert found.count(SHOWN) >= 1


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of which every word is out to harm."""
    folder = tmp_path_factory.mktemp("harm") / f"f{EVIL.replace('/', '_')}"
    folder.mkdir()
    words = ["sea", "sky", "sand", "wind", "rain", "snow", "field", "tree", "river", "cloud"]
    rows = [
        {
            "pair_id": f"{n}{EVIL}",
            "modality": "text",
            "data": f"{EVIL} {a} and {b} in the {a}",
            "annotation": f"{EVIL}\n{b} over {a}",
            "pool": f"p{EVIL}",
        }
        for n, (a, b) in enumerate((a, b) for a in words for b in words[:3])
    ]
    rows += [
        {"pair_id": f"bad{EVIL}", "modality": f"no{EVIL}", "data": "x", "annotation": "x"},
        {"pair_id": f"image{EVIL}", "modality": "image", "data": f"{EVIL}.jpg".replace("/", "_"), "annotation": "x"},
    ]
    path = folder / f"pool{EVIL.replace('/', '_')}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("terminal", [False, True])
def test_every_command(
    pool: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "500")
    run = tmp_path / f"run{EVIL.replace('/', '_')}"
    config = tmp_path / "c.yaml"
    config.write_text("projection: {max_epochs: 1, folds: 2, threads: 1}\n", encoding="utf-8")
    broken = tmp_path / "broken.yaml"
    broken.write_text(json.dumps({EVIL: 1, "sns": {EVIL: 2}, "models": {EVIL: {"class": EVIL}}}), encoding="utf-8")
    pair_id = f"3{EVIL}"

    def said(status: int, *arguments: object) -> str:
        ended, found = command_line(*arguments)
        assert ended == status, found
        if terminal:  # Rich's own: colours, and a cursor that goes up a line
            found = re.sub(r"\x1b\[[\d;]*[mAK]|\x1b\[\?25[lh]|\r", "", found)
        assert HARMFUL.search(found) is None
        return found

    assert SHOWN in said(1, "validate", pool)
    assert SHOWN in said(0, "curate", pool, "-c", config, "-q", f"the sea {EVIL}", "-o", run, "-b", 8)
    said(0, "curate", pool, "-c", config, "-q", f"the sea {EVIL}", "-o", run, "--dry-run")
    said(0, "rank", run, "-q", "rain", "-b", 4)
    assert SHOWN in said(0, "explain", run, pair_id)
    assert SHOWN in said(0, "explain", run, f"bad{EVIL}")
    said(2, "explain", run, f"none{EVIL}")
    assert r"\x1b]0;title" in said(0, "export", run, "-o", tmp_path / f"tars{EVIL.replace('/', '_')}")
    assert r"\x1b]0;title" in said(0, "report", run)
    said(0, "ecodatum", "--run", run, "-o", tmp_path / "quality")
    assert r"\x1b]0;title" in said(2, "curate", pool, "-q", "x", "-c", broken, "-o", tmp_path / "none")
    said(2, "rank", tmp_path / EVIL, "-q", "x")
    said(2, "validate", pool, "--field", EVIL)
    said(1, "validate", tmp_path / EVIL)
    said(2, EVIL)
    said(2, "models", "check", "-c", broken)


def test_errors_are_printable_in_python_too() -> None:
    for kind in (UserError, PoolError, PairError, MediaError):
        error = pickle.loads(pickle.dumps(kind(f"{EVIL} ftp://user:word@host")))
        assert str(error) == f"{SHOWN} ftp://(hidden)@host"
    assert reason("sns", ValueError(EVIL)) == f"sns: ValueError: {SHOWN}"


def test_a_fault_of_ours_is_printable(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(EVIL)

    monkeypatch.setattr("nemo_mm_rank.io.pool.manifests", fails)
    status, said = command_line("validate", "x.jsonl")
    assert status == 1
    assert said.startswith("Traceback")
    assert f"RuntimeError: {SHOWN}" in said
    assert HARMFUL.search(said) is None


def test_interrupted(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nemo_mm_rank.io.pool.manifests", stopped)
    said = "stopped; start the same command again to continue from here\n"
    assert command_line("validate", "x.jsonl") == (130, said)


def test_a_terminal_that_lacks_letters_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    console = SafeConsole()
    console.print("gr\u00fcne Wiese \u8349\u5730")
    sys.stdout.flush()
    assert written.getvalue().decode("latin-1") == "gr\u00fcne Wiese ??\n"

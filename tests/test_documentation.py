"""What the documentation says is so: its examples run as they stand, and what they are shown to print they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from nemo_mm_rank import curate
from nemo_mm_rank.cli import app
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.presets import overlay, read
from tests.command_line import CommandLine

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "tutorials")
PAGES = [page for folder in FOLDERS for page in sorted(folder.glob("*.md")) if page.stem != "ARCHITECTURE"]
QUERY = "natural outdoor scenes with sky, sea, grass or sun"

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, its text, the file that it is, and why it does not run here."""

    language: str
    text: str
    title: str | None
    reason: str | None


def _blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(one["language"], one["text"], one["title"], one["reason"]) for one in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the demo's pool, a finished run of it, and the configurations that come with the project."""
    place = tmp_path_factory.mktemp("documentation") / "pool"
    pool = make_demo_pool(place, pairs_per_modality=10)
    shutil.copytree(ROOT / "configs", place / "configs")
    with contextlib.chdir(place):
        curate(pool.name, QUERY, "20%", output="run", progress=False)
        yield place


@pytest.fixture
def clean(folder: Path) -> Iterator[Path]:
    """The same folder; what a page has made there goes again."""
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page)], ids=lambda page: page.stem)
@pytest.mark.slow
def test_examples_run(page: Path, clean: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clean)
    monkeypatch.syspath_prepend(clean)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in _blocks(page):
        if block.title:
            (clean / block.title).write_text(block.text, encoding="utf-8")
        if block.reason:
            continue
        if block.language == "console":
            _run_commands(block.text, command_line)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, f"{page.name}: {block.text.splitlines()[0]}", "exec"), names)
        elif block.language == "yaml" and not block.title:
            values = yaml.safe_load(block.text)
            values = overlay(read("cpu_small"), values) if values.keys() == {"models"} else values
            parse(Config, {"pools": "pool.jsonl", "queries": QUERY, **values})
        else:
            assert block.title, f"{page.name}: nothing runs blocks of {block.language}"


def _run_commands(text: str, command_line: CommandLine) -> None:
    """Run the commands of a block; what is shown below each is part of what it prints, numbers aside."""
    for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, shown = entry.partition("\n")
        program, *arguments = shlex.split(line, comments=True)
        assert program == "nemo-mm-rank", f"{line}: nothing runs {program} here"
        status, printed = command_line(*arguments)
        assert status == int("exit status 1" in line), f"{line}: {printed}"
        for one in shown.splitlines():
            there = _plain(printed.replace(str(Path.cwd()), "/data/pool"))
            assert one.strip() == "..." or _plain(one) in there, f"{line}: {one!r} is not in:\n{printed}"


def _plain(text: str) -> str:
    return " ".join(_NUMBER.sub("0", text).split())


def test_what_does_not_run_says_why() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^[ \t]*(?:```|~~~)", text, re.MULTILINE)
        assert len(fences) == 2 * len(_blocks(page)), (
            f"{page.name}: a block without a language, or one that is indented"
        )
        assert len(re.findall("^<!-- not run", text, re.MULTILINE)) == sum(bool(one.reason) for one in _blocks(page)), (
            page.name
        )


def test_options_and_targets_that_pages_name_are_there() -> None:
    commands: list[Any] = [typer.main.get_command(app)]
    options, names = {"--help"}, {"nemo-mm-rank"}
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        names.add(command.name)
        options |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            first, *_ = code.split() or [""]
            if first in names or first.startswith("--"):
                assert set(_OPTION.findall(code)) <= options, f"{page.name}: {code}"
            elif code.startswith("make "):
                assert {word for word in code.split()[1:] if "=" not in word} <= targets | {"--real"}, page.name


def test_everything_that_can_be_added_has_an_example() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    added = re.findall(r"^## An? (.+)$", page, re.MULTILINE)
    names = ["describer", "encoder", "condition", "quality operator", "modality", "engine", "format of pools"]
    assert added == names
    sections = dict(zip(names, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:], strict=True))
    assert not [name for name in names if "```python" not in sections[name] and "above is one" not in sections[name]]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_key_of_a_run_says_what_it_means() -> None:
    waiting: list[Any] = [Config]
    seen = set()
    while waiting:
        kind = waiting.pop()
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            waiting.extend(get_args(kind))
        elif kind not in seen:
            seen.add(kind)
            for name, field in kind.model_fields.items():
                assert field.description, f"{kind.__name__}.{name}"
                waiting.append(field.annotation)
    assert len(seen) > 10

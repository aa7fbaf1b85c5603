"""The notebooks run from their first cell to their last, show what they promise, and are kept without output."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
SHOWN = {"compare_strategies": ["<table"], "first_blend": ["<img", "<table", "<img", "<iframe"]}
"""What the cells of a notebook show, in their order."""


def _run(source: str, name: str, names: dict[str, object]) -> str:
    """Run a cell; return what a notebook shows of its last line, where that is an expression with a view of its own."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    value = eval(compile(ast.Expression(last.value), name, "eval"), names) if isinstance(last, ast.Expr) else None
    show = getattr(value, "_repr_html_", None)
    return "" if show is None else str(show())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            shown.append(_run("".join(cell["source"]), f"{path.name}, {cell['id']}", names))
    views = [html for html in shown if html]
    assert len(views) == len(SHOWN[path.stem])
    assert all(tag in html for tag, html in zip(SHOWN[path.stem], views, strict=True))


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWN)

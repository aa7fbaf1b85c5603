"""A table of words and figures, and how it is drawn: on a terminal, in Markdown, or by a report's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from nemo_mm_rank.console import printable

_LONG = 40
"""Characters, from which on the text of a column is wrapped."""

_STYLES = {"strong": "bold", "warn": "yellow"}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        cells: as they are shown, one per column.
        style: ``strong``, ``quiet`` or ``warn``.
    """

    cells: Sequence[str]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its caption.
        columns: their heads.
        rows: the lines.
        text: which columns are text; the others are numbers, and stand on the right.
        note: a sentence below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: Sequence[int] = (0,)
    note: str = ""
    kind: ClassVar[str] = "table"

    @property
    def widths(self) -> list[int]:
        """The characters of the longest cell of each column."""
        lines = [self.columns, *(row.cells for row in self.rows)]
        return [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]

    @property
    def wide(self) -> bool:
        """Whether it needs a line of its own."""
        return sum(min(width, _LONG) + 2 for width in self.widths) > 60

    def __rich__(self) -> Grid:
        """Return it for a terminal."""
        grid = Grid(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for place, (column, width) in enumerate(zip(self.columns, self.widths, strict=True)):
            long = width > _LONG
            if place not in self.text:
                grid.add_column(column.replace("+", "+\n"), justify="right")
            else:
                grid.add_column(column, no_wrap=not long, ratio=1 if long else None)
            grid.expand |= long and place in self.text
        for row in self.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row.cells), style=_STYLES.get(row.style))
        grid.caption = self.note or None
        return grid


def markdown(tables: Sequence[Table], title: str = "", paragraphs: Sequence[str] = ()) -> str:
    """Return a title, paragraphs, and tables with their titles and notes, in Markdown."""
    blocks = [f"# {title}", *paragraphs] if title else list(paragraphs)
    for table in tables:
        cells = [table.columns, ["---"] * len(table.columns), *(row.cells for row in table.rows)]
        grid = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
        blocks += [f"## {table.title}", "\n".join(grid), *([table.note] if table.note else [])]
    return "\n\n".join(blocks) + "\n"


def number(value: float, digits: int = 3) -> str:
    """Return a number as a table shows it: a true minus, and no minus for what rounds to zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "\N{MINUS SIGN}")


def share(part: float, whole: float) -> str:
    """Return a share in per cent, a dash where there is no whole; what is not nothing is never shown as 0 %."""
    if not whole:
        return "\N{EN DASH}"
    if not part:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def counted(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"

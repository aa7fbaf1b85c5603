"""Our own tables in Markdown, read back: a page shows them as they are, to the last digit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_mm_rank.report.content import Row, Table

_CELL = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"[-+\N{MINUS SIGN}<]?\s*[\[\d.]")


@dataclass(frozen=True)
class Document:
    """What a file holds.

    Attributes:
        lines: paragraphs before the first heading of second order.
        tables: by their headings.
    """

    lines: list[str]
    tables: dict[str, Table]


def read(text: str) -> Document:
    """Return the tables of a text, each with the heading above it as title and the paragraph below it as note."""
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    lines = [" ".join(block.split()) for block in head.split("\n\n") if block.strip() and not block.startswith("#")]
    tables = {}
    for section in sections:
        title, _, body = section.partition("\n")
        grid = [_cells(line) for line in body.splitlines() if line.startswith("|")]
        note = " ".join(line.strip() for line in body.splitlines() if line.strip() and not line.startswith("|"))
        columns, rows = grid[0], grid[2:]
        text_columns = [place for place in range(len(columns)) if not all(_is_number(row[place]) for row in rows)]
        tables[title.strip()] = Table(title.strip(), columns, [Row(row) for row in rows], text_columns, note)
    return Document(lines, tables)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(line.strip())[1:-1]]


def _is_number(cell: str) -> bool:
    return cell in ("-", "") or _NUMBER.match(cell) is not None

"""What a report is made of, before it is drawn: sections of tables, charts, findings and figures, all plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from nemo_mm_rank.tables import Table


@dataclass(frozen=True)
class Tile:
    """One figure that is to be seen first.

    Attributes:
        label: what it counts.
        value: as it is shown.
        note: a few words below it.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A row of figures."""

    tiles: Sequence[Tile]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Finding:
    """One sentence about the run, and whether it is a reason for trust.

    Attributes:
        mark: ``good``, ``note`` (worth knowing), or ``warn``.
        text: the sentence.
    """

    mark: Literal["good", "note", "warn"]
    text: str


@dataclass(frozen=True)
class Findings:
    """Sentences, each with a mark."""

    findings: Sequence[Finding]
    kind: ClassVar[str] = "findings"


@dataclass(frozen=True)
class Mark:
    """A path of a chart.

    Attributes:
        shape: ``area``, ``band``, ``line``, ``dot``, ``bar`` or ``rule``: how the style draws it.
        colour: number of its colour, -1 for that of text.
        d: the path.
        title: what a pointer that rests on it is told.
    """

    shape: str
    colour: int
    d: str
    title: str = ""


@dataclass(frozen=True)
class Label:
    """A word in a chart.

    Attributes:
        x: place.
        y: place of its baseline.
        text: the word.
        anchor: ``start``, ``middle`` or ``end``.
        style: ``tick``, ``axis``, ``name``, ``value``, ``inside`` a bar, ``end`` of a line, or ``more``, which small
            screens leave out.
        colour: number of its colour, -1 for that of text.
        turned: whether it runs upwards.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    style: str = "tick"
    colour: int = -1
    turned: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        title: its caption.
        width: in its own units; where there is room, 1.2 of them are a pixel.
        height: in pixels.
        marks: from the back to the front.
        labels: words.
        summary: what it shows, for those who do not see it.
        note: a sentence below it.
        legend: colour and what it stands for.
    """

    title: str
    width: int
    height: int
    marks: Sequence[Mark]
    labels: Sequence[Label]
    summary: str
    note: str = ""
    legend: Sequence[tuple[int, str]] = ()

    @property
    def wide(self) -> bool:
        """Whether it needs a line of its own."""
        return self.width > 800

    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Widget:
    """A place that the page's scripts fill: ``maps``, ``trimmed`` or ``pairs``."""

    name: str
    note: str = ""
    kind: ClassVar[str] = "widget"


@dataclass(frozen=True)
class Folded:
    """Long text that is shown where it is asked for."""

    title: str
    text: str
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Example:
    """A pair that is shown as it is, without scripts.

    Attributes:
        name: its id.
        text: what is said of it, or what it says.
        shown: of its media, where there is a copy: ``image``, ``audio`` or ``video``.
        src: the copy, as a ``data:`` URI.
    """

    name: str
    text: str
    shown: str = ""
    src: str = ""


@dataclass(frozen=True)
class Examples:
    """Some pairs, side by side."""

    title: str
    examples: Sequence[Example]
    note: str = ""
    kind: ClassVar[str] = "examples"


Part: TypeAlias = Tiles | Findings | Table | Chart | Widget | Folded | Examples


@dataclass(frozen=True)
class Section:
    """A part of the page with a title of its own.

    Attributes:
        name: its anchor.
        title: a question or a name.
        lead: a sentence or two below it.
        parts: what is in it, side by side where there is room.
    """

    name: str
    title: str
    lead: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: what the run was asked for.
        subtitle: what came out, in a line.
        sections: from what is looked at first to where it all comes from.
        data: what the scripts read, JSON-able.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    data: Mapping[str, Any] = field(default_factory=dict)

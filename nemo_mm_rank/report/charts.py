"""Drawings as paths: scales, ticks, histograms, bars and curves. How they look is the style's affair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.measures.statistics import Interval
from nemo_mm_rank.report.content import Chart, Label, Mark
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.tables import number, share

INK = -1
"""The colour of text."""

_LETTER = 7.8  # units that a letter of a name takes, at most


@dataclass(frozen=True)
class Scale:
    """From values to pixels, in a straight line.

    Attributes:
        low: the value at ``start``.
        high: the value at ``end``.
        start: pixels.
        end: pixels; less than ``start`` where the axis runs upwards.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values within the scale, at most ``most + 1``, zero among them where it is within."""
        span = (self.high - self.low) or 1.0
        rough = span / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(place * step, 10) for place in range(first, last + 1)]


def _room(words: Iterable[str]) -> float:
    """Return how much room the longest of some words takes beside a drawing."""
    return 24 + _LETTER * max(map(len, words))


def plain(value: float) -> str:
    """Return a tick's value without digits that say nothing."""
    return f"{value:,g}".replace("-", "\N{MINUS SIGN}")


def distributions(
    title: str, of: Sequence[tuple[str, int, Floats, Floats]], cut: float | None, note: str, x_label: str
) -> Chart:
    """Return a row for each group: how its scores lie, those of the chosen ones filled, and where the cut is.

    Every row is as high as its own fullest bin. Scores beyond the 0.1st and 99.9th percentile are in the outer bins.

    Args:
        title: caption.
        of: name, colour, scores of all, scores of the chosen ones.
        cut: the score of the last pair chosen, where that is one for all.
        note: a sentence below it.
        x_label: what a score is.
    """
    width, row, right, top = 720, 54, 118, 10
    left = _room(name for name, *_ in of)
    everything = np.concatenate([scores for _, _, scores, _ in of])
    low, high = np.percentile(everything, [0.1, 99.9])
    pad = 0.02 * (high - low) or 0.5
    bottom = top + row * len(of)
    x = Scale(low - pad, high + pad, left, width - right)
    edges = np.linspace(low - pad, high + pad, 61)
    marks, labels = [], []
    for tick in x.ticks(8):
        marks.append(Mark("grid", INK, f"M{x(tick)} {top}V{bottom}"))
        labels.append(Label(x(tick), bottom + 18, plain(tick), "middle"))
    summary = []
    for place, (name, color, scores, chosen) in enumerate(of):
        base = top + row * (place + 1) - 6
        counts, picked = (np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] for v in (scores, chosen))
        y = Scale(0, max(1, int(counts.max())), base, base - row + 14)
        label = f"{name}: {len(chosen):,} of {len(scores):,} chosen"
        marks.append(Mark("pale", color, _steps(counts, edges, x, y), label))
        marks.append(Mark("area", color, _steps(picked, edges, x, y), label))
        marks.append(Mark("axis", INK, f"M{left} {base}H{width - right}"))
        labels.append(Label(left - 10, base - 8, name, "end", "name", color))
        labels.append(Label(width - right + 10, base - 14, f"{len(chosen):,} of {len(scores):,}", "start", "value"))
        labels.append(Label(width - right + 10, base + 1, f"{share(len(chosen), len(scores))} chosen", style="more"))
        summary.append(label)
    if cut is not None:
        marks.append(Mark("rule", INK, f"M{x(cut)} {top - 6}V{bottom}", f"cut at {number(cut, 2)}"))
        labels.append(Label(x(cut) + 4, top + 3, f"cut {number(cut, 2)}", "start", "value"))
    labels.append(Label((left + width - right) / 2, bottom + 38, x_label, "middle", "axis"))
    return Chart(title, width, bottom + 46, marks, labels, f"{title}. {'; '.join(summary)}.", note)


def _steps(counts: npt.NDArray[Any], edges: Floats, x: Scale, y: Scale) -> str:
    """Return the outline of a histogram, without the empty bins at its ends."""
    full = np.flatnonzero(counts)
    if not len(full):
        return "M0 0"
    first, last = int(full[0]), int(full[-1])
    path = f"M{x(edges[first])} {y(0)}"
    for place in range(first, last + 1):
        path += f"V{y(counts[place])}H{x(edges[place + 1])}"
    return f"{path}V{y(0)}Z"


def mixes(title: str, groups: Sequence[str], colours: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Chart:
    """Return a bar for each row, divided among the groups.

    Args:
        title: caption.
        groups: what a bar is divided into.
        colours: one for each.
        shares: row -> shares of the groups, which sum to 1.
    """
    width, row, right, top = 720, 38, 0, 4
    left = _room(shares)
    x = Scale(0, 1, left, width - right)
    marks, labels, summary = [], [], []
    for place, (name, parts) in enumerate(shares.items()):
        y = top + place * row
        labels.append(Label(left - 10, y + 18, name, "end", "name"))
        summary.append(f"{name}: {', '.join(f'{g} {share(s, 1)}' for g, s in zip(groups, parts, strict=True))}")
        start = 0.0
        for group, color, part in zip(groups, colours, parts, strict=True):
            a, b = x(start), x(start + part)
            start += part
            if b - a <= 0:
                continue
            bar = f"M{a} {y}H{max(a + 0.5, b - 1.5)}V{y + 27}H{a}Z"
            marks.append(Mark("bar", color, bar, f"{group} {share(part, 1)}"))
            if b - a > 38:
                labels.append(Label(round((a + b) / 2, 2), y + 18, share(part, 1), "middle", "inside"))
    legend = list(zip(colours, groups, strict=True))
    return Chart(title, width, top + row * len(shares), marks, labels, f"{title}. {'. '.join(summary)}.", legend=legend)


@dataclass(frozen=True)
class Curve:
    """A line, with a band where all its intervals are known.

    Attributes:
        name: its label.
        colour: number.
        x: ``n`` values, ascending.
        values: ``n`` values, each with its interval.
        strong: whether it is drawn in the foreground.
    """

    name: str
    colour: int
    x: Sequence[float]
    values: Sequence[Interval]
    strong: bool = False

    @property
    def y(self) -> list[float]:
        """The values without their intervals."""
        return [interval.value for interval in self.values]

    @property
    def band(self) -> list[tuple[float, float]]:
        """The outline of the band: upper ends, then lower ends backwards; empty for none."""
        ends = [(x, end) for x, mean in zip(self.x, self.values, strict=True) for end in (mean.high, mean.low)]
        return [*ends[::2], *ends[:0:-2]] if all(math.isfinite(end) for _, end in ends) else []


def curves(title: str, lines: Sequence[Curve], x_label: str, y_label: str, note: str) -> Chart:
    """Return lines with bands over one pair of axes, each named at its right end; a band ends at the frame."""
    width, height, left, top, below = 860, 400, 64, 14, 52
    right = _room(line.name for line in lines)
    xs = [value for line in lines for value in line.x]
    low, high = _frame(lines)
    x = Scale(min(xs), max(xs), left, width - right)
    y = Scale(low, high, height - below, top)
    marks, labels = [], []
    for tick in y.ticks(6):
        marks.append(Mark("grid", INK, f"M{left} {y(tick)}H{width - right}"))
        labels.append(Label(left - 8, y(tick) + 4, plain(tick), "end"))
    for tick in sorted(set(xs)) if len(set(xs)) <= 8 else x.ticks(8):
        marks.append(Mark("grid", INK, f"M{x(tick)} {top}V{height - below}"))
        labels.append(Label(x(tick), height - below + 20, plain(tick), "middle"))
    for line in sorted(lines, key=lambda line: line.strong):
        if line.band:
            inside = "L".join(f"{x(a)} {y(min(max(b, low), high))}" for a, b in line.band)
            marks.append(Mark("band", line.colour, f"M{inside}Z", line.name))
    for line in sorted(lines, key=lambda line: line.strong):
        path = "L".join(f"{x(a)} {y(b)}" for a, b in zip(line.x, line.y, strict=True))
        marks.append(Mark("line strong" if line.strong else "line", line.colour, f"M{path}", line.name))
        for a, b in zip(line.x, line.y, strict=True):
            marks.append(Mark("point", line.colour, f"M{x(a)} {y(b)}h0", f"{line.name}: {b:.4g} at {plain(a)}"))
    ends = sorted((y(line.y[-1]), place) for place, line in enumerate(lines))
    for at, (_, place) in zip(_apart([end for end, _ in ends], 15, top + 8, height - below), ends, strict=True):
        line = lines[place]
        style = "name end" if line.strong else "value end"
        labels.append(Label(width - right + 10, at + 4, line.name, "start", style, line.colour))
    labels.append(Label((left + width - right) / 2, height - 8, x_label, "middle", "axis"))
    labels.append(Label(16, (top + height - below) / 2, y_label, "middle", "axis", turned=True))
    summary = "; ".join(f"{line.name} ends at {line.y[-1]:.4g}" for line in lines)
    legend = [(line.colour, line.name) for line in lines]
    return Chart(title, width, height, marks, labels, f"{title}. {summary}.", note, legend)


def _frame(lines: Sequence[Curve]) -> tuple[float, float]:
    """Return the values that the frame ends at: a band that is far wider than the lines lie apart goes beyond."""
    middle = [value for line in lines for value in line.y]
    ends = middle + [end for line in lines for _, end in line.band]
    spread = (max(middle) - min(middle)) or (max(ends) - min(ends)) or 1.0
    pad = 0.05 * spread
    return max(min(ends) - pad, min(middle) - spread / 2), min(max(ends) + pad, max(middle) + spread / 2)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending places as little as it takes for each to be ``gap`` below the one before, within bounds."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low if not moved else moved[-1] + gap))
    for back in range(len(moved) - 1, -1, -1):
        most = high if back == len(moved) - 1 else moved[back + 1] - gap
        moved[back] = round(min(moved[back], most), 2)
    return moved


def intervals(
    title: str, rows: Sequence[tuple[str, int, Interval]], x_label: str, note: str = "", differences: bool = False
) -> Chart:
    """Return a row for each value: a dot, its interval as a line through it, and both as text.

    Args:
        title: caption.
        rows: name, colour, and the value with its interval.
        x_label: what is measured.
        note: a sentence below it.
        differences: whether values have a sign, and 0 is in sight with a line of its own.
    """
    width, row, top = 860, 30, 8
    texts = [interval_text(interval, signed=differences) for _, _, interval in rows]
    left, right = _room(name for name, *_ in rows), _room(texts)
    ends = [end for _, _, one in rows for end in (one.value, one.low, one.high) if math.isfinite(end)]
    ends += [0.0] * differences
    pad = 0.05 * (max(ends) - min(ends)) or 0.05
    bottom = top + row * len(rows)
    x = Scale(min(ends) - pad, max(ends) + pad, left, width - right)
    marks, labels = [], []
    for tick in x.ticks(6):
        shape = "rule" if tick == 0 and differences else "grid"
        marks.append(Mark(shape, INK, f"M{x(tick)} {top}V{bottom}"))
        labels.append(Label(x(tick), bottom + 18, plain(tick), "middle"))
    for place, ((name, color, one), text) in enumerate(zip(rows, texts, strict=True)):
        y = top + row * place + row / 2
        labels.append(Label(left - 10, y + 4, name, "end", "name", color))
        labels.append(Label(width - right + 10, y + 4, text, "start", "value"))
        if math.isfinite(one.low) and math.isfinite(one.high):
            marks.append(Mark("whisker", color, f"M{x(one.low)} {y}H{x(one.high)}", f"{name}: {text}"))
        marks.append(Mark("point", color, f"M{x(one.value)} {y}h0", f"{name}: {text}"))
    labels.append(Label((left + width - right) / 2, bottom + 38, x_label, "middle", "axis"))
    summary = "; ".join(f"{name} {text}" for (name, *_), text in zip(rows, texts, strict=True))
    return Chart(title, width, bottom + 46, marks, labels, f"{title}. {summary}.", note)


def interval_text(one: Interval, digits: int = 3, signed: bool = False) -> str:
    """Return a value and half the width of its interval, as far as there is one."""
    plus = "+" if signed and one.value > 0 else ""
    half = (one.high - one.low) / 2
    return f"{plus}{number(one.value, digits)}" + (
        "" if math.isnan(half) else f" \N{PLUS-MINUS SIGN} {half:.{digits}f}"
    )


COLOURS = 10
"""Colours of the style, ``c0`` to ``c9``; the first five are told apart without red or green."""

_OF_STRATEGY = {
    "ranked": 0,
    "ranked-forward": 3,
    "ranked-backward": 8,
    "ranked-bidirectional": 5,
    "ranked-quality": 9,
    "random": 7,
    "stratified": 2,
    "traditional": 1,
    "best-expert": 6,
    "ecodatum": 4,
}
_OF_MODALITY = {str(modality): place for place, modality in enumerate(Modality)}


def colour(modality: str, place: int) -> int:
    """Return the number of a modality's colour; one of no name of ours takes a spare one, by its ``place``."""
    spare = len(_OF_MODALITY) + place % (COLOURS - len(_OF_MODALITY))
    return _OF_MODALITY.get(modality, spare)


def strategy_colour(strategy: str) -> int:
    """Return the number of a strategy's colour."""
    return _OF_STRATEGY.get(strategy, COLOURS - 1)

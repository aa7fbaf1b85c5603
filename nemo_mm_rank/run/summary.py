"""What a run did, for people: rows by step and modality, the geometry of its spaces, and the top of the blend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_mm_rank.console import printable
from nemo_mm_rank.errors import DamagedError
from nemo_mm_rank.io.files import read_note, read_table
from nemo_mm_rank.io.part_files import part_name
from nemo_mm_rank.matching.matcher import SPOILT
from nemo_mm_rank.measures.gaps import gap_text
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.reasons import Reason, reasons, shortened
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID

PAIR_ID_WIDTH = 28
"""Characters of a pair's id that the table of the blend shows."""


LEAST = 20
"""Pairs of a modality that a step has to be given before it counts as one that fails for nearly all."""


@dataclass
class StepCounts:
    """Pairs that went through one step, by modality.

    Attributes:
        step: its name.
        rows: modality -> live pairs in.
        trimmed: modality -> pairs of which SNS kept a part.
        quarantined: modality -> error class -> pairs.
    """

    step: str
    rows: Counter[str] = field(default_factory=Counter)
    trimmed: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add one shard's counts, as its file's note has them."""
        for modality, entry in counts.items():
            self.rows[modality] += entry["in"]
            self.trimmed[modality] += entry["trimmed"]
            self.quarantined.setdefault(modality, Counter()).update(entry["quarantined"])

    @property
    def lost(self) -> int:
        """Pairs quarantined by this step."""
        return sum(sum(reasons.values()) for reasons in self.quarantined.values())

    def failed(self, modality: str) -> int:
        """Return how many pairs of a modality failed."""
        return sum(self.quarantined.get(modality, Counter()).values())

    def hopeless(self, most: float) -> list[str]:
        """Return the modalities for nearly all pairs of which the step failed: a share of ``most``; below 1."""
        found = [modality for modality in self.quarantined if self.rows[modality] >= LEAST]
        return [modality for modality in found if most < 1 and self.failed(modality) >= most * self.rows[modality]]

    def said(self, modality: str, reason: Reason) -> str:
        """Return a part of a line on how many pairs of a modality failed, and the most frequent reason."""
        failed, rows = self.failed(modality), self.rows[modality]
        return f"{self.step} failed for {failed:,} of {rows:,} pairs of {modality}, most often: {reason}"

    @property
    def live(self) -> int:
        """How many pairs are left after it."""
        return sum(self.rows.values()) - sum(map(self.failed, self.quarantined))

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return {
            "step": self.step,
            "in": dict(sorted(self.rows.items())),
            "trimmed": dict(sorted((m, n) for m, n in self.trimmed.items() if n)),
            "quarantined": {m: dict(sorted(r.items())) for m, r in sorted(self.quarantined.items()) if r},
        }


def count_steps(shards: ShardStore) -> list[StepCounts]:
    """Read what every stage after the first left in its files' notes."""
    steps = []
    for stage in shards.stages[1:]:
        counts = StepCounts(stage.name.rpartition("-")[0])
        for part in range(shards.count):
            if (note := read_note(stage / part_name(part))) is None:
                raise DamagedError(stage / part_name(part))
            counts.add(note.get("counts", {}))
        steps.append(counts)
    return steps


def text_table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """Return an empty table for a terminal, the first ``left`` columns text and the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", no_wrap=position < left)
    return table


def rows_table(manifest: Mapping[str, Any]) -> Table:
    """Return one line per step and one column per modality: pairs in, and what became of them."""
    counts = manifest["counts"]
    modalities = sorted(counts["pool"]["in"])
    table = text_table("Pairs", ["step", *(name.replace("+", "+\n") for name in modalities), "all"])

    def line(name: str, by_modality: Mapping[str, int], style: str = "") -> None:
        cells = [f"{by_modality.get(modality, 0):,}" for modality in modalities]
        table.add_row(name, *cells, f"{sum(by_modality.values()):,}", style=style)

    line("pool", counts["pool"]["in"])
    for step in counts["steps"]:
        line(f"{step['step']}: in", step["in"])
        if step["trimmed"]:
            line("  trimmed", step["trimmed"])
        if step["quarantined"]:
            line("  quarantined", {m: sum(r.values()) for m, r in step["quarantined"].items()}, "yellow")
    line("ranked", counts["ranked"])
    line("blend", counts["blend"], "bold")
    if counts["pool"]["bad_rows"]:
        table.caption = f"and {counts['pool']['bad_rows']:,} rows of the manifests that are no pairs"
    return table


def reasons_table(quarantine: pa.Table) -> Table | None:
    """Return why pairs were quarantined, with the most frequent message of each class; None where none was.

    Args:
        quarantine: with ``step, error, message``.
    """
    if not quarantine.num_rows:
        return None
    by_class: dict[tuple[str, str], list[Reason]] = {}
    for reason in reasons(quarantine):
        by_class.setdefault((reason.step, reason.error), []).append(reason)
    table = text_table("Quarantined", ["step", "reason", "pairs"], left=2)
    table.add_column("most often", ratio=1)
    table.expand = True
    for (step, name), found in sorted(by_class.items()):
        table.add_row(step, name, f"{sum(one.pairs for one in found):,}", shortened(found[0].message))
    return table


def spaces_table(metrics: Mapping[str, Any]) -> Table:
    """Return gap, matched gap and recall of every space, measured on held-out pairs (the mean over the folds)."""
    spaces, folds = metrics["mean"], len(metrics["folds"])
    title = f"Spaces (held-out pairs only, {folds} folds)"
    table = text_table(title, ["space", "pairs", "gap", "matched gap", "Recall@10"])
    for name in sorted(spaces, key=lambda name: name == "fused"):
        space = spaces[name]
        gaps = (gap_text(space, measure) for measure in ("gap", "matched_gap"))
        cells = (f"{space['n']:,}", *gaps, f"{space['recall_at_10']:.3f}")
        table.add_row(name, *cells, style="bold" if name == "fused" else "")
    return table


def matching_table(matching: Mapping[str, Any]) -> Table:
    """Return how well own annotations are told from others, and the share of pairs that is taken for wrong."""
    table = text_table(
        "Own annotations told from others", ["modality", "annotations with", "told apart", "wrong"], left=2
    )
    for modality, ways in matching.items():
        for name, about in ways.items():
            table.add_row(modality, SPOILT[name], f"{about['told']:.2f}", f"{about['wrong']:.1%}")
    table.caption = "told apart: 0.5 is a guess, and below 0.7 nothing is held against a pair"
    return table


def mix_table(mix: Mapping[str, Any]) -> Table:
    """Return what a mix asked for by type, and what there was; its source and what was reported of it below."""
    table = text_table(f"Mix: {mix['name'] or 'your own'}", ["data -> annotation", "share", "quota", "chosen"])
    for entry in mix["types"]:
        share = "" if entry["share"] is None else f"{entry['share']:.1%}"
        style = "yellow" if entry["chosen"] < entry["quota"] else ""
        table.add_row(entry["type"], share, f"{entry['quota']:,}", f"{entry['chosen']:,}", style=style)
    if mix["filling"]:
        table.add_row("filling what is short", "", "", f"{mix['filling']:,}")
    return table


def mix_lines(mix: Mapping[str, Any]) -> list[str]:
    """Return where a mix comes from, and the advice that goes with it."""
    note = f"; {mix['note']}" if mix["note"] else ""
    return [f"mix         {mix['source']}{note}", *(f"advice      {line}" for line in mix["advice"])]


def blend_table(blend: pa.Table, most: int = 10) -> Table:
    """Return the first pairs of the blend."""
    shown = min(most, blend.num_rows)
    table = text_table(f"Blend: the first {shown} of {blend.num_rows:,}", ["rank", "score", "modality", "pair"], 4)
    table.add_column("annotation", ratio=1, no_wrap=True, overflow="ellipsis")
    table.expand = True
    for row in blend.slice(0, most).to_pylist():
        name = printable(row[PAIR_ID])
        name = name if len(name) <= PAIR_ID_WIDTH else name[: PAIR_ID_WIDTH - 1] + "…"
        annotation = printable(" ".join(row[ANNOTATION].split()))
        cells = (str(row["rank"]), f"{row['score']:.3f}", row[MODALITY], name, annotation)
        table.add_row(*map(Text, cells))
    return table


def print_summary(manifest: Mapping[str, Any], blend: pa.Table, folder: Path, console: Console) -> None:
    """Print everything a user wants to see at the end of a run."""
    console.print()
    console.print(rows_table(manifest))
    if (why := reasons_table(read_table(RunFolder(folder).quarantine))) is not None:
        console.print(why)
    console.print(spaces_table(manifest["projection"]["metrics"]))
    if manifest["matching"]:
        console.print(matching_table(manifest["matching"]))
    said = [f"note        {line}" for line in manifest["notes"]]
    if manifest["mix"] is not None:
        console.print(mix_table(manifest["mix"]))
        said = [*mix_lines(manifest["mix"]), *said]
    for line in said:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    console.print(blend_table(blend))
    for name, path in (("blend", folder / "blend.parquet"), ("run folder", folder)):
        console.print(f"{name:<11} {printable(path)}", highlight=False, markup=False, soft_wrap=True)

"""What a run did, in tables: rows by step and modality, the geometry of its spaces, and the top of the blend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table as Grid

from nemo_mm_rank.console import printable
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.matching.matcher import SPOILT
from nemo_mm_rank.measures.gaps import gap_text
from nemo_mm_rank.ranking.conditions import percent
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.reasons import Reason, reasons, shortened
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID, data_column
from nemo_mm_rank.tables import Row, Table, counted, number

PAIR_ID_WIDTH = 28
"""Characters of a pair's id that the table of the blend shows."""


def rows_table(counts: Mapping[str, Any]) -> Table:
    """Return one line per step and one column per modality: pairs in, and what became of them."""
    modalities = sorted(counts["pool"]["in"])
    rows: list[Row] = []

    def line(name: str, by_modality: Mapping[str, int], style: str = "") -> None:
        cells = [f"{by_modality.get(modality, 0):,}" for modality in modalities]
        rows.append(Row((name, *cells, f"{sum(by_modality.values()):,}"), style))

    line("pairs in the pool", counts["pool"]["in"])
    for names, step in _alike(counts["steps"]):
        line(f"{names}: in", step["in"], "quiet")
        if step["trimmed"]:
            line(f"{step['step']}: trimmed", step["trimmed"])
        if step["quarantined"]:
            line(f"{step['step']}: quarantined", {m: sum(r.values()) for m, r in step["quarantined"].items()}, "warn")
    line("ranked", counts["ranked"])
    line("blend", counts["blend"], "strong")
    bad = counts["pool"]["bad_rows"]
    note = f"And {counted(bad, 'row')} of the manifests that never became a pair." if bad else ""
    return Table("Pairs by step and modality", ["", *modalities, "all"], rows, note=note)


def _alike(steps: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield steps with their names, those in one that follow each other and change nothing."""
    names: list[str] = []
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        names.append(step["step"])
        changes = step["trimmed"] or step["quarantined"]
        if changes or following is None or following["trimmed"] or following["quarantined"]:
            yield ", ".join(names), step
            names = []


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
    counts = {place: sum(reason.pairs for reason in group) for place, group in by_class.items()}
    rows = [
        Row((*place, f"{counts[place]:,}", shortened(by_class[place][0].message)))
        for place in sorted(by_class, key=lambda place: (-counts[place], place))
    ]
    return Table("Why rows were quarantined", ["step", "reason", "rows", "most often"], rows, text=(0, 1, 3))


def spaces_table(metrics: Mapping[str, Any], depths: Sequence[int]) -> Table:
    """Return gap, matched gap and recall at some depths of every space, on held-out pairs (the mean over the folds)."""
    rows = []
    for name, space in sorted(metrics["mean"].items(), key=lambda item: item[0] == "fused"):
        gaps = [gap_text(space, measure) for measure in ("gap", "matched_gap")]
        recalls = [number(space[f"recall_at_{depth}"]) for depth in depths]
        rows.append(Row((space_name(name), f"{space['n']:,}", *gaps, *recalls), "strong" if name == "fused" else ""))
    columns = ["space", "pairs", "gap", "matched gap", *(f"Recall@{depth}" for depth in depths)]
    return Table("Spaces", columns, rows, note=f"Held-out pairs only, mean over {len(metrics['folds'])} folds.")


def space_name(column: str) -> str:
    """Return what a person reads for a space, given its column of embeddings."""
    return column.removeprefix(data_column("")).replace("__", ": ")


def matching_table(matching: Mapping[str, Any]) -> Table:
    """Return how well own annotations are told from others, and the share of pairs that is taken for wrong."""
    rows = [
        Row((modality, SPOILT[name], f"{about['pairs']:,.0f}", number(about["told"], 2), percent(about["wrong"])))
        for modality, ways in matching.items()
        for name, about in ways.items()
    ]
    columns = ["modality", "annotations with", "pairs", "ROC AUC", "taken for wrong"]
    note = "ROC AUC: 0.5 is a guess, and below 0.7 the result does not count against a pair."
    return Table(
        "How well true annotations are distinguished from exchanged ones", columns, rows, text=(0, 1), note=note
    )


def mix_table(mix: Mapping[str, Any]) -> Table:
    """Return what a mix asked for by type, and what there was."""
    rows = [
        Row(
            (
                entry["type"],
                "" if entry["share"] is None else f"{100 * entry['share']:.1f} %",
                f"{entry['quota']:,}",
                f"{entry['chosen']:,}",
            ),
            "warn" if entry["chosen"] < entry["quota"] else "",
        )
        for entry in mix["types"]
    ]
    if mix["filling"]:
        rows.append(Row(("to fill shortages", "", "", f"{mix['filling']:,}")))
    columns = ["data \N{RIGHTWARDS ARROW} annotation", "share", "quota", "chosen"]
    return Table(f"Mix: {mix['name'] or 'your own'}", columns, rows)


def mix_lines(mix: Mapping[str, Any]) -> list[str]:
    """Return where a mix comes from, and the advice that goes with it."""
    note = f"; {mix['note']}" if mix["note"] else ""
    return [f"mix         {mix['source']}{note}", *(f"advice      {line}" for line in mix["advice"])]


def blend_table(blend: pa.Table, most: int = 10) -> Grid:
    """Return the first pairs of the blend, each in one line of a terminal."""
    shown = min(most, blend.num_rows)
    rows = []
    for row in blend.slice(0, most).to_pylist():
        name = printable(row[PAIR_ID])
        name = name if len(name) <= PAIR_ID_WIDTH else name[: PAIR_ID_WIDTH - 1] + "…"
        annotation = " ".join(row[ANNOTATION].split())
        rows.append(Row((str(row["rank"]), f"{row['score']:.3f}", row[MODALITY], name, annotation)))
    columns = ["rank", "score", "modality", "pair", "annotation"]
    grid = Table(f"Blend: the first {shown} of {blend.num_rows:,}", columns, rows, range(5)).__rich__()
    last = grid.columns[-1]
    last.ratio, last.no_wrap, last.overflow, grid.expand = 1, True, "ellipsis", True
    return grid


def print_summary(manifest: Mapping[str, Any], blend: pa.Table, folder: Path, console: Console) -> None:
    """Print everything a user wants to see at the end of a run."""
    console.print()
    console.print(rows_table(manifest["counts"]))
    if (why := reasons_table(read_table(RunFolder(folder).quarantine))) is not None:
        console.print(why)
    console.print(spaces_table(manifest["projection"]["metrics"], (10,)))
    if manifest["matching"]:
        console.print(matching_table(manifest["matching"]))
    lines = [f"note        {line}" for line in manifest["notes"]]
    if manifest["mix"] is not None:
        console.print(mix_table(manifest["mix"]))
        lines = [*mix_lines(manifest["mix"]), *lines]
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    console.print(blend_table(blend))
    for name, path in (("blend", folder / "blend.parquet"), ("run folder", folder)):
        console.print(f"{name:<11} {printable(path)}", highlight=False, markup=False, soft_wrap=True)

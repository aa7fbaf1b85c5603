"""What SNS would trim, tried on a few pairs of a pool before a long run, side by side on the terminal."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Config
from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import SerialEngine
from nemo_mm_rank.modality import is_media, of
from nemo_mm_rank.report.details import excerpt, parts_of, pieces
from nemo_mm_rank.report.run import leading
from nemo_mm_rank.report.trimmed import cut_tables, lines, verdicts
from nemo_mm_rank.run.curation import check
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.job import Job
from nemo_mm_rank.run.progress import Reporter
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.sampling import hashes
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    CANONICAL,
    DATA_BYTES,
    DATA_PARTS,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    SNS_REASON,
)
from nemo_mm_rank.shards import attach_rows
from nemo_mm_rank.sns.decide import AFTER, BEFORE
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import columns_added
from nemo_mm_rank.tables import Row, Table

_TEXT = 600  # characters of a side


def preview(config: Config, count: int, console: Console) -> None:
    """Trim some pairs of the pools as a run would, and print what is kept and cut of each, and the gate's verdicts.

    The pools are read once, into a folder that is removed again: models that count words need all of them, and the
    pairs are drawn by the hash of their ids, the modalities in turn. Where ``sns.mode`` is off, both sides are tried.

    Args:
        config: the run's; queries, budget and output do not matter.
        count: how many pairs.
        console: where the result goes.

    Raises:
        UserError: as `run.curation.curate` raises for pools and models.
    """
    if config.sns.mode == "off":
        config = config.model_copy(update={"sns": config.sns.model_copy(update={"mode": "bidirectional"})})
    check(config)
    with tempfile.TemporaryDirectory(prefix="nemo-mm-rank-preview-") as temporary:
        device = config.engine.device
        job = Job(config, RunFolder(Path(temporary)), SerialEngine(device), Reporter(SafeConsole(quiet=True)))
        pool = job.take_in(config.pools).shards
        models = job.fits.statistics(config.models, pool)
        step = SNSStep(job.fits.trimming(config, models, pool), config.sns_expert, models, config.media)
        step.device = device
        names = [name for name in (*CANONICAL, MEDIA_ROOT, DATA_BYTES, DATA_PARTS) if name in pool.columns()]
        places = _drawn(pool, count, config.seed)
        table = attach_rows(pa.table({"place": range(len(places))}), places, pool, names).select(names)
        added = columns_added(step, table)
        cuts = cut_tables(step.settings)
    rows = [{**row, **more} for row, more in zip(table.to_pylist(), added.to_pylist(), strict=True)]
    for row in rows:
        console.print(_pair(row))
    console.print(_verdicts(rows))
    for cut_table in cuts:
        console.print(cut_table)


def _drawn(pool: ShardStore, count: int, seed: int) -> Ints:
    """Return the places of ``count`` pairs, ``(k, 2)`` shard and row."""
    tables = [pool.read(part, [PAIR_ID, MODALITY]) for part in range(pool.count)]
    places = np.concatenate([np.stack([np.full(len(t), part), np.arange(len(t))], 1) for part, t in enumerate(tables)])
    words = pa.concat_tables(tables)
    order = np.argsort(hashes(words[PAIR_ID].to_pylist(), seed), kind="stable")
    modality = np.unique(words[MODALITY].to_pylist(), return_inverse=True)[1]
    drawn: Ints = places[leading([order], modality, 0, count)[:count]]
    return drawn


def _pair(row: Mapping[str, Any]) -> Grid:
    """Return both sides of a pair, what is kept of each beside what is cut."""
    why = row[ERROR] or f"{row[SNS_REASON]}; cosine {row[BEFORE]:.3f} \N{RIGHTWARDS ARROW} {row[AFTER]:.3f}"
    table = Grid(
        title=f"{row[PAIR_ID]}  {row[MODALITY]}\n{why}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.expand = True
    table.add_column("", no_wrap=True)
    table.add_column("kept", ratio=1, overflow="fold")
    table.add_column("cut", ratio=1, overflow="fold", style="red")
    for modality, data, spans in parts_of(row):
        table.add_row(modality, *_side(modality, data, spans))
    table.add_row("annotation", *_text(row[ANNOTATION], row[ANNOTATION_SPANS]))
    return table


def _side(modality: str, data: str, spans: list[list[float]] | None) -> tuple[str, str]:
    """Return what is kept and what is cut of one part of the data."""
    if not is_media(modality):
        return _text(data, spans)
    name = excerpt(data, _TEXT)
    if spans is None:
        return name, ""
    if of(modality).parts == "boxes":
        places = ", ".join(f"{w:.0f} x {h:.0f} pixels at ({x:.0f}, {y:.0f})" for x, y, w, h in spans)
    else:
        places = ", ".join(f"{start:.1f}\N{EN DASH}{end:.1f} s" for start, end in spans)
    return f"{name}: {places}", "the rest"


def _text(text: str, spans: list[list[float]] | None) -> tuple[str, str]:
    parts = pieces(text or "", spans, _TEXT)
    kept, cut = (" \N{HORIZONTAL ELLIPSIS} ".join(_of(parts, keep)) for keep in (True, False))
    return kept, cut


def _of(found: list[list[str | bool]], keep: bool) -> Iterator[str]:
    yield from (str(piece).strip() for piece, kept in found if kept == keep and str(piece).strip())


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    counts = verdicts((row[MODALITY], row[SNS_REASON]) for row in rows if not row[ERROR])
    head, cells = lines({**counts, "failed": Counter(row[MODALITY] for row in rows if row[ERROR])})
    return Table("Verdicts", head, list(map(Row, cells)))

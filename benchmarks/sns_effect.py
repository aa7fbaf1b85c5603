"""What bidirectional trimming does to the real pool, by modality: ``python -m benchmarks.sns_effect``.

The space is that of the text-based expert (MobileNet's and YAMNet's words, embedded by MiniLM). Agreement is the cosine
of data and annotation in it, before and after. The gate only ever lets it rise, so its rise alone proves nothing: the
same is done with every annotation moved to another pair of its modality, where trimming has nothing true to find.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import real_pool
from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.schema import ANNOTATION, CANONICAL, DATA_SPANS, ERROR, MEDIA_ROOT, MODALITY, SNS_REASON
from nemo_mm_rank.sns.decide import AFTER, BEFORE
from nemo_mm_rank.sns.step import SNSStep
from nemo_mm_rank.steps import columns_added

AT_ONCE = 256


def pool(limit: int | None, file: Path = real_pool.POOL) -> pa.Table:
    """Read the pool, or so many pairs of each modality."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row[MODALITY]] = seen.get(row[MODALITY], 0) + 1
        if limit is None or seen[row[MODALITY]] <= limit:
            kept.append({**{name: row.get(name) for name in CANONICAL}, MEDIA_ROOT: str(file.parent)})
    return pa.Table.from_pylist(kept, pa.schema([*CANONICAL.items(), (MEDIA_ROOT, pa.string())]))


def moved(table: pa.Table) -> pa.Table:
    """Give every pair the annotation of the next one of its modality."""
    modality = np.array(table[MODALITY].to_pylist())
    source = np.arange(len(modality))
    for name in np.unique(modality):
        own = np.flatnonzero(modality == name)
        source[own] = np.roll(own, -1)
    annotations = table[ANNOTATION].take(pa.array(source))
    return table.set_column(table.schema.get_field_index(ANNOTATION), ANNOTATION, annotations)


def trim(table: pa.Table) -> dict[str, Any]:
    """Return the columns that the step adds, as lists."""
    config = parse(Config, real_pool.settings("unused", sns="bidirectional"))
    step = SNSStep(config.sns, config.sns_expert, config.models, config.media)
    parts = [columns_added(step, table.slice(start, AT_ONCE)) for start in range(0, len(table), AT_ONCE)]
    columns: dict[str, Any] = pa.concat_tables(parts).to_pydict()
    return columns


def line(name: str, rows: list[int], added: dict[str, Any]) -> str:
    """Return one line of the table."""
    live = [row for row in rows if added[ERROR][row] is None]
    why = [added[SNS_REASON][row] for row in live]
    data = sum(added[DATA_SPANS][row] is not None for row in live)
    annotation = sum(added["sns_annotation_spans"][row] is not None for row in live)
    both = sum(reason.startswith("bidirectional: ") for reason in why)
    refused = sum(reason == "untrimmed: refused by the gate" for reason in why)
    partly = sum(reason.startswith("bidirectional refused") for reason in why)
    before, after = (np.array([added[column][row] for row in live], dtype=np.float64) for column in (BEFORE, AFTER))
    cut = after != before
    shown = f"{before[cut].mean():.3f} -> {after[cut].mean():.3f}" if cut.any() else "-"
    counts = f"{len(rows)} | {len(rows) - len(live)} | {data} | {annotation} | {both} | {partly} | {refused}"
    return f"| {name} | {counts} | {before.mean():.3f} -> {after.mean():.3f} | {shown} |"


def report(title: str, table: pa.Table) -> None:
    """Trim ``table`` and print what came of it."""
    added = trim(table)
    modality = table[MODALITY].to_pylist()
    print(f"\n{title}\n")
    print(
        "| modality | pairs | failed | data trimmed | annotation trimmed | both | one direction refused | "
        "all refused | agreement of all | of the trimmed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in (*dict.fromkeys(modality), "all"):
        rows = [row for row, own in enumerate(modality) if name in (own, "all")]
        print(line(name, rows, added), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, help="of each modality; default: all")
    options = parser.parse_args()
    if reason := real_pool.missing():
        sys.exit(f"skipped: {reason}")
    table = pool(options.pairs)
    report("Own annotations", table)
    report("Annotations of other pairs", moved(table))


if __name__ == "__main__":
    main()

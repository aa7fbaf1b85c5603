"""What a run leaves for its user: the blend and the quarantine, and what is said of them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import Config, RankingSettings
from nemo_mm_rank.io.bad_rows import SCHEMA
from nemo_mm_rank.io.export import write_blend
from nemo_mm_rank.io.files import read_table, write_table
from nemo_mm_rank.io.ingest import BAD_ROWS
from nemo_mm_rank.io.owned import drop, take
from nemo_mm_rank.mix import advice, mix_of
from nemo_mm_rank.ranking import attach_rows
from nemo_mm_rank.ranking.blend import label
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore, split_error
from nemo_mm_rank.schema import (
    ANNOTATION,
    ANNOTATION_SPANS,
    DATA,
    DATA_SPANS,
    ERROR,
    MEDIA_ROOT,
    MODALITY,
    PAIR_ID,
    POOL,
    SNS_REASON,
    description_column,
)
from nemo_mm_rank.steps import check_reasons


def notes(config: Config) -> list[str]:
    """Return one line for every setting that was not set and follows from another."""
    if config.projection.only_mamcl and config.ranking.calibration is None:
        return [
            "MAMCL is the only contrastive term of the projection and leaves offsets between modalities, "
            "so fused cosines "
            f"are calibrated by modality ({config.ranked_by.calibration}), unless ranking.calibration says otherwise"
        ]
    return []


def caveats(config: Config) -> list[str]:
    """Return what a reader of the blend has to know of the models behind it."""
    if config.models[config.anchor].class_ == "hashed-text":
        return [
            f"the anchor {config.anchor!r} compares spellings and not meanings, so pairs that share words with the "
            "query come first; for real work, use a sentence encoder (nemo-mm-rank presets lists some)"
        ]
    return []


def mix_entry(settings: RankingSettings, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what became of the mix that was asked for, JSON-able; None where none was.

    Args:
        settings: as they were given.
        summary: of the ranking by them.
    """
    if settings.mix is None:
        return None
    mix = mix_of(settings.mix)
    types = [
        {
            "type": label(entry["group"], mix.shares),
            "share": mix.shares.get(entry["group"]),
            "quota": entry["quota"],
            "chosen": entry["chosen"],
        }
        for entry in summary["groups"]
    ]
    return {
        "name": settings.mix if isinstance(settings.mix, str) else None,
        "source": mix.source,
        "note": mix.note,
        "types": types,
        "shortage": settings.shortage,
        "filling": summary["filling"]["chosen"],
        "advice": advice(mix),
    }


def told(columns: Iterable[str]) -> list[str]:
    """Return the columns that say what SNS kept of a pair and what describers said of it."""
    sns = (DATA_SPANS, ANNOTATION_SPANS, SNS_REASON)
    return [name for name in columns if name in sns or name.startswith(description_column(""))]


def cpu() -> dict[str, str]:
    """Return model and instruction set of this machine's CPU: sums may be rounded differently on another kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"model": model or platform.processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


def write_chosen(
    folder: RunFolder, chosen: pa.Table, places: Ints, shards: ShardStore, told: Sequence[str], jsonl: bool
) -> pa.Table:
    """Write the chosen pairs with the users' own columns, and return them; arguments as for `run.job.Job.finish`."""
    columns = [name for name in shards.pool.columns() if name not in (PAIR_ID, POOL, MODALITY, MEDIA_ROOT)]
    wide = attach_rows(chosen, places, shards, [*columns, *told])
    first = [PAIR_ID, "rank", "score", MODALITY, POOL, DATA, ANNOTATION]
    blend = wide.select([*first, *(name for name in wide.column_names if name not in first)])
    write_blend(blend, folder.blend)
    if jsonl:
        write_blend(blend, take(folder.path, folder.lines.name))
    else:
        drop(folder.path, folder.lines.name)
    return blend


def write_quarantine(folder: RunFolder, shards: ShardStore) -> pa.Table:
    """Write every pair that could not be ranked, with step, error class and message; return them."""
    columns = [PAIR_ID, POOL, MODALITY, ERROR]
    failed = [quarantined(shards.read(part, columns)) for part in range(shards.count)]
    quarantine = pa.concat_tables([read_table(shards.stages[0] / BAD_ROWS), *failed])
    write_table(folder.quarantine, quarantine.combine_chunks())
    return quarantine


def quarantined(table: pa.Table) -> pa.Table:
    """Return the rows of ``table`` that have an ``error`` as a quarantine keeps them: step, error class, message.

    Args:
        table: with ``pair_id, pool, modality, error``.

    Raises:
        UserError: an error that no step of ours has written.
    """
    failed = table.filter(pc.is_valid(table[ERROR]))
    check_reasons(failed[ERROR].to_pylist())
    parts = [split_error(text) for text in failed[ERROR].to_pylist()]
    columns: dict[str, Any] = {name: failed[name] for name in (PAIR_ID, POOL, MODALITY)}
    for place, name in enumerate(("step", "error", "message")):
        columns[name] = pa.array([part[place] for part in parts], pa.string())
    empty = {name: pa.nulls(failed.num_rows) for name in SCHEMA.names if name not in columns}
    return pa.table({**columns, **empty}).select(SCHEMA.names).cast(SCHEMA)

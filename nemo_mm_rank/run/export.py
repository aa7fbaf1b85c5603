"""A finished run's blend in other formats."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.io.webdataset_writer import write_webdataset
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import MEDIA_ROOT, PAIR_ID


def export_webdataset(run: str | Path, output: Path, max_samples: int, max_bytes: int) -> list[Path]:
    """Write the blend of a finished run as WebDataset tars; return them.

    Args:
        run: the run's folder.
        output: a folder that is made for the tars.
        max_samples: most samples of a tar.
        max_bytes: most bytes of a tar, but for one sample that is larger.

    Raises:
        UserError: the folder is no finished run, media that have gone since, or something in ``output``.
        StorageError: ``output`` cannot be written.
    """
    folder = RunFolder.at(run)
    config = folder.load_config()
    if not folder.manifest.exists():
        raise UserError(f"{folder.path}: the ranking is not finished; start the run again")
    blend = _with_roots(read_table(folder.blend), folder.pool)
    return write_webdataset(blend, output, config.media, max_samples=max_samples, max_bytes=max_bytes)


def _with_roots(blend: pa.Table, pool: Path) -> pa.Table:
    """Add where each pair's media are: a place on this machine, which the blend itself does not name."""
    found = []
    for part in sorted(pool.glob("part-*.parquet")):
        rows = read_table(part, [PAIR_ID, MEDIA_ROOT])
        found.append(rows.filter(pc.is_in(rows[PAIR_ID], value_set=blend[PAIR_ID].combine_chunks())))
    chosen = pa.concat_tables(found)
    places = pc.index_in(blend[PAIR_ID], value_set=chosen[PAIR_ID].combine_chunks())
    return blend.append_column(MEDIA_ROOT, chosen[MEDIA_ROOT].combine_chunks().take(places))

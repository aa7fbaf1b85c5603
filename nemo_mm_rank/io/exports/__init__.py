"""Formats that blends are written in: one registry."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from nemo_mm_rank.errors import ConfigError, UserError, nearest
from nemo_mm_rank.io.export import fill_webdataset
from nemo_mm_rank.io.exports.base import Export, Settings
from nemo_mm_rank.io.exports.energon import ENERGON
from nemo_mm_rank.io.exports.hub import HUB
from nemo_mm_rank.io.exports.records import RECORDS
from nemo_mm_rank.io.owned import Claim, whole
from nemo_mm_rank.schema import SOURCE_RECORD


def _webdataset(blend: pa.Table, folder: Path, settings: Settings) -> None:
    if settings.trimmed:
        raise UserError("--format webdataset: its tars hold pairs whole; --format energon writes tars of trimmed ones")
    fill_webdataset(blend, folder, settings.media, settings.max_samples, settings.max_bytes)


WEBDATASET = Export("webdataset", "WebDataset tars with the media themselves", _webdataset)

EXPORTS: dict[str, Export] = {each.name: each for each in (WEBDATASET, *RECORDS, HUB, ENERGON)}

_CLAIM = Claim("export", again=False)


def find_export(name: str) -> Export:
    """Return a format by its name.

    Raises:
        ConfigError: there is none of that name; the message lists them.
    """
    if name not in EXPORTS:
        known = ", ".join(EXPORTS)
        raise ConfigError(f"--format {name!r}: a blend can be exported as {known}{nearest(name, EXPORTS)}")
    return EXPORTS[name]


def usual_export(blend: pa.Table) -> str:
    """Return the format of a blend where none is asked for: its records where all pairs were made of some."""
    records = SOURCE_RECORD in blend.column_names and not blend[SOURCE_RECORD].null_count
    return "own" if records else WEBDATASET.name


def export_blend(
    blend: pa.Table, folder: Path, name: str, settings: Settings | None = None, claim: Claim = _CLAIM
) -> list[Path]:
    """Write pairs in a format; the folder is there whole or not at all. Equal pairs and media give equal bytes.

    Args:
        blend: canonical columns, any others, and where they are there ``data_bytes`` and ``media_root``.
        folder: made by this; may be there if it is empty, or ours where ``claim`` says that it may be replaced. Then
            what was written there goes, and a process that is killed while files are exchanged leaves some of them.
        name: of the format.
        settings: how it is written.
        claim: where the pairs come from, and whether an earlier export may be replaced.

    Returns:
        The files at its top.

    Raises:
        UserError: there is no pair, pairs or media that the format has no place for, media that cannot be read, or a
            folder that is not ours to write.
        StorageError: the folder cannot be written.
    """
    form = find_export(name)
    if not blend.num_rows:
        raise UserError("the blend contains no pair to export")
    with whole(claim, folder) as unfinished:
        before = set(unfinished.iterdir())
        form.write(blend, unfinished, settings or Settings())
        written = sorted(path.name for path in set(unfinished.iterdir()) - before)
    return [folder / each for each in written]


__all__ = ["EXPORTS", "Export", "Settings", "export_blend", "find_export", "usual_export"]

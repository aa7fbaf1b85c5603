"""A finished run's blend in the formats that trainers and viewers read."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from nemo_mm_rank import __version__
from nemo_mm_rank.config import Config
from nemo_mm_rank.errors import ConfigError, PoolError
from nemo_mm_rank.io.exports import Settings, export_blend, find_export, usual_export
from nemo_mm_rank.io.exports.base import PLACES
from nemo_mm_rank.io.files import read_sealed
from nemo_mm_rank.io.formats.base import About
from nemo_mm_rank.io.manifest import is_array
from nemo_mm_rank.io.owned import Claim, local
from nemo_mm_rank.io.pool import manifests
from nemo_mm_rank.measures.plane import FEWEST, flatten
from nemo_mm_rank.ranking import Ranking
from nemo_mm_rank.run.finished import State, read_blend
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.schema import FUSED, VECTOR
from nemo_mm_rank.shards import read_vectors

MOST_ON_PLANE = 5000
"""Pairs of a blend up to which a map is made; it takes minutes for more."""


def export(
    run: str | Path,
    output: str | Path,
    formats: Sequence[str] = (),
    media: str = "copy",
    trimmed: bool = False,
    max_samples: int = 10_000,
    max_bytes: int = 2**30,
    overwrite: bool = False,
) -> list[Path]:
    """Write the blend of a finished run in one format, or in several, each in a folder of its name.

    Args:
        run: the run's folder.
        output: a folder that is made.
        formats: see `io.exports.EXPORTS`; default: the pool's own records where it has some, else WebDataset.
        media: copy media into the export, link to them, or keep references to where they are.
        trimmed: write what SNS kept of each pair, and no more.
        max_samples: most pairs of a file, where there are several.
        max_bytes: most bytes of a file, where there are several.
        overwrite: whether an earlier export in ``output`` may be replaced.

    Returns:
        The files at the top of each export.

    Raises:
        UserError: the folder is no finished run, media that have gone since, a format that is none or has no place for
            a pair, or ``output`` is not ours to write.
        StorageError: ``output`` cannot be written.
    """
    for name in formats:
        find_export(name)
    if media not in PLACES:
        raise ConfigError(f"--media {media!r}: {', '.join(PLACES)}")
    config, blend = read_blend(run)
    claim = Claim("export", config.pools, [run], overwrite, again=False)
    names = list(dict.fromkeys(formats)) or [usual_export(blend)]
    top = local(output)
    folders = [claim.check(top if len(names) == 1 else top / name) for name in names]
    records = {name for name in names if name not in ("webdataset", "uids")}
    pools, arrays = _pools(config) if records else ({}, frozenset[str]())
    folder = RunFolder.at(run)
    vectors = plane = None
    card: dict[str, object] = {}
    if "hf" in names:
        vectors, plane = _space(folder, config)
        card = _card(folder, config)
    settings = Settings(config.media, media, trimmed, max_samples, max_bytes, pools, arrays, card, plane, vectors)
    return [path for name, each in zip(names, folders, strict=True) for path in export_blend(
        blend, each, name, settings, claim
    )]  # fmt: skip


def _pools(config: Config) -> tuple[dict[str, About], frozenset[str]]:
    """Return what is known of pools' records, and which pools are JSON arrays; of manifests that have gone, nothing."""
    pools: dict[str, About] = {}
    arrays = set()
    for source in config.pools:
        try:
            for manifest in manifests(source):
                pools[manifest.pool] = About(source, manifest.pool, json.loads(manifest.told))
                if is_array(manifest.file, source.download_seconds):
                    arrays.add(manifest.pool)
        except PoolError:
            continue  # the records themselves are in the run
    return pools, frozenset(arrays)


def _space(folder: RunFolder, config: Config) -> tuple[pa.Array, pa.Array | None]:
    """Return the fused vectors of the blend's pairs, and their places on a map where that can be made."""
    ranking = Ranking.load(folder.ranking)
    found = read_vectors(ranking.places, State.load(folder).open(folder), FUSED)
    plane = None
    whole = found.any(axis=1)
    if FEWEST <= whole.sum() <= MOST_ON_PLANE and find_spec("sklearn") is not None:
        places = np.full((len(found), 2), np.nan)
        places[whole] = flatten(found[whole], config.seed)
        plane = pa.array(places.tolist())
    return pa.array(found.tolist(), VECTOR), plane


def _card(folder: RunFolder, config: Config) -> dict[str, object]:
    """Return what a data card says of how the blend was made."""
    manifest = read_sealed(folder.manifest)
    return {
        "objective": [query.model_dump(mode="json", exclude_none=True) for query in config.queries],
        "budget": config.budget.model_dump(mode="json") if hasattr(config.budget, "model_dump") else str(config.budget),
        "models": manifest["models"],
        "pairs of the pool": manifest["counts"]["pool"]["rows"],
        "input digests": [{**source, "file": Path(source["file"]).name} for source in manifest["inputs"]],
        "blend digest": manifest["blend"]["digest"],
        "nemo-mm-rank": __version__,
        "exported by": shlex.join(["nemo-mm-rank", *sys.argv[1:]]) if sys.argv[1:2] == ["export"] else "Python",
    }

"""A finished run's blend in other formats."""

from __future__ import annotations

from pathlib import Path

from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.io.webdataset_writer import write_webdataset
from nemo_mm_rank.run.finished import read_blend


def export_webdataset(
    run: str | Path, output: str | Path, max_samples: int, max_bytes: int, overwrite: bool = False
) -> list[Path]:
    """Write the blend of a finished run as WebDataset tars; return them.

    Args:
        run: the run's folder.
        output: a folder that is made for the tars.
        max_samples: most samples of a tar.
        max_bytes: most bytes of a tar, but for one sample that is larger.
        overwrite: whether an earlier export in ``output`` may be replaced.

    Raises:
        UserError: the folder is no finished run, media that have gone since, or ``output`` is not ours to write.
        StorageError: ``output`` cannot be written.
    """
    config, blend = read_blend(run)
    claim = Claim("export", config.pools, [run], overwrite, again=False)
    folder = claim.check(output)
    return write_webdataset(blend, folder, config.media, max_samples=max_samples, max_bytes=max_bytes, claim=claim)

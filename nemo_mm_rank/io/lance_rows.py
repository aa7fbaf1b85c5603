"""Lance data sets as manifests, where ``pylance`` is installed: a folder that holds versions of a table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from nemo_mm_rank.errors import PoolError
from nemo_mm_rank.io.arrow_rows import arrow_rows
from nemo_mm_rank.io.rows import BATCH_ROWS, BLOCK_BYTES, Rows

SUFFIX = ".lance"
_VERSIONS, _DATA = "_versions", "data"
_READ_AHEAD = 64 * 2**20


def is_lance(folder: str) -> bool:
    """Whether a folder is a Lance data set."""
    return all(os.path.isdir(os.path.join(folder, name)) for name in (_VERSIONS, _DATA))


def lance_files(folder: str) -> list[str]:
    """Return the files that say what the newest version is; those that they name are never written to again."""
    names = sorted(os.listdir(os.path.join(folder, _VERSIONS)))
    return [os.path.join(folder, _VERSIONS, name) for name in names]


def lance_rows(folder: str) -> Iterator[Rows]:
    """Stream the rows of the newest version, numbered from 1, a few megabytes at a time.

    The library itself decodes one of the file's pages as a whole, however large it is.

    Raises:
        PoolError: the library is not installed, or it cannot read it.
    """
    try:
        lance: Any = import_module("lance")
    except ImportError as error:
        raise PoolError(f"{folder}: cannot be read: a library is missing: pip install pylance") from error
    try:
        data = lance.dataset(folder)
        size = sum(file.file_size_bytes or 0 for part in data.get_fragments() for file in part.data_files())
        rows = int(min(BATCH_ROWS, max(1, 4 * BLOCK_BYTES * data.count_rows() // max(1, size))))
        batches = data.scanner(
            batch_size=rows,
            batch_size_bytes=4 * BLOCK_BYTES,
            batch_readahead=1,
            fragment_readahead=1,
            io_buffer_size=_READ_AHEAD,
            scan_in_order=True,
        ).to_batches()
        yield from arrow_rows(folder, batches)
    except (OSError, ValueError, RuntimeError) as error:
        raise PoolError(f"{folder}: cannot be read: {' '.join(str(error).split())[:300]}") from error

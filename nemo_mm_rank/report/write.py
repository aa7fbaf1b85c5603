"""The report of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.io.owned import check_file, local, recognised
from nemo_mm_rank.io.parquet import write_text
from nemo_mm_rank.report import overview
from nemo_mm_rank.report.content import Page
from nemo_mm_rank.report.gallery import Blend, gallery
from nemo_mm_rank.report.maps import SAMPLE, maps
from nemo_mm_rank.report.page import is_page, render
from nemo_mm_rank.report.run import Run

REPORT = "report.html"


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one self-contained page about a finished run; return its path.

    The same folder gives the same bytes. Beside what a pass over the scores takes, memory holds 40 bytes a pair, and
    the contents of some hundred pairs.

    Args:
        folder: of a run of the main job.
        output: the file; default: ``report.html`` in the folder.

    Raises:
        UserError: the folder is no finished run, a library of the extra ``report`` is missing, or something that is no
            report of ours is in the file's place.
        StorageError: the file cannot be written.
    """
    path = check_file(Path(folder) / REPORT if output is None else output, is_page, "report")
    page = run_page(Run.open(folder))
    if output is None:
        recognised(local(folder), "run")
    return put_page(page, path)


def run_page(run: Run) -> Page:
    """Return the report of a run of the main job."""
    chosen = Blend("blend", "chosen by this run", run.ranking.chosen.num_rows, run.chosen)
    sections = [
        overview.overview(run),
        overview.rows(run),
        overview.scores(run),
        overview.spaces(run),
        overview.pairs(),
        overview.provenance(run),
    ]
    return Page(overview.objective(run), overview.subtitle(run), sections, page_data(run, [chosen])[0])


def page_data(run: Run, blends: Sequence[Blend]) -> tuple[dict[str, Any], int]:
    """Return what the page's scripts read, the pairs and the maps of a sample of them, and how many are the pool's."""
    sample = run.scored.sample(SAMPLE)
    data, shown = gallery(run, blends, sample)
    place = np.full(len(run.scored.scores), -1)
    place[shown] = np.arange(len(shown))
    data["maps"] = maps(run, sample, place[sample].tolist())
    return data, len(shown)


def put_page(page: Page, path: Path) -> Path:
    """Write a page, whole or not at all."""
    write_text(path, without_passwords(render(page)))
    return path

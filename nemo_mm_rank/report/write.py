"""The report of a folder, whichever kind of folder it is."""

from __future__ import annotations

from pathlib import Path

from nemo_mm_rank.io.parquet import write_text
from nemo_mm_rank.report import overview
from nemo_mm_rank.report.content import Page
from nemo_mm_rank.report.gallery import Blend, gallery
from nemo_mm_rank.report.maps import SAMPLE, maps
from nemo_mm_rank.report.page import render
from nemo_mm_rank.report.run import Run

REPORT = "report.html"


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one self-contained page about a finished run; return its path.

    The same folder gives the same bytes. Beside what a pass over the scores takes, memory holds 40 bytes a pair, and
    the contents of some hundred pairs.

    Args:
        folder: of a run of the main job, or of a benchmark.
        output: the file; default: ``report.html`` in the folder.

    Raises:
        UserError: the folder is no finished run, or a library of the extra ``report`` is missing.
        StorageError: the file cannot be written.
    """
    path = Path(folder) / REPORT if output is None else Path(output)
    write_text(path, render(run_page(Run.open(folder))))
    return path


def run_page(run: Run) -> Page:
    """Return the report of a run of the main job."""
    chosen = overview.blend_positions(run)
    sample = run.scored.sample(SAMPLE)
    data, shown = gallery(run, [Blend("blend", "chosen by this run", chosen)], sample)
    place = {position: index for index, position in enumerate(shown.tolist())}
    data["maps"] = maps(run, sample, [place[position] for position in sample.tolist()])
    sections = [
        overview.overview(run),
        overview.rows(run),
        overview.scores(run),
        overview.spaces(run),
        overview.pairs(),
        overview.provenance(run),
    ]
    return Page(overview.objective(run), overview.subtitle(run), sections, data)

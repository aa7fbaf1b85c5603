"""The report of a folder, whichever kind of folder it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.io.owned import check_file, local, recognised
from nemo_mm_rank.io.parquet import write_text
from nemo_mm_rank.report import benchmark, overview
from nemo_mm_rank.report.benchmark import Benchmark
from nemo_mm_rank.report.content import Page, Section
from nemo_mm_rank.report.gallery import Blend, gallery
from nemo_mm_rank.report.maps import SAMPLE, maps
from nemo_mm_rank.report.page import is_page, render
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.schema import PAIR_ID

REPORT = "report.html"


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write one self-contained page about a finished run, or a finished benchmark; return its path.

    The same folder gives the same bytes. Beside what a pass over the scores takes, memory holds 40 bytes a pair, and
    the contents of some hundred pairs.

    Args:
        folder: of a run of the main job, or of a benchmark.
        output: the file; default: ``report.html`` in the folder.

    Raises:
        UserError: the folder is no finished run, a library of the extra ``report`` is missing, or something that is no
            report of ours is in the file's place.
        StorageError: the file cannot be written.
    """
    path = check_file(Path(folder) / REPORT if output is None else output, is_page, "report")
    is_benchmark = (Path(folder) / benchmark.RESULTS).exists()
    page = benchmark_page(Benchmark.open(folder)) if is_benchmark else run_page(Run.open(folder))
    if output is None:
        recognised(local(folder), "benchmark" if is_benchmark else "run")
    write_text(path, without_passwords(render(page)))
    return path


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
    return Page(overview.objective(run), overview.subtitle(run), sections, _data(run, [chosen]))


def benchmark_page(bench: Benchmark) -> Page:
    """Return the report of a benchmark; its pairs are those of the first run of ours, where there is one."""
    found: list[Section | None] = [
        benchmark.overview(bench),
        benchmark.training(bench),
        benchmark.selection(bench),
        benchmark.mix(bench),
    ]
    data: dict[str, Any] = {}
    if (of := bench.run()) is not None:
        name, folder = of
        run = Run.open(folder)
        data = _data(run, _blends(bench, run, name), bench)
        found += [overview.scores(run), benchmark.spaces(bench, overview.ABOUT_MAPS), overview.pairs()]
    found += [benchmark.cost(bench), benchmark.provenance(bench)]
    sections = [section for section in found if section is not None]
    return Page(benchmark.title(bench), benchmark.subtitle(bench), sections, data)


def _data(run: Run, blends: Sequence[Blend], bench: Benchmark | None = None) -> dict[str, Any]:
    """Return what the page's scripts read: the pairs, and the maps of a sample of them."""
    sample = run.scored.sample(SAMPLE)
    data, shown = gallery(run, blends, sample)
    place = np.full(len(run.scored.scores), -1)
    place[shown] = np.arange(len(shown))
    data["maps"] = maps(run, sample, place[sample].tolist())
    truth = bench.truth() if bench else None
    if truth is not None:
        for name, column in (("truth", "kinds"), ("relevant", "relevant")):
            if column in truth.column_names:
                known = dict(zip(truth[PAIR_ID].to_pylist(), truth[column].to_pylist(), strict=True))
                data[name] = [known.get(pair_id) for pair_id in data["id"][: len(shown)]]
    return data


def _blends(bench: Benchmark, run: Run, first: str) -> list[Blend]:
    """Return what every strategy chose under the first seed, that of the run itself first."""
    found = []
    for name in [first, *(other for other in bench.strategies if other != first)]:
        ids = bench.blend(name)
        note = f"chosen by {name}, seed {bench.seeds[0]}"
        found.append(Blend(name, note, len(ids), run.scored.named(ids, run.config.seed)))
    return found

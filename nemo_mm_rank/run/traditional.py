"""The text-only baseline as a job: from pools, or a finished run's pool, to a blend of the same budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pydantic import Field
from rich.console import Console

from nemo_mm_rank.console import SafeConsole
from nemo_mm_rank.engine import Engine
from nemo_mm_rank.quality.text_filters import TraditionalSettings, TraditionalStep
from nemo_mm_rank.quality.traditional import choose
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.run.job import StrategyConfig, at_work
from nemo_mm_rank.schema import ANNOTATION
from nemo_mm_rank.tables import Row, Table

DUPLICATES = "duplicates.parquet"
"""Pairs that fail a filter of duplicates, in the run's folder; Curator's removal stage reads it too."""


class TraditionalConfig(StrategyConfig):
    """A whole job. Either ``pools`` or ``run`` has to be given."""

    kind = "traditional"
    libraries = ("nemo-curator", "numpy", "pandas", "pyarrow")

    output: str = "traditional-run"
    traditional: TraditionalSettings = Field(default_factory=TraditionalSettings)


@dataclass(frozen=True)
class TraditionalResult(Result):
    """A finished job: ``blend``, ``quarantine`` and ``manifest`` as the main job's."""

    def print(self, console: Console | None = None) -> None:
        """Print by filter and modality how many pairs it keeps."""
        counts = self.manifest["counts"]["filters"]
        filters = next(iter(counts.values()), {"passed": ()})["passed"]
        passed = {
            "(pairs)": [entry["pairs"] for entry in counts.values()],
            **{name: [entry["passed"][name] for entry in counts.values()] for name in filters},
            "(all filters)": [entry["passed_all"] for entry in counts.values()],
        }
        rows = [Row((name, *(f"{pairs:,}" for pairs in by_modality))) for name, by_modality in passed.items()]
        out = console or SafeConsole()
        out.print(Table("pairs that pass", ["filter", *counts], rows))
        for line in self.manifest["notes"]:
            out.print(f"note: {line}", style="yellow", markup=False, highlight=False)


def curate(
    config: TraditionalConfig, console: Console | None = None, engine: Engine | None = None, overwrite: bool = False
) -> TraditionalResult:
    """Fill the budget by the text-only baseline; finished shards of an earlier run in the same folder are kept.

    The output folder holds ``blend.parquet``, ``quarantine.parquet``, ``duplicates.parquet`` and ``manifest.json``.
    A share as the budget counts all pairs of the pool whose annotation can be judged: media are not opened, so pairs
    that the main job quarantines are among them. To fill the same budget as a blend, give its number of pairs.

    Args:
        config: the whole job.
        console: where progress goes.
        engine: where the work is done; default: what ``config.engine`` says. The caller's is left open.
        overwrite: whether a job on other pools that is in the folder may be replaced.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    config.register()
    step = TraditionalStep(config.traditional)
    with at_work(config, console, engine, overwrite) as job:
        pool = config.pool(job)
        judged = job.take_through([step], pool.shards.pool)
        with job.reporter.whole("choose", judged.pairs):
            choice = choose(judged, config.traditional, config.budget)
        counts = {
            "filters": choice.counts,
            "duplicates": dict(sorted(Counter(choice.duplicates["filter"].to_pylist()).items())),
        }
        manifest = job.finish(
            pool,
            choice.chosen,
            choice.places,
            judged,
            counts,
            files={DUPLICATES: choice.duplicates},
            strategy=config.kind,
            steps=[step.identity()],
            judged=ANNOTATION,
        )
        return TraditionalResult(job.folder.path, manifest)

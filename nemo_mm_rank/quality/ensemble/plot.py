"""A search in one picture: does M choose what the labelled set would?"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.errors import require
from nemo_mm_rank.io.files import write_atomically


def plot_search(trace: pa.Table, path: Path) -> None:
    """Write a PNG of M against F1, a dot per point that was tried, the winner marked.

    Args:
        trace: `search.Found.trace`.
        path: of the file.

    Raises:
        UserError: matplotlib is not installed.
    """
    require("matplotlib", "report")
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tried = trace.filter(pc.is_valid(trace["m"]))
    best = tried.filter(tried["best"])
    # Not by a matplotlibrc of the current folder, which can have LaTeX run what it likes.
    with rc_context({name: value for name, value in rcParamsDefault.items() if name != "backend"}):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.subplots()
        dots = axes.scatter(tried["f1"].to_numpy(), tried["m"].to_numpy(), s=10, c=tried["conflict"].to_numpy())
        axes.scatter(best["f1"].to_numpy(), best["m"].to_numpy(), s=90, facecolors="none", edgecolors="black")
        axes.set(xlabel="F1 on the labelled set", ylabel="M", title=f"{tried.num_rows:,} choices of thresholds")
        figure.colorbar(dots, label="conflict")
        FigureCanvasAgg(figure)
        bare = {"Software": None}
        write_atomically(path, lambda target: figure.savefig(target, format="png", dpi=120, metadata=bare))

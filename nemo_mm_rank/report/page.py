"""From a report's content to one HTML file: escaped throughout, nothing loaded, nothing run but our own scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.console import without_passwords
from nemo_mm_rank.errors import require
from nemo_mm_rank.io.files import write_text
from nemo_mm_rank.io.owned import check_file, local, recognised
from nemo_mm_rank.report import overview
from nemo_mm_rank.report.content import Page
from nemo_mm_rank.report.gallery import Blend, gallery
from nemo_mm_rank.report.maps import SAMPLE, maps
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.report.trimmed import Trimmed

SCRIPTS = ("dom.js", "pairs.js", "cards.js", "maps.js", "start.js")
"""In the order in which they run."""


GENERATOR = '<meta name="generator" content="nemo-mm-rank">'
"""What tells a page of ours from others; in its head."""


def is_page(file: Path) -> bool:
    """Whether a file is a page that `render` made."""
    with file.open("rb") as opened:
        return GENERATOR.encode() in opened.read(4096)


def render(page: Page) -> str:
    """Return the page as HTML.

    Whatever comes from the data is escaped by the template; the scripts' data is JSON in which no ``<`` is left; a
    content security policy lets nothing run or load but the style and the script in the page itself (by their hashes)
    and media in ``data:`` URIs.

    Raises:
        UserError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report")
    style = _file("report.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_file, SCRIPTS)) + "})();\n"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_source(style)}",
            f"script-src {_source(script)}",
            "img-src data:",
            "media-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nemo_mm_rank.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Numbers that JSON has no word for are a mistake of ours, not something for the browser to stumble over.
    settings: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_kwargs"] = settings
    html: str = environment.get_template("report.html").render(
        page=page, style=style, script=script, policy=policy, generator=GENERATOR
    )
    return html


def _file(name: str) -> str:
    return (files("nemo_mm_rank.report") / "page" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return how a content security policy names an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
    return put_page(folder, "run", output, lambda: run_page(Run.open(folder)))


def run_page(run: Run) -> Page:
    """Return the report of a run of the main job."""
    chosen = Blend("blend", "chosen by this run", run.ranking.chosen.num_rows, run.chosen)
    cut = Trimmed.of(run)
    sections = [
        overview.overview(run),
        overview.rows(run),
        *cut.sections(),
        overview.scores(run),
        overview.spaces(run),
        overview.pairs(),
        overview.provenance(run),
    ]
    return Page(overview.objective(run), overview.subtitle(run), sections, page_data(run, [chosen], cut.shown)[0])


def page_data(run: Run, blends: Sequence[Blend], trimmed: Ints | None = None) -> tuple[dict[str, Any], int]:
    """Return what the page's scripts read, the pairs and the maps of a sample of them, and how many are the pool's."""
    sample = run.scored.sample(SAMPLE)
    data, shown = gallery(run, blends, sample, trimmed)
    place = np.full(len(run.scored.scores), -1)
    place[shown] = np.arange(len(shown))
    data["maps"] = maps(run, sample, place[sample].tolist())
    return data, len(shown)


def put_page(folder: str | Path, kind: str, output: str | Path | None, make: Callable[[], Page]) -> Path:
    """Write a page about a folder of a ``kind`` of `owned.KINDS`, whole or not at all, and return its path.

    Raises:
        UserError: something that is no report of ours is in the file's place, or the folder is not of that kind.
        StorageError: the file cannot be written.
    """
    path = check_file(local(folder) / REPORT if output is None else output, is_page, "report")
    page = make()
    if output is None:
        recognised(local(folder), kind)
    write_text(path, without_passwords(render(page)))
    return path

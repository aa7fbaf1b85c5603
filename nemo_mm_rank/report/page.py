"""From a report's content to one HTML file: escaped throughout, nothing loaded, nothing run but our own scripts."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from nemo_mm_rank.errors import require
from nemo_mm_rank.report.content import Page

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

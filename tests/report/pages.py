"""Pages as tests read them: as text, and in a browser that keeps note of all that should not happen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    '"><svg onload="window.hacked = 1">{{ 7 * 7 }}${7*7}',
    "]]>\u2028\u2029\u202eback &lt;b&gt; &amp; \\u003c",
]
"""What a caption must be shown as."""


def data_of(html: str) -> dict[str, Any]:
    """Return what the page's scripts read."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    values: dict[str, Any] = json.loads(found[0])
    return values


class Elements(HTMLParser):
    """Every element of a page, with its attributes; its text; and the tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._text: list[str] | None = None
        self._rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("caption", "th", "td"):
            self._text = []
        elif tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.tables["".join(self._text or [])] = self._rows
        elif tag in ("th", "td"):
            self._rows[-1].append("".join(self._text or []))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@dataclass
class Opened:
    """A page in a browser.

    Attributes:
        page: playwright's.
        complaints: what the console said, and errors that nobody caught.
        requests: addresses beside the page's own and those that carry their content.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def at(cls, browser: Any, path: Path, wait_for: str = "#pairs-body > *", **options: Any) -> Iterator[Opened]:
        context = browser.new_context(**options)
        opened = cls(context.new_page())
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        address = path.as_uri()
        opened.page.on("request", lambda request: opened._note(request.url, address))
        opened.page.goto(address)
        opened.page.wait_for_selector(wait_for)
        yield opened
        context.close()

    def _note(self, url: str, own: str) -> None:
        if url != own and not url.startswith("data:"):
            self.requests.append(url)

    def until(self, expression: str) -> None:
        """Wait until an expression holds (playwright's own waiting evaluates text, which the page's policy refuses)."""
        self.page.evaluate(f"new Promise(done => {{const f = () => {expression} ? done() : setTimeout(f, 20); f();}})")

    def view(self, name: str) -> None:
        self.page.click(f"#tab-{name}")

    def shown(self) -> list[str]:
        """Return the ids of all pairs that the view lists, page after page."""
        found: list[str] = []
        while True:
            found += self.page.eval_on_selector_all("#pairs-body [data-pair]", "all => all.map(e => e.dataset.pair)")
            following = self.page.locator(".pager button", has_text="Next")
            if following.is_disabled():
                return found
            following.click()

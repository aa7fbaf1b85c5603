"""A small real run over the demo pool and over rows that mean harm, its page, and a browser to look at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nemo_mm_rank.config import Config, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.report import write_report
from nemo_mm_rank.run import curation
from tests.integration.runs import QUERY, settings
from tests.report.pages import HOSTILE, Opened

CHROMIUM = "/usr/bin/chromium"
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trimmed both ways: six pairs of each modality, faulty ones, hostile ones, one of two parts."""
    folder = tmp_path_factory.mktemp("report")
    pool = make_demo_pool(folder / "pool", 6)
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    for number, text in enumerate(HOSTILE):
        row = {"pair_id": f"evil-{number} {text}", "pool": text, "modality": "text", "data": f"The sea. {text}"}
        rows.append({**row, "annotation": f"{text} The calm blue sea under a clear sky.", "fault": text})
    rows.append({**row, "pair_id": "evil-file", "modality": "image", "data": f"image/{HOSTILE[1]}.jpg"})
    sea = [{"modality": "text", "data": "The sea."}, {"modality": "image", "data": "image/image-000.jpg"}]
    rows.append({"pair_id": "both", "pool": "demo", "data": sea, "annotation": "A clear blue sky."})
    pool.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    queries = [QUERY, f"a calm sea {HOSTILE[0]}"]
    curation.curate(parse(Config, settings(pool, folder / "run", queries=queries)))
    return folder / "run"


@pytest.fixture(scope="session")
def page(run: Path) -> Path:
    return write_report(run)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    """The page in a browser of its own."""
    with Opened.at(browser, page) as opened:
        yield opened

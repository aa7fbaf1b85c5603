"""What a notebook shows: the first pairs of a blend and the report itself, and nothing of the pool becomes markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_mm_rank import Result
from nemo_mm_rank.report.notebook import SHOWN
from tests.report.pages import HOSTILE, Elements


@pytest.fixture(scope="module")
def result(run: Path) -> Result:
    return Result(run, json.loads((run / "manifest.json").read_text(encoding="utf-8")))


def test_a_result_shows_its_first_pairs_with_their_media(result: Result) -> None:
    seen = Elements(result._repr_html_())
    first = result.blend.head(SHOWN)
    titles = [f"{row.rank}. {row.modality}, score {row.score:+.2f}" for row in first.itertuples()]
    places = [seen.text.find(title) for title in titles]
    assert -1 not in places
    assert places == sorted(places)
    for kind, tag in (("image", "img"), ("audio", "audio"), ("video", "video")):
        assert len(seen.named(tag)) == (first["modality"] == kind).sum()
        assert all(str(one["src"]).startswith(f"data:{kind}/") for one in seen.named(tag))
    assert len(seen.named("table")) == 1  # the blend as pandas shows it, without columns that nobody reads
    assert {"reason", "annotation"} <= set(seen.text.split())


def test_texts_of_the_pool_are_no_markup(result: Result) -> None:
    seen = Elements(result._repr_html_())
    assert result.blend["annotation"].str.contains(HOSTILE[0], regex=False).any()
    assert HOSTILE[0][:20] in seen.text
    assert {tag for tag, _ in seen.found}.isdisjoint({"script", "iframe", "svg", "base", "form"})
    assert not [name for _, attributes in seen.found for name in attributes if name.startswith("on")]


def test_the_report_is_a_path_and_a_frame(result: Result, run: Path, tmp_path: Path) -> None:
    path = result.report()
    assert path == run / "report.html"
    assert f"{path}" == str(run / "report.html")
    assert result.report(tmp_path / "other.html").read_bytes() == path.read_bytes()
    (tag, frame) = Elements(path._repr_html_()).found[0]
    assert tag == "iframe"
    assert frame["sandbox"] == "allow-scripts"
    base = '<base href="about:srcdoc">'
    assert str(frame["srcdoc"]).replace(base, "", 1) == path.read_text(encoding="utf-8")


def test_the_frame_shows_the_report_and_reaches_nothing_else(result: Result, browser: Any) -> None:
    page = browser.new_page()
    try:
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_content(f"<p id='notebook'>mine</p>{result.report()._repr_html_()}")
        frame = page.frames[1]
        frame.wait_for_selector("#pairs-body [data-pair]", timeout=20_000)
        assert frame.title().endswith("· nemo-mm-rank")
        frame.click("nav a >> nth=-1")
        page.wait_for_timeout(500)
        assert frame.url.startswith("about:srcdoc#")
        assert frame.locator("#pairs-body [data-pair]").count()
        assert complaints == []
        reach = "() => { try { return parent.document.title } catch (error) { return error.name } }"
        assert frame.evaluate(reach) == "SecurityError"
    finally:
        page.close()

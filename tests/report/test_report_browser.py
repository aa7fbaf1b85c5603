"""The page in a real browser: it loads in silence, its filters filter, its media play, and text stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from nemo_mm_rank.config import MediaSettings
from nemo_mm_rank.media.preview import copy
from nemo_mm_rank.report.content import Page, Section, Widget
from nemo_mm_rank.report.page import render
from tests.report.pages import HOSTILE, Opened, data_of

ELEMENTS = "document.getElementsByTagName('*').length"


@pytest.fixture(scope="module")
def data(page: Path) -> dict[str, Any]:
    return data_of(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def blend(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "blend.parquet")


def test_it_loads_without_a_word_and_without_a_request(opened: Opened) -> None:
    for view in ("near", "bottom", "lost", "all", "top"):
        opened.view(view)
    assert opened.complaints == []
    assert opened.requests == []
    assert opened.page.title().endswith("· nemo-mm-rank")


def test_views_in_their_order(opened: Opened, data: dict[str, Any], blend: pd.DataFrame) -> None:
    assert opened.shown() == blend["pair_id"].tolist()
    opened.view("bottom")
    assert opened.shown() == data["id"][: data["shown"]][::-1]
    opened.view("near")
    by_distance = sorted(range(data["shown"]), key=lambda index: (abs(data["distance"][index]), index))
    assert opened.shown() == [data["id"][index] for index in by_distance]
    opened.view("lost")
    assert opened.shown() == data["id"][data["shown"] :]
    opened.view("all")
    assert opened.shown() == data["id"]


def test_filters_alone_and_together(opened: Opened, data: dict[str, Any], blend: pd.DataFrame) -> None:
    names = [data["modalities"][code]["name"] if code >= 0 else None for code in data["modality"]]
    opened.view("all")
    opened.page.click("[data-modality=image]")
    images = [pair for pair, name in zip(data["id"], names, strict=True) if name == "image"]
    assert opened.shown() == images
    opened.page.click("[data-modality=audio]")
    assert opened.shown() == [pair for pair, name in zip(data["id"], names, strict=True) if name in ("image", "audio")]
    opened.page.select_option("#filters select >> nth=1", label="in the blend")
    chosen = set(blend["pair_id"])
    assert opened.shown() == [pair for pair in blend["pair_id"] if pair.startswith(("image", "audio"))]
    opened.page.select_option("#filters select >> nth=1", label="not in the blend")
    expected = [
        pair
        for index, (pair, name) in enumerate(zip(data["id"], names, strict=True))
        if name in ("image", "audio") and pair not in chosen and index < data["shown"]
    ]
    assert opened.shown() == expected
    opened.page.click("[data-modality=image]")
    opened.page.click("[data-modality=audio]")
    opened.page.select_option("#filters select >> nth=1", label="chosen or not")
    opened.page.fill("#filters input", "Calm SEA")
    found = opened.shown()
    assert 0 < len(found) < len(data["id"])
    assert {pair for pair in found if pair.startswith("evil")} == {p for p in data["id"] if p.startswith("evil-")} - {
        "evil-file"
    } | {p for p in found if p == "evil-file"}
    opened.page.fill("#filters input", "no such words anywhere")
    assert opened.shown() == []
    assert opened.page.inner_text("#pairs-body .empty") == "No pair fits these filters."


def test_the_filter_by_pool(opened: Opened, data: dict[str, Any]) -> None:
    opened.view("all")
    opened.page.select_option("#filters select >> nth=0", label=HOSTILE[1])
    assert opened.shown() == [pair for pair in data["id"] if pair == f"evil-1 {HOSTILE[1]}"]


def test_what_was_trimmed_is_struck_through(opened: Opened, data: dict[str, Any]) -> None:
    for index in data["blends"][0]["pairs"]:
        cut = [text for text, kept in data["details"][str(index)]["annotation"] if not kept]
        struck = opened.page.eval_on_selector_all(
            f"#pairs-body .cards > :nth-child({data['blends'][0]['pairs'].index(index) + 1}) .annotation del",
            "all => all.map(e => e.textContent)",
        )
        assert struck == cut
    line = opened.page.eval_on_selector("del", "e => getComputedStyle(e).textDecorationLine")
    assert line == "line-through"


def test_trimmed_pairs_stand_side_by_side_with_the_reason(opened: Opened, data: dict[str, Any]) -> None:
    cards = opened.page.locator("#trimmed-widget .cards > article")
    assert cards.count() == len(data["trimmed"]) > 0
    for place, index in enumerate(data["trimmed"]):
        card = cards.nth(place)
        assert card.get_attribute("data-pair") == data["id"][index]
        assert card.locator("p").last.inner_text() == data["details"][str(index)]["sns"]
        cut = [text for text, kept in data["details"][str(index)]["annotation"] if not kept]
        assert [one.text_content() for one in card.locator(".annotation del").all()] == cut


@pytest.mark.parametrize(("kind", "of"), [("audio", "audio"), ("video", "video")])
def test_sounds_and_films_play(opened: Opened, kind: str, of: str) -> None:
    opened.page.click(f"[data-modality={of}]")
    opened.view("all")
    opened.page.locator("tr[data-pair] button").first.click()
    opened.page.evaluate(f"document.querySelector('dialog {kind}').play()")
    opened.until(f"document.querySelector('dialog {kind}').currentTime > 0.2")
    state = opened.page.eval_on_selector(f"dialog {kind}", "e => [e.readyState, e.error, e.duration]")
    assert state[0] >= 2
    assert state[1] is None
    assert state[2] == pytest.approx(4 if kind == "audio" else 2, abs=2)
    if kind == "video":
        assert opened.page.eval_on_selector("dialog video", "e => [e.videoWidth, e.videoHeight]") == [160, 120]
    assert opened.complaints == []


def test_pictures_are_there(opened: Opened) -> None:
    opened.page.click("[data-modality=image]")
    opened.view("near")
    opened.until("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert opened.page.locator("#pairs-body .picture img").count() == 6


def test_the_kept_part_of_a_picture_is_where_it_was(browser: Any, tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "green").save(tmp_path / "a.png")
    media = copy("a.png", "image", [[100, 50, 200, 100]], str(tmp_path), None, MediaSettings())
    detail = {"data": [{**media, "name": "a.png"}], "annotation": [["green", True]]}
    values = pairs(1, details={"0": detail})
    with Opened.at(browser, written(tmp_path, values)) as opened:
        opened.until("document.images[0].naturalWidth === 240")
        drawing, picture = (opened.page.locator(f".picture {name}").bounding_box() for name in ("svg", "img"))
        assert drawing == picture
        box = opened.page.eval_on_selector(".picture .kept", "e => (b => [b.x, b.y, b.width, b.height])(e.getBBox())")
        assert box == [0.25, 0.25, 0.5, 0.5]
        assert opened.page.eval_on_selector(".picture svg", "e => e.viewBox.baseVal.width") == 1


def test_hostile_texts_are_shown_as_text(opened: Opened, data: dict[str, Any]) -> None:
    for view in ("top", "near", "bottom", "lost", "all"):
        opened.view(view)
    for number, text in enumerate(HOSTILE):
        opened.view("all")
        pair = f"evil-{number} {text}"
        opened.page.eval_on_selector_all(
            "tr[data-pair]",
            "(all, pair) => all.find(e => e.dataset.pair === pair).querySelector('button').click()",
            pair,
        )
        assert opened.page.text_content("dialog .annotation") == f"{text} The calm blue sea under a clear sky."
        assert opened.page.text_content("dialog .content") == f"The sea. {text}"
        assert opened.page.text_content("dialog h3") == pair
        facts = opened.page.eval_on_selector_all("dialog dd", "all => all.map(e => e.textContent)")
        assert " ".join(text.split()) in facts
        assert opened.page.locator("dialog script, dialog img, dialog svg[onload]").count() == 0
        opened.page.click("dialog .close")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.complaints == []


def test_the_browser_refuses_any_other_script(opened: Opened) -> None:
    refused = opened.page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script);
        })"""
    )
    assert refused == "script-src-elem"
    assert opened.page.evaluate("window.hacked") is None
    fetched = opened.page.evaluate("fetch('https://example.org').then(() => 'fetched', error => error.name)")
    assert fetched == "TypeError"


def test_maps_recolour_hide_and_open_a_pair(opened: Opened, data: dict[str, Any]) -> None:
    drawn = opened.page.locator("[data-space=fused] .points")
    assert drawn.count() == len(data["modalities"])
    dots = opened.page.eval_on_selector_all(
        "[data-space=fused] .points", "all => all.reduce((n, e) => n + e.getAttribute('d').split('h0').length - 1, 0)"
    )
    assert dots == data["shown"]
    opened.page.check("input[value=pool]")
    assert drawn.count() == len(data["pools"])
    opened.page.check("input[value=chosen]")
    chosen = opened.page.eval_on_selector(
        "[data-space=fused] .points.cin", "e => e.getAttribute('d').split('h0').length - 1"
    )
    assert chosen == 12
    opened.page.click(".legend button >> nth=0")
    assert drawn.count() == 1
    fused = next(one for one in data["maps"] if one["title"] == "fused")
    place = fused["pair"].index(data["blends"][0]["pairs"][0])
    box = opened.page.locator("[data-space=fused] svg").bounding_box()
    scale = box["width"] / 1060
    opened.page.locator("[data-space=fused] svg").click(
        position={"x": (fused["x"][place] + 30) * scale, "y": (fused["y"][place] + 30) * scale}
    )
    title = opened.page.text_content("dialog h3")
    assert title in [data["id"][index] for index in data["blends"][0]["pairs"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_small_screen_in_light_and_dark(browser: Any, page: Path, scheme: str) -> None:
    with Opened.at(browser, page, viewport={"width": 360, "height": 740}, color_scheme=scheme) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 360
        ground, ink = opened.page.evaluate(
            "(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))"
        )
        assert (brightness(ground) > brightness(ink)) == (scheme == "light")
        assert opened.complaints == []


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def pairs(n: int, lost: int = 0, **changes: Any) -> dict[str, Any]:
    """Return what the scripts read, of so many pairs."""
    everything = n + lost
    values = {
        "ranked": n,
        "shown": n,
        "quarantined": lost,
        "modalities": [{"name": "text", "colour": 0}, {"name": "image", "colour": 2}],
        "pools": [{"name": "one", "colour": 0}],
        "blends": [{"name": "blend", "note": "", "size": (n + 4) // 5, "pairs": list(range((n + 4) // 5))}],
        "id": [f"pair-{number:05d}" for number in range(everything)],
        "modality": [number % 2 for number in range(everything)],
        "pool": [0] * everything,
        "text": [f"annotation number {number} " + "of many words " * 9 for number in range(everything)],
        "rank": list(range(1, n + 1)),
        "score": [5 - number / 1000 for number in range(n)],
        "distance": [3 - number / 1000 for number in range(n)],
        "details": {},
        "media": {"count": 0, "left_out": 0},
        "maps": [],
    }
    return {**values, **changes}


def written(folder: Path, values: dict[str, Any]) -> Path:
    """Write a page of maps and pairs alone."""
    sections = [Section("spaces", "Spaces", "", [Widget("maps")]), Section("pairs", "Pairs", "", [Widget("pairs")])]
    path = folder / "page.html"
    path.write_text(render(Page("many", "", sections, values)), encoding="utf-8")
    return path


def test_ten_thousand_pairs_are_a_few_elements_at_a_time(browser: Any, tmp_path: Path) -> None:
    space = {"title": "fused", "note": "", "data": 600, "pair": [*range(600), *range(600)]}
    space |= {"x": [number % 1000 for number in range(1200)], "y": [number * 7 % 1000 for number in range(1200)]}
    with Opened.at(browser, written(tmp_path, pairs(10_000, 50, maps=[space]))) as opened:
        counts = {}
        for view in ("top", "near", "bottom", "lost", "all"):
            opened.view(view)
            counts[view] = opened.page.evaluate(ELEMENTS)
        assert max(counts.values()) < 1500, counts
        assert opened.page.locator("tr[data-pair]").count() == 50
        assert opened.page.inner_text("#tab-all small") == "10,050"
        opened.page.locator(".pager button", has_text="Next").click()
        assert opened.page.locator("tr[data-pair]").first.get_attribute("data-pair") == "pair-00050"
        opened.page.fill("#filters input", "number 9999")
        assert opened.page.eval_on_selector_all("tr[data-pair]", "all => all.map(e => e.dataset.pair)") == [
            "pair-09999"
        ]
        assert opened.page.evaluate(ELEMENTS) < 1500
        assert opened.complaints == []

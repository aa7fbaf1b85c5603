"""The page of a real run, as text: what its tables say, that nothing gets out of its data, that it stays the same."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from nemo_mm_rank.errors import UserError
from nemo_mm_rank.report import details, gallery, write_report
from nemo_mm_rank.report.details import parts_of
from nemo_mm_rank.report.overview import findings
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.run import curation
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from tests.integration.runs import QUERY, say
from tests.report.pages import HOSTILE, Elements, data_of

RANKED, LOST = 36, 5
"""Thirty of the demo's, five that mean harm, one of two parts; the demo's four faulty ones and a missing file."""


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


@pytest.fixture(scope="module")
def data(html: str) -> dict[str, Any]:
    return data_of(html)


@pytest.fixture(scope="module")
def manifest(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return values


def test_the_same_run_gives_the_same_bytes(run: Path, page: Path, tmp_path: Path) -> None:
    again = write_report(run, tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()


def test_sections_in_the_order_of_a_readers_questions(elements: Elements) -> None:
    names = [section["id"] for section in elements.named("section")]
    assert names == ["overview", "rows", "trimmed", "scores", "spaces", "pairs", "provenance"]
    assert [link["href"] for link in elements.named("a")] == [f"#{name}" for name in names]


def test_counts_by_step_are_the_manifests(elements: Elements, manifest: dict[str, Any]) -> None:
    head, *rows = elements.tables["Pairs by step and modality"]
    counts = manifest["counts"]
    modalities = sorted(counts["pool"]["in"])
    assert head == ["", *modalities, "all"]
    by_name = {name: [int(cell) for cell in cells] for name, *cells in rows}
    for name, expected in (("pairs in the pool", counts["pool"]["in"]), ("ranked", counts["ranked"])):
        assert by_name[name] == [*(expected[m] for m in modalities), sum(expected.values())]
    assert by_name["blend"] == [*(counts["blend"].get(m, 0) for m in modalities), 12]
    sns = next(step for step in counts["steps"] if step["step"] == "sns")
    assert by_name["sns: trimmed"][-1] == sum(sns["trimmed"].values())
    assert by_name["sns: quarantined"] == [0, 0, 1, 0, 0, 0, 1]


def test_every_reason_is_there_with_its_count(elements: Elements, run: Path) -> None:
    quarantine = pd.read_parquet(run / "quarantine.parquet")
    expected = quarantine.groupby(["step", "error"]).size().to_dict()
    _, *rows = elements.tables["Why rows were quarantined"]
    assert {(step, error): int(n) for step, error, n, _ in rows} == expected
    assert expected == {("pool", "BadRow"): 4, ("sns", "MediaError"): 1}


def test_geometry_has_gap_and_recall_of_every_space(elements: Elements, manifest: dict[str, Any]) -> None:
    head, *rows = elements.tables["Geometry"]
    assert head == ["space", "pairs", "gap", "matched gap", "Recall@1", "Recall@5", "Recall@10"]
    spaces = manifest["projection"]["metrics"]["mean"]
    assert len(rows) == len(spaces)
    fused = spaces["fused"]
    gaps = [f"{fused[g]:.3f} [{fused[f'{g}_low']:.3f}, {fused[f'{g}_high']:.3f}]" for g in ("gap", "matched_gap")]
    recalls = [f"{fused[f'recall_at_{k}']:.3f}" for k in (1, 5, 10)]
    assert rows[-1] == ["fused", str(fused["n"]), *gaps, *recalls]


def test_findings_tell_what_was_checked(html: str) -> None:
    assert "Every row is accounted for: 41 in = 36 ranked + 5 quarantined." in html
    assert "The blend is the one that the manifest describes" in html


def test_a_blend_that_was_changed_is_told(run: Path, tmp_path: Path) -> None:
    opened = Run.open(run)
    manifest = {**opened.manifest, "blend": {**opened.manifest["blend"], "digest": "0"}}
    changed = replace(opened, manifest=manifest)
    assert any(one.mark == "warn" and "digest differs" in one.text for one in findings(changed))


def test_every_pair_is_in_the_data_with_its_rank_and_score(data: dict[str, Any], run: Path) -> None:
    blend = pd.read_parquet(run / "blend.parquet")
    assert data["shown"] == data["ranked"] == RANKED
    assert data["rank"] == list(range(1, RANKED + 1))
    assert data["score"] == sorted(data["score"], reverse=True)
    assert [data["id"][index] for index in data["blends"][0]["pairs"]] == blend["pair_id"].tolist()
    assert data["score"][:12] == pytest.approx(blend["score"].tolist(), abs=1e-4)
    cut = blend["score"].iloc[-1]
    assert data["distance"] == pytest.approx([score - cut for score in data["score"]], abs=2e-4)
    assert len(data["id"]) == RANKED + LOST
    assert [data["details"][str(index)]["lost"][0] for index in range(RANKED, RANKED + LOST)].count("pool") == 4


def test_parts_of_a_score_add_up(data: dict[str, Any]) -> None:
    for index in range(data["shown"]):
        parts = dict(data["details"][str(index)]["parts"])
        assert list(parts) == ["annotation", "experts", "fused", "if match"]
        assert sum(parts.values()) == pytest.approx(data["score"][index], abs=0.003)


def test_texts_are_whole_with_what_was_trimmed(data: dict[str, Any], run: Path) -> None:
    blend = pd.read_parquet(run / "blend.parquet").set_index("pair_id")
    trimmed = 0
    for index in data["blends"][0]["pairs"]:
        pair = blend.loc[data["id"][index]]
        pieces = data["details"][str(index)]["annotation"]
        assert "".join(text for text, _ in pieces) == pair["annotation"]
        spans = pair["sns_annotation_spans"]
        if spans is not None:
            trimmed += 1
            kept = "".join(text for text, kept in pieces if kept)
            for start, end in spans:
                assert pair["annotation"][int(start) : int(end)].strip() in kept
            assert not all(kept for _, kept in pieces)
    assert trimmed > 0


def test_media_of_all_kinds_are_in_the_page(data: dict[str, Any]) -> None:
    kinds = [part["kind"] for detail in data["details"].values() for part in detail.get("data", []) if "src" in part]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"image": 7, "audio": 6, "video": 6}
    corrupt = next(detail for detail in data["details"].values() if "corrupt" in str(detail.get("lost")))
    assert corrupt["lost"][:2] == ["sns", "MediaError"]
    assert corrupt["data"] == []  # what cannot be opened is said once
    assert corrupt["annotation"] == [["The calm blue sea under a clear blue sky.", True]]


def test_data_of_several_parts_is_shown_part_by_part(data: dict[str, Any]) -> None:
    index = data["id"].index("both")
    assert data["modalities"][data["modality"][index]] == {"name": "text+image", "colour": 9}
    text, picture = data["details"][str(index)]["data"]
    assert text == {"kind": "text", "pieces": [["The sea.", True]]}
    assert (picture["kind"], picture["name"]) == ("image", "image/image-000.jpg")
    row = {
        "modality": "text+image",
        "data_parts": [{"modality": "text", "data": "a"}, {"modality": "image", "data": "b"}],
    }
    assert parts_of({**row, "sns_data_spans": [[1, 5, 6, 7, 8], [1, 0, 0, 2, 2]]}) == [
        ("text", "a", None),
        ("image", "b", [[5, 6, 7, 8], [0, 0, 2, 2]]),
    ]


def test_maps_of_every_space_with_data_and_anchors(data: dict[str, Any]) -> None:
    maps = {one["title"]: one for one in data["maps"]}
    assert list(maps) == ["words", "features: text", "fused"]  # six pictures, sounds or films make no map
    for name in ("words", "fused"):
        one = maps[name]
        assert one["data"] == RANKED
        assert sorted(one["pair"][:RANKED]) == sorted(one["pair"][RANKED:]) == list(range(RANKED))
        assert {len(one["x"]), len(one["y"])} == {2 * RANKED}
        assert min(one["x"] + one["y"]) >= 0
        assert max(one["x"]) == 1000 or max(one["y"]) == 720
        assert max(one["x"]) <= 1000
        assert max(one["y"]) <= 720


def test_nothing_breaks_out_of_the_data(html: str, elements: Elements, data: dict[str, Any]) -> None:
    block = html.split('id="data">')[1].split("</script>")[0]
    assert "<" not in block
    assert ">" not in block
    assert len(elements.named("script")) == 2
    assert len(elements.named("img")) == 0
    evil = [index for index, name in enumerate(data["id"]) if name.startswith("evil-") and index < data["shown"]]
    said = ["".join(text for text, _ in data["details"][str(index)]["annotation"]) for index in evil]
    assert sorted(said) == sorted(f"{text} The calm blue sea under a clear sky." for text in HOSTILE)


def test_the_policy_allows_this_style_and_this_script_alone(html: str, elements: Elements) -> None:
    policy = next(meta["content"] for meta in elements.named("meta") if meta.get("http-equiv"))
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    others = {name: value for name, value in rules.items() if name not in ("style-src", "script-src")}
    assert others == {
        "default-src": "'none'",
        "img-src": "data:",
        "media-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [attributes for _, attributes in elements.found if any(name.startswith("on") for name in attributes)]
    assert not [attributes for _, attributes in elements.found if "style" in attributes]


def test_a_large_pool_is_shown_in_part(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Run.open(run)
    for name, value in (("MAX_PAIRS", 9), ("OVERALL", 2), ("EACH", 0), ("PER_REASON", 1)):
        monkeypatch.setattr(gallery, name, value)
    blend = gallery.Blend("blend", "", 12, opened.chosen)
    data, shown = gallery.gallery(opened, [blend], opened.scored.sample(3))
    assert data["ranked"] == RANKED
    assert data["shown"] == len(shown) == 9
    # The first two, the two nearest to the cut (which is the twelfth), the last two; three to be there; others drawn.
    assert {1, 2, 12, RANKED - 1, RANKED} <= set(data["rank"])
    assert data["rank"] == sorted(data["rank"])
    assert data["quarantined"] == LOST
    assert len(data["id"]) == 9 + 2  # one for each of two reasons


def test_media_are_bounded_in_number(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "MAX_MEDIA", 4)
    opened = Run.open(run)
    blend = gallery.Blend("blend", "", 12, opened.chosen)
    data, _ = gallery.gallery(opened, [blend], opened.scored.sample(0))
    parts = [part for detail in data["details"].values() for part in detail.get("data", [])]
    copies = [part for part in parts if "pieces" not in part]
    assert sum("src" in one for one in copies) == 4
    assert data["media"] == {"count": 4, "left_out": len(copies) - 4}
    assert sum("reached its limit" in one.get("missing", "") for one in copies) == len(copies) - 4


def test_a_mix_is_shown_with_its_source_and_advice(run: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(run, tmp_path / "run"))
    result = curation.rank(mixed, {"ranking": {"mix": "unite-adaptation"}, "budget": 12})
    html = write_report(mixed).read_text(encoding="utf-8")
    head, *rows = Elements(html).tables["Mix by type: unite-adaptation"]
    assert head == ["data \N{RIGHTWARDS ARROW} annotation", "share", "quota", "chosen"]
    mix = result.manifest["mix"]
    assert [row[0] for row in rows[: len(mix["types"])]] == [one["type"] for one in mix["types"]]
    assert [int(row[3]) for row in rows] == [
        *(one["chosen"] for one in mix["types"]),
        *([mix["filling"]] if mix["filling"] else []),
    ]
    assert ["image->text", "39.2 %"] in [row[:2] for row in rows]
    assert "2505.19650" in html
    assert mix["advice"]


def test_from_the_command_line(run: Path, page: Path, tmp_path: Path) -> None:
    done = say("report", run, "--output", tmp_path / "p.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "p.html")]
    assert (tmp_path / "p.html").read_bytes() == page.read_bytes()


def test_a_folder_that_is_no_finished_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="contains no finished run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_without_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UserError, match=r"nemo-mm-rank\[report\]"):
        write_report(run, tmp_path / "p.html")


def test_the_objective_is_the_title(html: str) -> None:
    assert f'<h1 dir="auto">{QUERY} + a calm sea &lt;/script&gt;&lt;script&gt;window.hacked = 1' in html


def test_the_least_likely_sentence_is_told(run: Path, data: dict[str, Any]) -> None:
    folder = RunFolder(run)
    shards = State.load(folder).open(folder)
    table = pa.concat_tables(shards.read(part, ["weakest_sentence"]) for part in range(shards.count))
    expected = {" ".join(text.split()) for text in table["weakest_sentence"].to_pylist() if text}
    told = [dict(detail.get("facts", [])).get("least likely sentence") for detail in data["details"].values()]
    found = {text for text in told if text}
    assert found
    assert found <= expected
    assert len(told) > len(list(filter(None, told)))  # most annotations have one sentence

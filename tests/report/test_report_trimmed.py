"""What SNS trimmed, on the page and on the terminal: every pair in one verdict, and what is shown is what was cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.report.trimmed import verdicts
from nemo_mm_rank.run.finished import State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.run.store import ShardStore
from nemo_mm_rank.sns.decide import BACKWARD, BOTH, FORWARD, KEEP, reason, verdict
from nemo_mm_rank.sns.sides import ALL, NONE, ONE, Cut
from tests.command_line import CommandLine
from tests.integration.runs import settings
from tests.report.pages import Elements, data_of


@pytest.mark.parametrize(
    ("chosen", "data", "annotation", "said"),
    [
        (KEEP, ONE, ALL, "nothing to cut"),
        (KEEP, NONE, NONE, "nothing to cut"),
        (KEEP, Cut([[0, 1]], "1 of 2"), ONE, "all refused"),
        (FORWARD, Cut([[0, 1]], "1 of 2"), ONE, "data cut"),
        (BACKWARD, ONE, Cut([[0, 1]], "1 of 2"), "annotation cut"),
        (FORWARD, Cut([[0, 1]], "1 of 2"), Cut([[0, 1]], "1 of 2"), "one of both refused"),
        (BOTH, Cut([[0, 1]], "1 of 2"), Cut([[0, 1]], "1 of 2"), "both cut"),
    ],
)
def test_every_reason_has_its_verdict(chosen: int, data: Cut, annotation: Cut, said: str) -> None:
    assert verdict(reason(chosen, data, annotation)) == said


def test_the_page_counts_every_live_pair_and_shows_cut_ones(run: Path, page: Path) -> None:
    folder = RunFolder.at(run)
    table = State.load(folder).open(folder).table(["pair_id", "modality", "sns_reason", "error"]).to_pandas()
    live = table[table["error"].isna()]
    html = page.read_text(encoding="utf-8")
    head, *rows = Elements(html).tables["Verdicts"]
    modalities = sorted(live["modality"].unique())
    assert head == ["", *modalities, "all"]
    expected = live.assign(said=live["sns_reason"].map(verdict)).groupby(["said", "modality"]).size()
    assert len(rows) == len(verdicts([]))
    for said, *counts in rows:
        assert counts[:-1] == [str(expected.get((said, modality), 0)) for modality in modalities]
    assert sum(int(row[-1]) for row in rows) == len(live)
    data = data_of(html)
    cut = set(live["pair_id"][~live["sns_reason"].str.startswith("untrimmed")])
    shown = [data["id"][index] for index in data["trimmed"]]
    assert set(shown) <= cut
    assert len(set(shown)) == len(shown)
    for modality, own in live[live["pair_id"].isin(cut)].groupby("modality"):
        assert sum(pair in set(own["pair_id"]) for pair in shown) == min(8, len(own)), modality
    assert all(data["details"][str(index)]["sns"] for index in data["trimmed"])


def test_a_preview_trims_as_the_run_would(tmp_path: Path, command_line: CommandLine) -> None:
    pool = make_demo_pool(tmp_path / "pool", 4)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings(pool, tmp_path / "run")), encoding="utf-8")
    status, said = command_line("curate", "-c", config)
    assert status == 0, said
    stage = next((tmp_path / "run" / "steps").glob("sns-*"))
    trimmed = ShardStore((tmp_path / "run" / "pool", stage), 1).table(["pair_id", "sns_reason"]).to_pylist()
    before = sorted(path.name for path in tmp_path.iterdir())
    status, said = command_line("sns", "-c", config, "--preview", 99)
    assert status == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    text = " ".join(said.split())
    for row in trimmed:
        assert row["pair_id"] in text
        assert row["sns_reason"] is None or f"{row['sns_reason']}; cosine" in text
    lines = {line.rsplit(maxsplit=6)[0].strip(): line.split() for line in said.splitlines()[-9:] if line.strip()}
    live = [row for row in trimmed if row["sns_reason"]]
    assert sum(int(cells[-1]) for name, cells in lines.items() if name in verdicts([])) == len(live)
    assert int(lines["failed"][-1]) == len(trimmed) - len(live) > 0


def test_a_preview_shows_what_is_cut_beside_what_is_kept(tmp_path: Path, command_line: CommandLine) -> None:
    pool = tmp_path / "pool.jsonl"
    row = {
        "pair_id": "evil \x1b[31m",
        "modality": "text",
        "data": "A library lends books. The ferry comes weekly.",
        "annotation": "When do books go back to the library? Fish swim.",
    }
    pool.write_text(json.dumps(row) + "\n", encoding="utf-8")
    status, said = command_line("sns", pool, "--sns", "backward")
    assert status == 0, said
    assert "\x1b" not in said
    line = next(line for line in said.splitlines() if line.strip().startswith("annotation"))
    assert re.fullmatch(r" *annotation +When do books[a-z ]+  Fish swim\. *", line), said
    status, said = command_line("sns", pool, "--preview", 0)
    assert status == 2
    status, said = command_line("sns", tmp_path / "none.jsonl")
    assert status == 2
    assert "none.jsonl" in said

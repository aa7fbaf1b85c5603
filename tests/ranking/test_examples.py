"""Objectives by examples: the norm, what never scores itself, every kind of them, every door, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from nemo_mm_rank import curate, frames, rank
from nemo_mm_rank.config import Config, Query, objectives, parse
from nemo_mm_rank.errors import ConfigError, PoolError, UserError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.ranking import ScoreStep, Space
from nemo_mm_rank.ranking.examples import KIND, Examples, Likeness
from nemo_mm_rank.ranking.queries import QueryStep
from nemo_mm_rank.run.curation import explain
from nemo_mm_rank.run.finished import FinishedRun, State
from nemo_mm_rank.run.folder import RunFolder
from nemo_mm_rank.steps import columns_added
from tests.command_line import CommandLine
from tests.integration.faults import make_pools
from tests.integration.runs import digests, settings

ROOT = 0.5**0.5


def vectors(rows: list[list[float] | None]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


def made(columns: dict[str, list[list[float]]], kind: str = "pairs", **query: Any) -> Likeness:
    """Return a query by examples with these embeddings, at most so near to a pair that it counts."""
    n = len(next(iter(columns.values())))
    words = {name: [f"{name}-{number}" for number in range(n)] for name in ("pair_id", "data", "annotation")}
    rows = pa.table({**words, "modality": ["image"] * n, "media_root": ["/examples"] * n, KIND: [kind] * n})
    values = {name: Vectors.full(torch.tensor(column, dtype=torch.float32)) for name, column in columns.items()}
    return Likeness(parse(Query, {"like": "some.jsonl", **query}), Examples(rows, values), "text")


def pool(**columns: pa.Array) -> pa.Table:
    n = len(next(iter(columns.values())))
    words = {name: [f"{name}{number}" for number in range(n)] for name in ("pair_id", "pool", "data")}
    return pa.table({**words, "modality": ["image"] * n, "media_root": ["/pool"] * n, **columns})


EXAMPLES = {"emb_data__clip": [[1.0, 0.0], [0.0, 1.0]], "emb_annotation__text": [[0.0, 1.0], [0.0, -1.0]]}
PAIRS = {
    "emb_fused": vectors([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    "emb_data__clip": vectors([[0.6, -0.8], [3.0, 3.0], None]),
    "emb_annotation__text": vectors([[0.8, 0.6], [1.0, 0.0], [0.0, 2.0]]),
}


@pytest.mark.parametrize(
    ("query", "clip", "text"),
    [
        ({"norm": 2}, [ROOT, ROOT, None], [0.6, 0.0, 1.0]),
        ({"norm": "inf"}, [0.8, ROOT, None], [0.6, 0.0, 1.0]),
        ({"norm": "inf", "side": "data"}, [0.8, ROOT, None], [None] * 3),
        ({"side": "annotation"}, [None] * 3, [0.6, 0.0, 1.0]),
    ],
)
def test_norms_by_hand(query: dict[str, Any], clip: list[float | None], text: list[float | None]) -> None:
    likes = [made(EXAMPLES, **query)]
    spaces = [Space(name, column, torch.zeros(0, 0)) for name, column in SPACES.items()]
    found = columns_added(ScoreStep(spaces, [], likes=likes), pool(**PAIRS)).to_pydict()
    assert found["error"] == [None] * 3
    assert found["cosine__fused"] == [None] * 3  # no example is in that space
    for name, expected in (("clip", clip), ("annotation", text)):
        assert found[f"cosine__{name}"] == [None if one is None else pytest.approx(one, abs=1e-6) for one in expected]


SPACES = {"fused": "emb_fused", "annotation": "emb_annotation__text", "clip": "emb_data__clip"}


@pytest.mark.parametrize("how", ["mean", "max"])
def test_beside_words_and_against(how: Any) -> None:
    likes = [made(EXAMPLES, norm="inf", weight=3.0), made({"emb_data__clip": [[1.0, 0.0]]}, weight=-0.5)]
    query = torch.tensor([[0.0, -1.0]])
    step = ScoreStep([Space("clip", "emb_data__clip", query)], [1.0], how, likes=likes)
    found = columns_added(step, pool(emb_data__clip=vectors([[0.6, -0.8]])))["cosine__clip"][0].as_py()
    expected = (0.8 + 3 * 0.8 - 0.5 * 0.6) / 4 if how == "mean" else (max(0.8, 3 * 0.8) - 0.5 * 0.6) / 3
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_pair_is_no_example_of_itself() -> None:
    likes = [
        made({"emb_data__clip": [[1.0, 0.0], [0.0, 1.0]], "emb_data__words": [[1.0, 0.0], [0.0, 1.0]]}, norm="inf")
    ]
    table = pool(
        # A near duplicate; alike in one space alone; and one that has the very file.
        emb_data__clip=vectors([[0.99, 0.1], [0.99, 0.1], [0.5, 0.5]]),
        emb_data__words=vectors([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]),
    )
    table = table.set_column(2, "data", pa.array(["data0", "data1", "data-1"]))
    table = table.set_column(4, "media_root", pa.array(["/pool", "/pool", "/examples\n/trusted"]))
    found = likes[0].scores(frames.from_table(table))
    length = (0.99**2 + 0.1**2) ** 0.5
    assert found["emb_data__clip"] == pytest.approx([0.1 / length, 0.99 / length, ROOT], abs=1e-6)
    assert likes[0].nearest(frames.from_table(table.slice(2, 1)))[1] == ["pair_id-1"]
    alone = made({"emb_data__clip": [[1.0, 0.0]]})
    step = ScoreStep([Space("clip", "emb_data__clip", torch.zeros(0, 0))], [], likes=[alone])
    added = columns_added(step, pool(emb_data__clip=vectors([[1.0, 0.0], [0.0, 0.0]]))).to_pydict()
    assert added["cosine__clip"] == [None, None]
    assert added["error"] == [None, "rank: EmbeddingError: the vector in 'emb_data__clip' is zero or not finite"]


def test_a_row_is_the_same_wherever_it_stands() -> None:
    rng = np.random.default_rng(0)
    like = made({"emb_data__clip": rng.normal(size=(300, 40)).tolist()})
    table = pool(emb_data__clip=vectors(rng.normal(size=(600, 40)).tolist()))
    whole = like.scores(frames.from_table(table))["emb_data__clip"]
    parts = [like.scores(frames.from_table(table.slice(start, 7)))["emb_data__clip"] for start in range(0, 600, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"text": "x", "like": "y"}, "either a text or"),
        ({"weight": 2.0}, "either a text or"),
        ({"text": "x", "norm": "inf"}, "norm and side apply only to queries by examples"),
        ({"like": "y", "norm": 1}, "queries.0.norm"),
        ({"like": "y", "side": "left"}, "queries.0.side"),
        ({"like": {"path": "y", "rot": "z"}}, "rot: unknown key; did you mean 'root'"),
    ],
)
def test_queries_that_are_refused(query: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Config, {"pools": "p.jsonl", "queries": [query]})
    with pytest.raises(ConfigError, match="positive weight"):
        parse(Config, {"pools": "p.jsonl", "queries": objectives(unlike="y")})


def test_queries_are_read_back_as_they_were() -> None:
    values = {"pools": "p.jsonl", "queries": [*(objectives("x", like="a=0.5") or []), {"like": "b", "norm": "inf"}]}
    config = parse(Config, values)
    assert [query.weight for query in config.queries] == [1.0, 0.5, 1.0]
    again = parse(Config, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True))))
    assert again.queries == config.queries
    assert parse(Query, {"like": "a", "norm": float("inf")}).norm == "inf"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by examples alone, whose folder every test ranks anew."""
    folder = tmp_path_factory.mktemp("examples")
    pool = make_pools(folder / "pool", 6)[1]
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    good = [row for row in rows if row.get("on_topic") and row["modality"] in ("image", "text")][:5]
    lines = [json.dumps({**row, "pair_id": f"good-{number}"}) for number, row in enumerate(good)]
    (pool.parent / "good.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = settings(pool, folder / "run", shards=3, budget="100%")
    del config["queries"]
    return curate(config=config, like=pool.parent / "good.jsonl", progress=False).folder


def test_examples_alone_are_embedded(run: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "steps").rglob("*") if "rank-" not in str(path)}
    first = digests(run)
    (tmp_path / "words.txt").write_text("the calm blue sea\n\n  a green field \n", encoding="utf-8")
    pictures = tmp_path / "pictures" / "below"
    pictures.mkdir(parents=True)
    for name in ("image-000.jpg", "image-002.jpg"):
        shutil.copy(run.parent / "pool" / "image" / name, pictures / f"copy-{name}")
    (tmp_path / "pictures" / "notes.json").write_text("{}")
    found = rank(run, "nature", like=[tmp_path / "words.txt", f"{tmp_path}/pictures=2"], budget=5)
    assert [query.get("weight") for query in found.manifest["config"]["queries"]] == [1.0, 1.0, 2.0]
    state = State.load(RunFolder.at(run))
    words, media = (Examples.load(run / file) for file in state.examples)
    assert words.rows.select(["pair_id", "modality", "data", "annotation"]).to_pylist() == [
        {"pair_id": f"line {number}", "modality": "text", "data": text, "annotation": text}
        for number, text in ((1, "the calm blue sea"), (3, "a green field"))
    ]
    assert media.rows["data"].to_pylist() == ["below/copy-image-000.jpg", "below/copy-image-002.jpg"]
    assert not [name for name in media.columns if name.startswith("emb_annotation")]
    told = explain(run, "image-000")  # a copy of it is among the examples
    assert "does not count as an example of itself: 'below/copy-image-000.jpg'" in told
    assert "like words.txt (2 examples), closest in words: 'line " in told
    kept = {path: path.stat().st_mtime_ns for path in (run / "steps").rglob("*") if "rank-" not in str(path)}
    assert {path: kept.get(path) for path in before} == before
    rank(run, like=run.parent / "pool" / "good.jsonl", budget="100%")
    assert digests(run) == first


def test_the_example_in_the_pool_does_not_lead(run: Path) -> None:
    good = [json.loads(line) for line in (run.parent / "pool" / "good.jsonl").read_text().splitlines()]
    by_data = rank(run, like=run.parent / "pool" / "good.jsonl", budget="100%").blend.set_index("data")
    table = State.load(RunFolder.at(run)).scored(RunFolder.at(run)).table(["data", "cosine__annotation"]).to_pylist()
    own = {row["data"]: row["cosine__annotation"] for row in table}
    assert all(own[row["data"]] < 0.9 for row in good)
    assert len(by_data) == len(own)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_doors_agree(run: Path, tmp_path: Path, command: CommandLine) -> None:
    good = run.parent / "pool" / "good.jsonl"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = {**config, "output": str(tmp_path / "yaml"), "shards": 5, "queries": [{"like": str(good), "norm": "inf"}]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    status, said = command("curate", "--config", tmp_path / "c.yaml")
    assert status == 0, said
    python = rank(run, {"like": good, "norm": "inf"}, budget="100%")
    assert digests(run, ("blend.parquet",)) == digests(tmp_path / "yaml", ("blend.parquet",))
    assert python.manifest["blend"] == json.loads((tmp_path / "yaml" / "manifest.json").read_text())["blend"]
    audio = f"{good.parent / 'audio'}=0.5"
    status, said = command("rank", tmp_path / "yaml", "--like", good, "--unlike", audio, "-b", 4)
    assert status == 0, said
    rank(run, like=good, unlike=audio, budget=4)
    assert digests(run, ("blend.parquet",)) == digests(tmp_path / "yaml", ("blend.parquet",))


def test_pairs_to_come_are_scored_alike(run: Path) -> None:
    good = run.parent / "pool" / "good.jsonl"
    blend = rank(run, like=good, budget="100%").blend.set_index("pair_id")
    finished = FinishedRun.load(run)
    step = QueryStep(finished.config, finished.models, finished.scoring, finished.examples)
    state = State.load(RunFolder.at(run))
    shards = state.open(RunFolder.at(run))
    for part in range(shards.count):
        table = shards.read(part)
        scored = columns_added(step, table)
        for pair_id, score in zip(table["pair_id"].to_pylist(), scored["score"].to_pylist(), strict=True):
            assert (pair_id in blend.index) == (score is not None)
            assert score is None or score == blend.loc[pair_id, "score"]
    stages = pytest.importorskip("nemo_mm_rank.curator", reason="needs the extra 'curator'")
    *_, last = stages.MultimodalRankStage(run=run).decompose()
    assert [like.examples.digest() for like in last.step.likes] == [like.examples.digest() for like in step.likes]
    asked = stages.MultimodalRankWorkflow(pool="p.jsonl", query="x", like="a", unlike="b=2").settings.queries
    assert [(query.label, query.weight) for query in asked] == [("x", 1.0), ("like a", 1.0), ("like b", -2.0)]
    with pytest.raises(ConfigError, match=r"'like good.jsonl' is a query by examples, which a run embeds"):
        QueryStep(finished.config, finished.models)


def test_a_report_shows_them(run: Path) -> None:
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    from nemo_mm_rank.report import write_report

    rank(run, like=run.parent / "pool" / "good.jsonl", budget=5)
    page = write_report(run).read_text("utf-8")
    shown = re.search(r'<ul class="examples">(.*?)</ul>', page, re.DOTALL)
    assert shown is not None
    assert shown[1].count("<li>") == 5
    assert 'src="data:image/jpeg;base64,' in shown[1]
    assert "<title>like good.jsonl" in page


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    before = digests(run)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"modality": "image", "data": "none.jpg", "annotation": "x"}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    for path, kind, message in (
        (tmp_path / "none.jsonl", PoolError, "no such file or folder"),
        (tmp_path / "empty.txt", PoolError, "it contains no example"),
        (tmp_path / "bad.jsonl", PoolError, r"none of its examples can be read; the first row: .*none\.jpg"),
        (tmp_path / "folder", PoolError, "the folder contains no manifest"),
        (
            tmp_path / "broken",
            UserError,
            "none of the 1 examples of 'like broken' can be embedded: experts: MediaError",
        ),
    ):
        with pytest.raises(kind, match=message) as raised:
            rank(run, like=path)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="no example of 'like image' has annotation that is embedded"):
        rank(run, {"like": run.parent / "pool" / "image", "side": "annotation"})
    assert digests(run) == before


def test_a_modality_that_no_expert_embeds(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    texts = [line for line in Path(config["pools"][0]["path"]).read_text().splitlines() if '"modality": "text"' in line]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    experts = [{"name": "words", "kind": "fusion", "encoders": {"text": "text"}}]
    config |= {"pools": str(tmp_path / "texts.jsonl"), "output": str(tmp_path / "run"), "experts": experts}
    config |= {"sns": {"mode": "off"}, "queries": objectives(like=run.parent / "pool" / "image")}
    with pytest.raises(UserError, match=r"examples of 'like image' can be embedded: .* no expert takes image"):
        curate(config=config, progress=False)


def test_some_that_fail_are_said(run: Path, tmp_path: Path, command: CommandLine) -> None:
    for name in ("image-000.jpg", "image-002.jpg"):
        shutil.copy(run.parent / "pool" / "image" / name, tmp_path / name)
    (tmp_path / "image-001.jpg").write_bytes(b"\xff\xd8 no picture")
    status, said = command("rank", run, "--like", tmp_path)
    assert status == 0, said
    assert re.search(r"examples 1 of 'like [^']+' left out, .*: experts: MediaError.*; 2 used", " ".join(said.split()))
    [file] = State.load(RunFolder.at(run)).examples
    assert read_table(run / file)["error"].null_count == 2

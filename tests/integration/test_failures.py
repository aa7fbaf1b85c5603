"""Runs in which much fails: what is said, what stops, and what the next start tries again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage

from nemo_mm_rank import curate
from nemo_mm_rank.errors import ConfigError, FailedError
from nemo_mm_rank.media.segment import Item
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Described
from nemo_mm_rank.models.classical.describe import PlainWords
from tests.integration.runs import digests, say, settings
from tests.integration.user_models import expert_of
from tests.models.chat_server import ChatServer, Reply, chat_server

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"


def write(path: Path, rows: Sequence[dict[str, Any]], *more: str) -> Path:
    path.write_text("\n".join([*map(json.dumps, rows), *more]) + "\n", encoding="utf-8")
    return path


def texts(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"pair_id": f"t{i}", "modality": "text", "data": f"The sea and sky, {i}.", "annotation": f"A text of sea {i}."}
        for i in range(first, first + n)
    ]


def pictures(folder: Path, n: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"pair_id": f"i{i}", "modality": "image", "data": f"{i}.png", "annotation": f"A calm sea {i}."})
    return rows


def counted(run: Path) -> dict[tuple[str, str], int]:
    quarantine = pd.read_parquet(run / "quarantine.parquet")
    return dict(Counter(zip(quarantine["step"].map(str), quarantine["error"].map(str), strict=True)))


@pytest.fixture
def pointers(tmp_path: Path) -> Path:
    """A pool of six pointers in place of pictures, and a line that is no row."""
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_text(POINTER)
    rows = [{"modality": "image", "data": f"{i}.jpg", "annotation": f"a field {i}"} for i in range(6)]
    return write(tmp_path / "pool.jsonl", rows, "no row")


@pytest.mark.parametrize(
    "command", [["curate", "-q", "field"], ["curate", "-q", "field", "--workers", 2], ["ecodatum"]]
)
def test_nothing_is_left(pointers: Path, tmp_path: Path, command: list[object]) -> None:
    for _ in range(2):  # what is kept makes no difference
        done = say(*command, pointers, "-o", tmp_path / "run")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(
            "error: no pair is left of 7 rows: 6 x experts: MediaError: "
            "'0.jpg': cannot be decoded as image: it is a Git LFS pointer"
        )
        assert "; 1 x pool: BadRow: row: expected " in line
        assert f"({tmp_path}/run/quarantine.parquet has all of them)" in line
    assert counted(tmp_path / "run") == {("experts", "MediaError"): 6, ("pool", "BadRow"): 1}
    assert not (tmp_path / "run" / "blend.parquet").exists()


@pytest.mark.parametrize("command", [["curate", "-q", "field"], ["ecodatum"]])
def test_no_row_is_a_pair(tmp_path: Path, command: list[object]) -> None:
    rows = [{"modality": "image", "data": f"{i}.jpg", "annotation": f"a field {i}"} for i in range(8)]
    for shards in ([], ["shards: 2"]):
        (tmp_path / "c.yaml").write_text("\n".join(["rows_per_shard: 3", *shards]))
        done = say(*command, write(tmp_path / "pool.jsonl", rows), "-o", tmp_path / "run", "-c", tmp_path / "c.yaml")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("error: no pair is left of 8 rows: 8 x pool: BadRow: data: expected a media file")
        assert counted(tmp_path / "run") == {("pool", "BadRow"): 8}


@pytest.mark.parametrize("left", [1, 2, 3])
def test_little_is_left(tmp_path: Path, pointers: Path, left: int) -> None:
    pool = write(tmp_path / "more.jsonl", texts(left), *pointers.read_text().splitlines())
    done = say("curate", pool, "-q", "sea", "-b", "100%", "-o", tmp_path / "run")
    assert done.returncode == 0
    assert all(line.startswith("projection: fold ") for line in done.stderr.splitlines())
    assert len(pd.read_parquet(tmp_path / "run" / "blend.parquet")) == left
    # The terminal says why, not only what it is called.
    assert re.search(
        r"experts +MediaError +6 +'0\.jpg': cannot be decoded as image: it is a\s+Git\s+LFS\s+pointer", done.stdout
    )


def describing(server: ChatServer, pool: Path, run: Path, **changes: Any) -> dict[str, Any]:
    models = {
        "text": {"class": "hashed-text", "dim": 64},
        "cap": {
            "class": "openai",
            "model": "m",
            "base_url": server.url,
            "calls": {"retries": 0, "first_wait": 0, "concurrency": 1},
        },
    }
    expert = {"name": "words", "kind": "text-based", "encoder": "text", "describers": {"image": "cap"}}
    return settings(pool, run, models=models, experts=[expert], sns={"mode": "off"}, budget="100%", **changes)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    pytest.importorskip("openai", reason="needs the extra 'models'")
    with chat_server() as started:
        yield started


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(body=b"<html>Please log in</html>"), "EmbeddingError: cap: the answer is not a chat completion"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/"}), "EmbeddingError: cap: HTTP 307"),
        (Reply(204, b""), "EmbeddingError: cap: the answer is not a chat completion"),
    ],
    ids=["HTML", "redirect", "nothing"],
)
def test_an_endpoint_that_never_answers_with_words_stops_the_run(
    server: ChatServer, tmp_path: Path, reply: Reply, said: str
) -> None:
    pool = write(tmp_path / "pool.jsonl", [*texts(4), *pictures(tmp_path, 20)])
    config = describing(server, pool, tmp_path / "run")
    server.plan = [reply] * 60
    with pytest.raises(FailedError) as caught:
        curate(config=config, progress=False)
    line = str(caught.value)
    assert line.startswith(f"experts failed for 20 of 20 pairs of image, most often: 20 x experts: {said}")
    assert "--allow-failures 100%" in line
    assert counted(tmp_path / "run") == {("experts", "EmbeddingError"): 20}
    asked = len(server.bodies)
    result = curate(config={**config, "allow_failures": "100%"}, progress=False)
    assert (len(result.blend), len(result.quarantine), len(server.bodies)) == (4, 20, asked)


def test_few_that_fail_or_not_nearly_all_stop_nothing(server: ChatServer, tmp_path: Path) -> None:
    images = pictures(tmp_path, 20)
    pool = write(tmp_path / "pool.jsonl", [*texts(4), *images])
    server.plan = [Reply(204, b"")] * 18
    assert len(curate(config=describing(server, pool, tmp_path / "run"), progress=False).quarantine) == 18
    with pytest.raises(FailedError, match="experts failed for 18 of 20 pairs of image"):
        curate(config=describing(server, pool, tmp_path / "run", allow_failures="90%"), progress=False)
    few = write(tmp_path / "few.jsonl", [*texts(4), *images[:19]])
    server.plan = [Reply(204, b"")] * 19
    loader.release()
    assert len(curate(config=describing(server, few, tmp_path / "few"), progress=False).quarantine) == 19
    with pytest.raises(ConfigError, match="allow_failures"):
        curate(config=describing(server, pool, tmp_path / "run", allow_failures="much"), progress=False)


def test_what_may_pass_is_tried_again_and_nothing_else(server: ChatServer, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", [*texts(4), *pictures(tmp_path, 8)])
    healthy = curate(config=describing(server, pool, tmp_path / "healthy", rows_per_shard=4), progress=False)
    loader.release()
    server.bodies.clear()
    # Of two shards of pictures one has an error that may pass, the other one that does not.
    server.plan = [Reply(), Reply(500), Reply(), Reply(), Reply(400), Reply()]
    config = describing(server, pool, tmp_path / "run", rows_per_shard=4)
    sick = curate(config=config, progress=False)
    assert sorted(zip(sick.quarantine["pair_id"], sick.quarantine["error"], strict=True)) == [
        ("i1", "TransientError"),
        ("i4", "EmbeddingError"),
    ]
    assert sick.quarantine["message"].tolist() == ["cap: HTTP 500 (after 1 attempts)", "cap: HTTP 400"]
    note = "1 pair failed for reasons that may be temporary: the next start of the same command tries it again"
    assert note in sick.manifest["notes"]
    assert len(server.bodies) == 8
    again = curate(config=config, progress=False)
    assert again.quarantine["pair_id"].tolist() == ["i4"]
    assert note not in again.manifest["notes"]
    assert 9 <= len(server.bodies) <= 12  # of the other shard nothing
    asked = len(server.bodies)
    curate(config=config, progress=False)
    assert len(server.bodies) == asked
    last = curate(config={**config, "retry_failed": True}, progress=False)
    assert last.quarantine.empty
    assert asked < len(server.bodies) <= asked + 4
    assert digests(last.folder) == digests(healthy.folder)


class Picky(PlainWords):
    """Raises for small pictures, one by one or with whatever they stand beside."""

    def __init__(self, side: int) -> None:
        super().__init__("picky")
        self._side = side

    def describe(self, items: Sequence[Item], modality: str) -> Described:
        for item in items:
            if item.nbytes < 3 * self._side**2:  # type: ignore[union-attr]
                raise ZeroDivisionError(f"side {self._side}")
        return super().describe(items, modality)


@pytest.mark.parametrize("sns", ["off", "bidirectional"])
def test_what_a_model_raises_for_one_item_is_that_items(tmp_path: Path, sns: str) -> None:
    images = pictures(tmp_path, 6)
    PILImage.new("RGB", (8, 8), (9, 99, 200)).save(tmp_path / "3.png")
    pool = write(tmp_path / "pool.jsonl", [*texts(3), *images])
    config = settings(pool, tmp_path / "run", budget="100%", sns={"mode": sns})
    config["models"]["words"] = {"class": "tests.integration.test_failures:Picky", "side": 16}
    result = curate(config=config, progress=False)
    assert result.quarantine["pair_id"].tolist() == ["i3"]
    [message] = result.quarantine["message"]
    assert re.fullmatch(r"picky failed with ZeroDivisionError: side 16 \(test_failures.py, line \d+\)", message)
    assert len(result.blend) == 8


def test_columns_that_go_by_other_names_are_said(tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", [{**row, "score": 1.5} for row in texts(6)])
    done = say("curate", pool, "-q", "sea", "-o", tmp_path / "run")
    note = "columns with names that nemo-mm-rank uses itself are kept under other names: 'score' as 'original_score'"
    assert f"note        {note}\n" in done.stdout
    assert note in json.loads((tmp_path / "run" / "manifest.json").read_text())["notes"]
    again = say("rank", tmp_path / "run", "-q", "sky")
    assert f"note        {note}\n" in again.stdout


def test_refused_before_anything_is_read(tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", texts(6))
    own = settings(pool, tmp_path / "run", **expert_of({"class": "hashed-text"}))
    for changes, said in (
        ({"engine": {"device": "cudaa"}}, "device: 'cudaa' is not available here; the devices are cpu"),
        ({"queries": "?!"}, "contains neither a letter nor a digit"),
    ):
        with pytest.raises(ConfigError, match=said):
            curate(config={**own, **changes}, progress=False)
        assert not (tmp_path / "run").exists()
    quotas = {"quota_by": "pool", "quotas": {"pol": 0.5}}
    with pytest.raises(ConfigError, match="there is no pool 'pol'; did you mean 'pool'"):
        curate(config={**own, "ranking": quotas}, progress=False)
    assert not (tmp_path / "run" / "steps").exists()


def test_ranking_over_a_shard_that_is_gone(tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", texts(12))
    assert say("curate", pool, "-q", "sea", "-o", tmp_path / "run", "--shards", 3).returncode == 0
    [part] = (tmp_path / "run").glob("steps/experts-*/part-00001.parquet")
    part.unlink()
    for command in (["rank", "-q", "sky"], ["report"], ["explain", "t1"]):
        done = say(command[0], tmp_path / "run", *command[1:])
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"{part.relative_to(tmp_path / 'run')} is missing" in done.stderr
    assert say("curate", pool, "-q", "sea", "-o", tmp_path / "run", "--shards", 3).returncode == 0
    assert part.exists()

"""Flipped bits: what is damaged is made anew or named in one line; never a traceback, never another blend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from nemo_mm_rank.cli import app
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import DamagedError, UserError
from nemo_mm_rank.io.files import is_sound, read_note, read_sealed, read_table, write_sealed, write_table
from tests.integration.runs import digests, settings

KINDS = {
    "pool": "pool/part-*",
    "bad rows": "pool/bad_rows.parquet",
    "stamps": "pool/stamps.parquet",
    "record": "pool/ingest.json",
    "statistics": "fitted/text-*.safetensors",
    "seal": "fitted/.*.seal",
    "projection": "fitted/projection-*/model.safetensors",
    "networks": "fitted/projection-*/config.json",
    "banks": "fitted/matching-*/banks.safetensors",
    "judges": "fitted/matching-*/judges.json",
    "scoring": "fitted/scoring-*.json",
    "sns": "steps/sns-*/part-*",
    "experts": "steps/experts-*/part-*",
    "fused": "steps/projection-*/part-*",
    "matched": "steps/match-*/part-*",
    "scores": "steps/rank-*/part-*",
    "chosen": "ranking/*",
    "state": "state.json",
    "configuration": "config.yaml",
    "blend": "blend.parquet",
    "quarantine": "quarantine.parquet",
    "manifest": "manifest.json",
}
"""Every kind of file that a run leaves and reads again."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run, as a file; the run lies beside it."""
    folder = tmp_path_factory.mktemp("damage")
    values = settings(make_demo_pool(folder / "pool", 3), folder / "run", shards=2, jsonl=False, budget=15)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert say("curate", "-c", path).exit_code == 0
    return path


@pytest.fixture
def run(config: Path) -> Iterator[Path]:
    """A copy of the run that a test may damage, at the place of the run itself."""
    own, kept = config.parent / "run", config.parent / "kept"
    if not kept.exists():
        shutil.copytree(own, kept)
    yield own
    shutil.rmtree(own)
    shutil.copytree(kept, own)


OUTCOME = ("blend.parquet", "quarantine.parquet", "manifest.json")


def say(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(one) for one in arguments])


def flip(path: Path, random: Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def damage(run: Path, kind: str, random: Random) -> Path:
    """Flip one bit in one file of a kind."""
    path = random.choice(sorted(path for path in run.glob(KINDS[kind]) if path.is_file()))
    flip(path, random)
    return path


def check_refused(said: Result, file: Path | None = None) -> None:
    """See that a command ended with one line, about a file where one is given."""
    assert isinstance(said.exception, UserError), said.exception  # which is one line and exit status 2
    assert "\n" not in str(said.exception)
    assert file is None or file.name in str(said.exception)


def test_every_bit_of_a_table_counts(tmp_path: Path) -> None:
    path, damaged = tmp_path / "a.parquet", tmp_path / "b.parquet"
    table = pa.table({"pair_id": ["a", "b"], "x": pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))})
    write_table(path, table, {"key": "k"})
    assert read_table(path).equals(table)
    assert read_note(path) == {"key": "k"}
    content = path.read_bytes()
    unseen = 0
    for bit in range(8 * len(content)):
        other = bytearray(content)
        other[bit // 8] ^= 1 << bit % 8
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(other)
        if is_sound(damaged):  # the seal itself is not to be seen
            unseen += 1
            try:
                assert read_table(damaged).equals(table)
                assert read_note(damaged) in (None, {"key": "k"}) or set(read_note(damaged) or {}) > {"key"}
            except DamagedError:
                pass
    assert unseen < 8 * 16
    for length in range(0, len(content), 7):
        damaged.write_bytes(content[:length])
        assert read_note(damaged) is None
        with pytest.raises(DamagedError, match=r"b\.parquet: missing, damaged or edited; curate"):
            read_table(damaged)


def test_every_bit_of_a_record_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {"folds": 4, "seed": 10, "words": ["ä", '"seal": "']}
    write_sealed(path, values)
    assert read_sealed(path) == values
    assert list(json.loads(path.read_text("utf-8"))) == ["folds", "seed", "words", "seal"]
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        other = bytearray(content)
        other[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(other)
        try:
            found = read_sealed(path)
        except DamagedError:
            continue
        assert {name: found.get(name) for name in values} == values


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("manifest", "state")])
@pytest.mark.parametrize("seed", range(2))
def test_an_interrupted_run(run: Path, config: Path, kind: str, seed: int) -> None:
    expected = digests(config.parent / "kept", OUTCOME)
    random = Random(f"{kind} {seed}")
    (run / "manifest.json").unlink()
    (run / "state.json").unlink()
    damage(run, kind, random)
    said = say("curate", "-c", config)
    assert said.exit_code == 0, said.output
    assert digests(run, OUTCOME) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run(run: Path, config: Path, kind: str, tmp_path: Path) -> None:
    expected = digests(config.parent / "kept", OUTCOME)
    told = say("explain", run, "text-001").stdout
    file = damage(run, kind, Random(f"finished {kind}"))
    commands: dict[str, tuple[Any, ...]] = {
        "explain": ("explain", run, "text-001"),
        "export": ("export", run, "-o", tmp_path / "tars"),
        "report": ("report", run, "-o", tmp_path / "page.html"),
        "rank": ("rank", run, "-q", "beeps"),
    }
    for name, command in commands.items():
        said = say(*command)
        if said.exit_code or said.exception:
            check_refused(said, None if kind in ("seal", "scoring") else file)
        elif name == "explain":
            assert said.stdout == told
    said = say("curate", "-c", config)
    assert said.exit_code == 0, said.output
    assert digests(run, OUTCOME) == expected


def test_half_a_fit_is_in_nobodys_way(run: Path, config: Path) -> None:
    expected = digests(run, OUTCOME)
    for pattern in ("projection-*", "matching-*"):
        [fitted] = run.glob(f"fitted/{pattern}")
        for path in sorted(fitted.iterdir())[:-1]:
            path.unlink()
    check_refused(say("rank", run, "-q", "beeps"))
    assert say("curate", "-c", config).exit_code == 0
    assert digests(run, OUTCOME) == expected


def test_a_mark_is_named(run: Path, config: Path) -> None:
    (run / "pool" / ".nemo-mm-rank.json").write_text("{", encoding="utf-8")
    said = say("curate", "-c", config)
    check_refused(said)
    assert ".nemo-mm-rank.json in it is damaged, or was not made by nemo-mm-rank" in str(said.exception)
    shutil.rmtree(run / "pool")
    expected = digests(run, OUTCOME)
    assert say("curate", "-c", config).exit_code == 0
    assert digests(run, OUTCOME) == expected


def test_media_that_were_replaced_are_named(run: Path, config: Path, tmp_path: Path) -> None:
    whole = say("export", run, "-o", tmp_path / "a")
    assert whole.exit_code == 0
    blend = read_table(run / "blend.parquet").to_pylist()
    pair = next(row for row in blend if row["modality"] == "image")
    picture = config.parent / "pool" / pair["data"]
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    with pytest.warns(UserWarning, match="have media that were replaced") as told:
        said = say("export", run, "-o", tmp_path / "b")
    assert said.exit_code == 0
    assert say("report", run, "-o", tmp_path / "page.html").exit_code == 0
    [note] = {str(one.message) for one in told}
    assert note == (
        f"1 of {len(blend)} pairs of the blend have media that were replaced or lost after the run read them "
        f"(another size or time): {pair['pair_id']!r}; curate with the same configuration reads them again"
    )
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "have media that were replaced or lost after the run read them" in page

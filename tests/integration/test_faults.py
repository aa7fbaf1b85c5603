"""What goes wrong with one pair is that pair's, with a reason; what goes wrong with the run is one line."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nemo_mm_rank import curate
from nemo_mm_rank.errors import ModelError, PoolError, UserError
from nemo_mm_rank.io.files import TEMPORARY
from nemo_mm_rank.run.curation import Result
from tests.integration.faults import RANKED, UNREADABLE, Odd, make_pools
from tests.integration.runs import command, digests, settings
from tests.integration.user_models import expert_of

OWN = "tests.integration.user_models:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def pools(folder: Path) -> tuple[Path, Path, list[Odd]]:
    return make_pools(folder / "pool", 6)


@pytest.fixture(scope="module")
def clean(folder: Path, pools: tuple[Path, Path, list[Odd]]) -> Result:
    """A run without the pairs that go wrong; all pairs are chosen, so that the blend shows every score."""
    return curate(config=settings(pools[1], folder / "clean", budget="100%"), progress=False)


@pytest.fixture(scope="module")
def faulty(folder: Path, pools: tuple[Path, Path, list[Odd]], clean: Result) -> Result:
    """The same with them, three rows a shard; words weigh as they do without them."""
    config = settings(pools[0], folder / "faulty", budget="100%", rows_per_shard=3)
    config["models"]["text"]["statistics"] = str(next((clean.folder / "fitted").glob("text-*.safetensors")))
    return curate(config=config, progress=False)


def reasons(quarantine: pd.DataFrame) -> Iterator[tuple[str | None, str]]:
    for row in quarantine.to_dict("records"):
        yield None if pd.isna(row["pair_id"]) else row["pair_id"], f"{row['step']}: {row['error']}: {row['message']}"


def test_every_bad_pair_is_quarantined_with_one_clear_line(pools: tuple[Path, Path, list[Odd]], faulty: Result) -> None:
    waiting = list(reasons(faulty.quarantine))
    expected = [(one.row["pair_id"], one.expected) for one in pools[2] if one.expected != RANKED]
    for pair_id, pattern in [*expected, *((None, f"pool: BadRow: {pattern}") for _, pattern in UNREADABLE)]:
        found = [one for one in waiting if one[0] == pair_id and re.match(pattern, one[1])]
        assert found, (pair_id, pattern, [said for name, said in waiting if name == pair_id])
        waiting.remove(found[0])
    assert waiting == []
    assert all(line.isprintable() and len(line) < 300 for _, line in reasons(faulty.quarantine))


def test_what_is_only_odd_is_ranked(pools: tuple[Path, Path, list[Odd]], faulty: Result) -> None:
    odd = {one.row["pair_id"] for one in pools[2] if one.expected == RANKED}
    assert odd <= set(faulty.blend["pair_id"])
    assert len(odd) == 19, odd


def test_rows_in_are_ranked_and_quarantined(pools: tuple[Path, Path, list[Odd]], faulty: Result) -> None:
    rows = len(pools[0].read_bytes().splitlines())
    assert rows == len(faulty.blend) + len(faulty.quarantine)
    counts = faulty.manifest["counts"]
    assert counts["pool"]["rows"] == rows
    assert sum(counts["ranked"].values()) == len(faulty.blend)
    assert counts["quarantined"] == len(faulty.quarantine)


def test_the_rest_of_the_run_is_as_if_they_had_not_been_there(clean: Result, faulty: Result) -> None:
    assert clean.quarantine.empty
    names = ("blend.parquet", "blend.jsonl")
    assert digests(clean.folder, names) == digests(faulty.folder, names)


def test_bad_rows_stop_the_run_where_they_are_to(pools: tuple[Path, Path, list[Odd]], tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"^19 of \d+ rows are bad\n.*faulty.jsonl:\d+:") as caught:
        curate(config=settings(pools[0], tmp_path / "run", on_bad_row="fail"), progress=False)
    assert len(str(caught.value).splitlines()) == 7  # five of them, and how many more
    assert not (tmp_path / "run" / "blend.parquet").exists()


@pytest.fixture(scope="module")
def texts(folder: Path) -> Path:
    """Pairs of text, three of which a model is to fail on."""
    data = [f"A passage of number {n}." + " The word is xyzzy." * (n in (3, 11)) for n in range(16)]
    rows = [{"modality": "text", "pair_id": f"t{n}", "data": text} for n, text in enumerate(data)]
    annotations = [f"Number {n}{' xyzzy' * (n == 7)}." for n in range(16)]
    lines = [json.dumps({**row, "annotation": text}) for row, text in zip(rows, annotations, strict=True)]
    path = folder / "texts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("sns", ["off", "bidirectional"])
def test_nan_from_a_model_is_that_pairs_own(texts: Path, tmp_path: Path, sns: str) -> None:
    own = expert_of({"class": OWN + "NotANumber", "word": "xyzzy"})
    config = settings(texts, tmp_path / "run", budget="100%", **own, sns={"mode": sns}, rows_per_shard=6)
    result = curate(config=config, progress=False)
    step = "experts" if sns == "off" else "sns"
    line = f"{step}: EmbeddingError: NotANumber gave a vector that is not finite, or zero"
    assert sorted(reasons(result.quarantine)) == [("t11", line), ("t3", line), ("t7", line)]
    assert set(result.blend["pair_id"]) == {f"t{n}" for n in range(16)} - {"t3", "t7", "t11"}
    assert result.blend["score"].notna().all()


def test_a_query_that_is_no_number_is_refused(texts: Path, tmp_path: Path) -> None:
    own = expert_of({"class": OWN + "NotANumber", "word": "xyzzy"})
    with pytest.raises(UserError, match=r"^query 'find xyzzy' cannot be embedded by 'text': .*not finite"):
        curate(texts, "find xyzzy", config=own, output=tmp_path / "run", progress=False)


def test_a_describer_that_has_no_words_for_a_picture(pools: tuple[Path, Path, list[Odd]], tmp_path: Path) -> None:
    config = settings(pools[1], tmp_path / "run", budget="100%")
    config["models"]["words"] = {"class": OWN + "Speechless"}
    with pytest.raises(ModelError, match=r"^speechless failed with KeyError: 'film' \(user_models.py, line \d+\)$"):
        curate(config=config, progress=False)
    lines = [line for line in pools[1].read_text("utf-8").splitlines() if '"modality": "video"' not in line]
    still = pools[1].with_name("still.jsonl")
    still.write_text("\n".join(lines), encoding="utf-8")
    result = curate(config={**config, "pools": str(still)}, progress=False, overwrite=True)
    assert list(reasons(result.quarantine)) == [
        ("image-pixel", "sns: EmbeddingError: speechless has no description for it")
    ]


def stopped(arguments: list[object], cwd: Path, limit: int | None = None) -> str:
    """Run a command that has to stop with exit status 2, and return the one line that it says."""

    def bounded() -> None:
        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        preexec_fn=bounded if limit is not None else None,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(json.dumps(config), encoding="utf-8")  # which is YAML
    return path


@pytest.mark.slow
def test_a_model_that_fails_for_whatever_it_is_given_stops_the_run(texts: Path, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("user_models.py"), tmp_path / "my_models.py")
    own = expert_of({"class": "my_models:OutOfMemory", "word": ""})
    config = settings(texts, tmp_path / "run", **own, rows_per_shard=4, import_from=".")
    line = stopped(["curate", "-c", written(tmp_path / "c.yaml", config)], tmp_path)
    assert re.fullmatch(r"OutOfMemory failed with RuntimeError: out of memory \(my_models.py, line \d+\)", line)
    assert not (tmp_path / "run" / "blend.parquet").exists()
    # The same line from a worker, which has the class by its import path too.
    line = stopped(["curate", "-c", tmp_path / "c.yaml", "--workers", 1], tmp_path)
    assert line.startswith("OutOfMemory failed with RuntimeError: out of memory")


@pytest.mark.parametrize("sns", ["off", "bidirectional"])
def test_a_batch_that_a_model_fails_for_is_tried_by_halves(texts: Path, tmp_path: Path, sns: str) -> None:
    own = expert_of({"class": OWN + "OutOfMemory", "word": "xyzzy"})
    config = settings(texts, tmp_path / "run", budget="100%", **own, sns={"mode": sns}, rows_per_shard=6)
    result = curate(config=config, progress=False)
    step = "experts" if sns == "off" else "sns"
    found = sorted(reasons(result.quarantine))
    assert [pair_id for pair_id, _ in found] == ["t11", "t3", "t7"]
    line = rf"{step}: EmbeddingError: OutOfMemory failed with RuntimeError: out of memory \(user_models.py, line \d+\)"
    assert all(re.fullmatch(line, said) for _, said in found)
    assert set(result.blend["pair_id"]) == {f"t{n}" for n in range(16)} - {"t3", "t7", "t11"}


def test_pickles_are_no_weights(texts: Path, tmp_path: Path) -> None:
    torch.save({"counts": torch.zeros(3)}, tmp_path / "counts.safetensors")
    statistics = {"class": "hashed-text", "statistics": str(tmp_path / "counts.safetensors")}
    config = settings(texts, tmp_path / "run", **expert_of(statistics))
    line = stopped(["curate", "-c", written(tmp_path / "c.yaml", config)], tmp_path)
    assert line.startswith(f"statistics {tmp_path}/counts.safetensors: ")
    assert not (tmp_path / "run" / "blend.parquet").exists()


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_nothing_half(
    pools: tuple[Path, Path, list[Odd]], clean: Result, tmp_path: Path
) -> None:
    config = settings(pools[1], tmp_path / "run", shards=2)
    config["models"]["text"]["statistics"] = str(next((clean.folder / "fitted").glob("text-*.safetensors")))
    path = written(tmp_path / "c.yaml", config)
    # Bytes a file may have, and what is the first to have more.
    for limit, full in ((2_000, "pool/part-00000"), (20_000, "steps/experts-"), (1_000_000, "fitted/projection-")):
        line = stopped(["curate", "-c", path], tmp_path, limit)
        assert re.fullmatch(rf"{re.escape(f'{tmp_path}/run/{full}')}\S*: cannot be written: File too large", line)
        assert list((tmp_path / "run").rglob(f"*{TEMPORARY}")) == []
        assert not (tmp_path / "run" / "blend.parquet").exists()
    undisturbed = curate(config={**config, "output": str(tmp_path / "undisturbed")}, progress=False)
    curate(config=config, progress=False)
    assert digests(tmp_path / "run") == digests(undisturbed.folder)

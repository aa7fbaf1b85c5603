"""A pool with data of several parts through the whole job, the same to the byte wherever and however it is cut."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nemo_mm_rank import curate, frames
from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS, PoolSource, SNSSettings
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.io.files import read_table
from nemo_mm_rank.io.pool import read_pools
from nemo_mm_rank.models.classical.text import HashedText
from nemo_mm_rank.run.curation import Result, explain, rank
from nemo_mm_rank.run.export import export as export_run
from nemo_mm_rank.sns.step import SNSStep
from tests.integration.runs import digests, settings
from tests.parts_pool import COMBINATIONS, parts_pool, write

PAIRS = 5
FAULTS = {
    "gone": (
        "pool",
        "BadRow",
        "data: expected a media file below the pool's root, found no such file: 'no.jpg' (image part)",
    ),
    "broken": ("sns", "MediaError", "image part: 'broken.jpg': is not an image"),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    rows = parts_pool(folder, PAIRS)
    for name, file in (("gone", "no.jpg"), ("broken", "broken.jpg")):
        parts = [{"modality": "text", "data": "A field by the sea."}, {"modality": "image", "data": file}]
        rows.insert(7, {"pair_id": name, "data": parts, "annotation": "A green field."})
    (folder / "broken.jpg").write_bytes(b"no picture")
    return write(folder / "pool.jsonl", rows)


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return curate(config=settings(pool, tmp_path_factory.mktemp("whole") / "run", shards=1, budget=25), progress=False)


def test_every_row_is_ranked_or_says_why_not(whole: Result) -> None:
    counts = whole.manifest["counts"]
    assert counts["ranked"] == dict.fromkeys([*COMBINATIONS, "audio", "code", "image", "text", "video"], PAIRS)
    assert counts["pool"] == {"rows": 42, "bad_rows": 1, "in": {**counts["ranked"], "text+image": PAIRS + 1}}
    found = whole.quarantine.set_index("pair_id")
    assert set(found.index) == set(FAULTS)
    for pair, (step, error, message) in FAULTS.items():
        row = found.loc[pair]
        assert (row["step"], row["error"]) == (step, error)
        assert row["message"].startswith(message)
        assert row["modality"] == "text+image"


def test_the_blend_has_the_parts(whole: Result, pool: Path) -> None:
    blend = whole.blend
    given = pd.read_json(pool, lines=True).set_index("pair_id")["data"]
    several = blend[blend["modality"].str.contains("+", regex=False)]
    assert len(several) >= 3
    for row in several.to_dict("records"):
        assert [dict(part) for part in row["data_parts"]] == given[row["pair_id"]]
        assert row["data"] == "\n".join(part["data"] for part in row["data_parts"])
    assert blend[~blend.index.isin(several.index)]["data_parts"].isna().all()


def test_parts_are_trimmed_each_by_itself(whole: Result) -> None:
    pairs = whole.pairs(["pair_id", "modality", "sns_data_spans", "sns_reason"])
    several = pairs[pairs["modality"].str.contains("+", regex=False)].dropna(subset=["sns_data_spans"])
    assert len(several) >= 3
    for row in several.to_dict("records"):
        assert all(len(span) in (3, 5) and span[0] in (0, 1) for span in row["sns_data_spans"])
    kept = Counter(int(span[0]) for spans in several["sns_data_spans"] for span in spans)
    assert set(kept) == {0, 1}


@pytest.mark.parametrize("pieces", [{"shards": 7}, {"shards": 3, "engine": {"workers": 2}}])
def test_in_pieces_and_on_workers(pool: Path, whole: Result, tmp_path: Path, pieces: dict[str, object]) -> None:
    if "engine" in pieces:
        pytest.importorskip("distributed", reason="needs the extra 'dask'")
    result = curate(config=settings(pool, tmp_path / "run", budget=25, **pieces), progress=False)
    assert digests(result.folder) == digests(whole.folder)


def test_words_of_parts_count(whole: Result, pool: Path) -> None:
    """The texts of parts are counted with the others: as many documents as texts, code and annotations there are."""
    [file] = (whole.folder / "fitted").glob("text-*.safetensors")
    found = load_file(file)
    [batch] = read_pools([PoolSource(path=str(pool))])
    texts: list[str] = batch.pairs["annotation"].to_pylist()
    for modality, data, parts in zip(
        *(batch.pairs[n].to_pylist() for n in ("modality", "data", "data_parts")), strict=True
    ):
        texts += [part["data"] for part in parts or () if part["modality"] in ("text", "code")]
        texts += [data] if modality in ("text", "code") else []
    counts = torch.from_numpy(HashedText(dim=128).count(texts))
    assert any(torch.equal(value.long().view(-1), counts) for value in found.values() if value.numel() == len(counts))


def test_a_quota_for_a_class_of_several_parts(whole: Result, pool: Path, tmp_path: Path) -> None:
    ranking = {"quota_by": "modality", "quotas": {"text+image": 0.4, "audio": 0.2}, "shortage": "leave"}
    config = settings(pool, tmp_path / "run", shards=1, budget=10, ranking=ranking)
    counts = curate(config=config, progress=False).manifest["counts"]["blend"]
    assert (counts["text+image"], counts["audio"]) == (4, 2)


def test_what_else_is_done_with_a_run(whole: Result, tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    whole.print(console)
    assert "text+" in console.export_text()
    first = whole.blend.iloc[0]["pair_id"]
    assert f"{first} (" in explain(whole.folder, first)
    [tar] = export_run(whole.folder, tmp_path / "tars")
    with tarfile.open(tar) as archive:
        members = Counter(name.partition(".")[2] for name in archive.getnames())
    several = whole.blend["modality"].value_counts()
    assert members["2.jpg"] == several["text+image"]
    assert members["1.jpg"] == members["2.wav"] == several["image+audio"]


def test_another_query(whole: Result, pool: Path, tmp_path: Path) -> None:
    run = curate(config=settings(pool, tmp_path / "run", shards=2, budget=25), progress=False)
    other = rank(run.folder, {"queries": "beeps and tones", "budget": 5})
    assert len(other.blend) == 5
    assert (other.blend["data_parts"].notna() == other.blend["modality"].str.contains("+", regex=False)).all()


def test_steps_over_a_collection_of_the_users_own(pool: Path, whole: Result) -> None:
    dd = pytest.importorskip("dask.dataframe", reason="needs the extra 'dask'")
    frame = frames.from_table(read_table(whole.folder / "pool" / "part-00000.parquet"))
    steps = [
        SNSStep(SNSSettings(mode="bidirectional"), CLASSICAL_EXPERTS[0], CLASSICAL_MODELS),
        ExpertStep(CLASSICAL_EXPERTS, CLASSICAL_MODELS, anchor="text"),
    ]
    expected, collection = frame, dd.from_pandas(frame, npartitions=3)
    for step in steps:
        expected = step(expected)
        collection = collection.map_partitions(step, meta=step.meta(collection._meta))
    found = frames.to_table(collection.compute(scheduler="synchronous"))
    assert found.cast(frames.to_table(expected).schema).equals(frames.to_table(expected))

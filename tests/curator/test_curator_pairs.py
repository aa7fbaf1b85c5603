from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from nemo_curator.stages.audio.io.convert import AudioToDocumentStage
from nemo_curator.stages.text.io.reader import JsonlReader, ParquetReader
from nemo_curator.tasks import AudioTask, DocumentBatch, ImageBatch
from nemo_curator.utils.performance_utils import StagePerfStats
from omegaconf import OmegaConf

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.curator import (
    BlendWriter,
    ExpertEmbeddingStage,
    MultimodalRankStage,
    MultimodalRankWorkflow,
    PairColumnsStage,
    PoolReader,
    QuarantineStage,
    RankScoreStage,
)
from nemo_mm_rank.errors import ConfigError, MissingColumnError, PoolError
from nemo_mm_rank.io.batches import in_memory, pair_table
from nemo_mm_rank.run.curation import Result
from nemo_mm_rank.schema import ANNOTATION, CANONICAL, DATA, DATA_BYTES, ERROR, MEDIA_ROOT, PAIR_ID, POOL

CAPTIONS = {"pair_id": "id", "data": "image", "annotation": "caption"}
GIF = base64.b64decode("R0lGODlhAQABAIAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==")


def as_pairs(data: Any, root: Path | None = None, **source: Any) -> pa.Table:
    known = PoolSource.model_validate({"path": "-", **source})
    return pair_table(in_memory(data, "batch"), known, "mine", None if root is None else str(root))


def images(folder: Path) -> list[dict[str, Any]]:
    (folder / "a.gif").write_bytes(GIF)
    rows = [{"id": 1, "image": "a.gif", "caption": "A dot.", "url": "u1"}, {"id": 2, "image": "b.gif", "caption": "?"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": 3, "image": "a.gif"}]))
    return rows


def test_every_row_in_its_place_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(GIF)
    frame = pd.DataFrame(
        {
            "id": [1, 2, 1, 3, None],
            "image": ["a.gif", "gone.gif", "a.gif", 7, "a.gif"],
            "caption": ["A dot.", "A cat.", "Again.", "?", "No id."],
            "stars": [1.5, 2.0, 3.0, 4.0, 5.0],
            "score": [1, 2, 3, 4, 5],
        }
    )
    frame["id"] = frame["id"].astype("Int64")
    for data in (frame, frame.drop(index=3)):  # a column of several types, and one that Arrow can hold
        table = as_pairs(data, tmp_path, fields=CAPTIONS, modality="image")
        assert table[PAIR_ID].to_pylist()[:3] == ["1", "2", "1"]
        assert table[ERROR].to_pylist()[:3] == [
            None,
            "pool: BadRow: data: expected a media file below the pool's root, found no such file: 'gone.gif' (batch:2)",
            "pool: BadRow: pair_id: expected an id that no other row has, found the id of batch:1 again (batch:3)",
        ]
        assert table["stars"].to_pylist()[0] == 1.5
        assert table["original_score"].to_pylist()[-1] == 5
        assert table[PAIR_ID][-1].as_py().startswith("mine-")
    assert as_pairs(frame, tmp_path, fields=CAPTIONS, modality="image")[ERROR][3].as_py() == (
        "pool: BadRow: data: expected a string or bytes, found int 7 (batch:4)"
    )


def test_bytes_are_data(tmp_path: Path) -> None:
    content = {"image": [GIF, None, b""], "caption": ["A dot.", "Nothing.", "Empty."]}
    fields = {"data": "image", "annotation": "caption"}
    for data in (
        content,
        pd.DataFrame(content),
        pa.table(content),
        pa.table(content).cast(pa.schema([("image", pa.large_binary()), ("caption", pa.large_string())])),
    ):
        table = as_pairs(data, fields=fields, modality="image")
        assert table[DATA_BYTES].to_pylist() == [GIF, None, None]
        first, second, third = table[ERROR].to_pylist()
        assert first is None
        assert "found nothing" in second
        assert "found no bytes" in third
    named = as_pairs({"data": ["dot", "a.gif"], "data_bytes": [GIF, None], "annotation": ["A", "B"]}, modality="image")
    assert named[DATA].to_pylist() == ["dot", None]
    assert named[ERROR][1].as_py() == (
        "pool: BadRow: data: expected a media file below the pool's root, found 'a.gif'; give a root (--root) that "
        "it is relative to (batch:2)"
    )


def test_whatever_a_manifest_may_hold_a_batch_may(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(GIF)

    def turns(*values: str) -> list[dict[str, str]]:
        return [{"from": who, "value": said} for who, said in zip(["human", "gpt"] * 2, values, strict=False)]

    talks = {
        "id": ["one", "two", "three", "four"],
        "image": ["a.gif", "gone.gif", "a.gif", None],
        "conversations": [
            turns("<image>\nWhat is it?", "A dot.", "Sure?", "Yes."),
            turns("<image>\nWhat?", "Nothing."),
            turns("<image>\nWhat?"),
            turns("Why?", "Because."),
        ],
    }
    for data in (talks, pd.DataFrame(talks), pa.table(talks)):
        table = as_pairs(data, tmp_path, turns="first")
        assert table[ANNOTATION].to_pylist()[::3] == ["A dot.", "Because."]
        assert [None if error is None else error.split(": ")[2] for error in table[ERROR].to_pylist()] == [
            None,
            "data",
            "conversations",
            None,
        ]
    captions = {"image": ["a.gif", "gone.gif", "a.gif"], "caption": [["A dot.", "Red."], ["?"], ["Again."]]}
    fields = {"data": "image", "annotation": "caption"}
    table = as_pairs(captions, tmp_path, fields=fields, modality="image")
    assert [
        text for text, error in zip(table[ANNOTATION].to_pylist(), table[ERROR].to_pylist(), strict=True) if not error
    ] == [
        "A dot.",
        "Red.",
        "Again.",
    ]
    assert [row for row, error in enumerate(table[ERROR].to_pylist()) if error] == [2]
    assert as_pairs(captions, tmp_path, fields=fields, modality="image", captions="join")[ANNOTATION][0].as_py() == (
        "A dot.\nRed."
    )
    asked = PairColumnsStage(fields=fields, modality="image", root=tmp_path, options={"captions": "first"})
    done = asked.process(DocumentBatch(dataset_name="any", data=pa.table(captions))).data
    assert done[ANNOTATION].to_pylist()[::2] == ["A dot.", "Again."]
    with pytest.raises(ConfigError, match="captions"):
        PairColumnsStage(options={"captions": "all"})


def test_nothing_in_nothing_out_and_two_of_one_name() -> None:
    for data in (pd.DataFrame(), pa.table({}), pa.table({"caption": pa.nulls(0, pa.string())})):
        table = as_pairs(data, fields={"annotation": "caption"})
        assert (table.num_rows, {*CANONICAL, MEDIA_ROOT, ERROR} <= {*table.column_names}) == (0, True)
    with pytest.raises(PoolError, match="batch: two columns have the same name"):
        as_pairs(pa.table([[1], [2]], names=["a", "a"]))
    with pytest.raises(PoolError, match="'annotation' exists, but 'annotation' is mapped to 'caption'; drop one"):
        as_pairs({"annotation": ["x"], "caption": ["y"]}, fields={"annotation": "caption"})


def test_after_curators_readers(tmp_path: Path, through: Any) -> None:
    rows = images(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    stage = PairColumnsStage(fields=CAPTIONS, modality="image", pool="dots")
    for reader in (JsonlReader(str(tmp_path / "rows.jsonl")), ParquetReader(str(tmp_path / "rows.parquet"))):
        [batch] = through([reader, stage, QuarantineStage(tmp_path / type(reader).__name__), ExpertEmbeddingStage()])
        assert batch.data.select([PAIR_ID, POOL, ANNOTATION, "url", ERROR]).to_pylist() == [
            {"pair_id": "1", "pool": "dots", "annotation": "A dot.", "url": "u1", "error": None}
        ]
        assert batch.data["emb_data__features__image"].null_count == 0  # found beside the file that was read
        assert [perf.stage_name for perf in batch._stage_perf][-3:] == ["pair_columns", "quarantine", "experts"]
        failed = pd.read_parquet(tmp_path / type(reader).__name__)
        assert [*failed["pair_id"]] == (["2", "3"] if "Jsonl" in type(reader).__name__ else ["2"])


def test_absolute_paths_below_the_root_after_audio_to_document(tmp_path: Path, through: Any) -> None:
    root = tmp_path / "sounds"
    root.mkdir()
    for file in (root / "a.wav", root / "b c.wav", tmp_path / "outside.wav"):
        file.write_bytes(b"RIFF")
    paths = [
        str(root / "a.wav"),
        (root / "b c.wav").as_uri(),
        str(tmp_path / "outside.wav"),
        str(root / "../outside.wav"),
    ]
    tasks = [AudioTask(data={"audio_filepath": path, "text": f"{n}"}) for n, path in enumerate(paths)]
    [batch] = AudioToDocumentStage().process_batch(tasks)
    fields = {"data": "audio_filepath", "annotation": "text"}
    for trusted, good in (((), 2), ([str(tmp_path)], 4)):
        stage = PairColumnsStage(fields=fields, modality="audio", root=root, trusted_roots=trusted)
        table = stage.process(batch).data
        assert [error is None for error in table[ERROR].to_pylist()] == [True] * good + [False] * (4 - good)
    assert (
        "leads out of the root of the pool"
        in PairColumnsStage(fields=fields, modality="audio", root=root).process(batch).data[ERROR][3].as_py()
    )


def test_what_a_batch_has_besides_survives() -> None:
    perf = StagePerfStats(stage_name="before")
    given = DocumentBatch(
        dataset_name="d",
        data=pa.table({"id": ["x"], "data": ["b"], "annotation": ["c"], "modality": ["code"]}),
        _metadata={"mine": 1},
        _stage_perf=[perf],
    )
    done = PairColumnsStage(id="id", rename={"id": "key"}).process(given)
    assert (done.dataset_name, done._metadata, done._stage_perf) == ("d", {"mine": 1}, [perf])
    assert done.data[POOL].to_pylist() == ["d"]
    assert done.data[PAIR_ID].to_pylist() == ["x"]


def test_wrong_tasks_name_the_bridge() -> None:
    for stage in (ExpertEmbeddingStage(), QuarantineStage("q"), PairColumnsStage()):
        with pytest.raises(ConfigError) as caught:
            stage.validate_input(ImageBatch(dataset_name="x", data=[]))
        assert str(caught.value) == f"{stage.name}: takes DocumentBatch, not ImageBatch: put ImagePairsStage before it"
    with pytest.raises(ConfigError, match="put AudioPairsStage before it"):
        ExpertEmbeddingStage().process(AudioTask(data={}))
    with pytest.raises(MissingColumnError, match="it has 'text'; PairColumnsStage makes pairs of any columns"):
        ExpertEmbeddingStage().process(DocumentBatch(dataset_name="x", data=pa.table({"text": ["a"]})))
    with pytest.raises(ConfigError, match="field map: there is no field 'captoin'"):
        PairColumnsStage(fields={"captoin": "x"})


def test_hydras_lists_and_mappings(run: Result, pool: Path, tmp_path: Path, through: Any) -> None:
    def made(target: type, **arguments: Any) -> Any:
        return instantiate({"_target_": f"{target.__module__}.{target.__name__}", **arguments})

    reader = made(PoolReader, pools=[{"path": str(pool), "trusted_roots": [str(tmp_path)]}])
    models = {"text": {"class": "hashed-text", "dim": 128}}
    experts = [{"name": "t", "kind": "end-to-end", "encoder": "text"}]
    score = made(RankScoreStage, queries=["a dog", {"text": "rain", "weight": -1}], models=models, experts=experts)
    assert [query.weight for query in score.step.config.queries] == [1, -1]
    columns = made(PairColumnsStage, fields=CAPTIONS, trusted_roots=[str(tmp_path)], rename={"a": "b"})
    assert columns._source.fields == CAPTIONS
    ranked = made(MultimodalRankStage, run=str(run.folder), import_from=[str(tmp_path)])
    writer = made(BlendWriter, path=str(tmp_path / "blend"), fields=["pair_id", "score"])
    through([reader, made(QuarantineStage, path=str(tmp_path / "failed")), ranked, writer])
    blend = pd.read_parquet(tmp_path / "blend")
    assert list(blend.columns) == ["pair_id", "score"]
    assert len(blend) + len(pd.read_parquet(tmp_path / "failed")) == len(pool.read_text().splitlines())
    job = made(MultimodalRankWorkflow, pool=[str(pool)], query=["a", "b"], config={"sns": {"mode": "off"}}, budget=3)
    assert len(job.settings.queries) == 2
    assert made(MultimodalRankWorkflow, config=OmegaConf.create({"pools": [str(pool)], "queries": ["x"]})).settings


def test_after_the_lance_reader(tmp_path: Path, through: Any) -> None:
    lance: Any = pytest.importorskip("lance", reason="needs Curator's extra 'lance'")
    from nemo_curator.stages.text.io.reader.lance import LanceReader

    table = pa.table({"key": ["a", "b"], "caption": ["A dot.", None], "picture": pa.array([GIF] * 2), "stars": [1, 2]})
    lance.write_dataset(table, str(tmp_path / "lake.lance"))
    fields = {"annotation": "caption", "data": "picture"}
    stage = PairColumnsStage(fields=fields, modality="image", id="key", pool="lake")
    [batch] = through([LanceReader(path=str(tmp_path / "lake.lance")), stage])
    assert batch.data[DATA_BYTES].to_pylist() == [GIF, None]
    assert batch.data["stars"][0].as_py() == 1
    assert [error is None for error in batch.data[ERROR].to_pylist()] == [True, False]

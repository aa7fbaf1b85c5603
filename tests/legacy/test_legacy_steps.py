"""The steps as modules of Curator 0.9, on real clusters, against the plain steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("nemo_curator.datasets", reason="needs nemo-curator 0.9: make test-curator09")

from nemo_curator import Modify, ScoreFilter, Sequential, ToBackend
from nemo_curator.datasets import DocumentDataset
from nemo_curator.filters import WordCountFilter
from nemo_curator.modifiers import DocumentModifier

from nemo_mm_rank import frames
from nemo_mm_rank.dask.legacy import (
    SNS,
    ExpertEmbedding,
    Partitions,
    Projection,
    Quarantine,
    StepModule,
    fit_projection,
    write_parquet,
)
from nemo_mm_rank.errors import MissingColumnError
from nemo_mm_rank.experts.step import ExpertStep
from nemo_mm_rank.io.files import read_table, write_table
from nemo_mm_rank.ranking import rank
from nemo_mm_rank.run.finished import FinishedRun
from nemo_mm_rank.schema import ANNOTATION, ERROR, FUSED, PAIR_ID, SNS_REASON
from nemo_mm_rank.sns.step import SNSStep
from tests.legacy.parity_run import modules
from tests.legacy.parity_run import pool as pool_of
from tests.legacy.pools import assert_same, computed, config_of, in_thirds, made_by, pairs, parts, shards_of


def test_all_steps_are_the_plain_ones(run: Path, scheduler: None) -> None:
    found, expected = computed(modules(run)(pool_of(run))), made_by(run)
    assert_same(found, expected)
    assert expected[SNS_REASON].null_count == pc.is_valid(expected[ERROR]).to_pylist().count(True)
    assert any("kept" in str(reason) for reason in expected[SNS_REASON].to_pylist())


def test_meta_is_what_comes_out(run: Path) -> None:
    out = modules(run)(pool_of(run)).df
    partition = out.get_partition(1).compute(scheduler="synchronous")
    assert list(out.columns) == list(partition.columns)
    added = [name for name in out.columns if name.startswith(("emb_", "sns_", "match_", "cosine__", "score", ERROR))]
    assert {"match_probability", "score"} < set(added)
    assert len(added) > 15
    assert {name: str(out.dtypes[name]) for name in added} == {name: str(partition.dtypes[name]) for name in added}


class Shout(DocumentModifier):  # type: ignore[misc]  # Curator 0.9 is not where types are checked
    def modify_document(self, text: str) -> str:
        return text.upper()


def test_beside_filters_and_modifiers(run: Path, scheduler: None) -> None:
    finished = FinishedRun.load(run)
    config, models = finished.config, finished.models
    chain = Sequential(
        [
            ScoreFilter(WordCountFilter(min_words=8), text_field=ANNOTATION, score_field="words", score_type=int),
            SNS(config, models),
            Modify(Shout(), text_field=ANNOTATION),
            ToBackend("pandas"),
            ExpertEmbedding(config, models),
        ]
    )
    frame = pairs(run)
    found = computed(chain(in_thirds(frame)))

    by_hand = frame.assign(words=[len(text.split()) for text in frame[ANNOTATION]])
    by_hand = by_hand[by_hand["words"] >= 8]
    assert 5 < len(by_hand) < len(frame)
    by_hand = SNSStep(config.sns, config.sns_expert, models, config.media)(by_hand)
    by_hand[ANNOTATION] = [text.upper() for text in by_hand[ANNOTATION]]
    by_hand = ExpertStep(config.experts, models, config.anchor, config.media)(by_hand)
    assert_same(found, frames.to_table(by_hand).sort_by(PAIR_ID))


def test_the_wrong_backend(run: Path) -> None:
    config = config_of(run)
    step = SNSStep(config.sns, config.sns_expert, config.models, config.media)
    with pytest.raises(ValueError, match=r"Module sns requires .* backend cudf but got backend pandas.*ToBackend"):
        StepModule(step, "cudf")(pool_of(run))


def test_missing_columns_are_found_before_anything_runs(run: Path) -> None:
    with pytest.raises(MissingColumnError, match="sns: the frame has no column 'annotation'"):
        SNS(config_of(run))(DocumentDataset(pool_of(run).df.drop(columns=[ANNOTATION])))
    with pytest.raises(MissingColumnError, match="quarantine: the frame has no column 'error'"):
        Quarantine("nowhere")(pool_of(run))


def test_broken_media_among_good_ones(run: Path, scheduler: None, tmp_path: Path) -> None:
    config = config_of(run)
    frame = pairs(run)
    broken = np.flatnonzero(frame["modality"] == "image")[1]
    name = str(frame[PAIR_ID].iloc[broken])
    root = tmp_path / "media"
    root.mkdir()
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    other = frame.copy()
    other.loc[other.index[broken], ["data", "media_root"]] = ["broken.jpg", str(root)]
    chain = Sequential([SNS(config), ExpertEmbedding(config)])
    good, bad = computed(chain(in_thirds(frame))), computed(chain(in_thirds(other)))

    is_it = pc.equal(bad[PAIR_ID], name)
    assert_same(bad.filter(pc.invert(is_it)), good.filter(pc.invert(is_it)))
    [row] = bad.filter(is_it).to_pylist()
    assert row[ERROR].startswith("sns: MediaError: ")
    assert all(value is None for column, value in row.items() if column.startswith(("emb_", "sns_")))
    assert row["annotation"] == good.filter(is_it)["annotation"][0].as_py()

    left = computed(
        Sequential([SNS(config), Quarantine(tmp_path / "quarantine"), ExpertEmbedding(config)])(in_thirds(other))
    )
    assert left[ERROR].null_count == left.num_rows
    set_aside = pa.concat_tables(map(read_table, sorted((tmp_path / "quarantine").glob("*.parquet"))))
    assert sorted(left[PAIR_ID].to_pylist() + set_aside[PAIR_ID].to_pylist()) == sorted(frame[PAIR_ID])
    assert set(set_aside["step"].to_pylist()) == {"sns"}
    assert name in set_aside[PAIR_ID].to_pylist()


def test_an_empty_partition(run: Path, scheduler: None) -> None:
    only = set(read_table(parts(run)[1])[PAIR_ID].to_pylist())
    whole = pool_of(run)
    filtered = DocumentDataset(whole.df[whole.df[PAIR_ID].isin(only)])
    assert filtered.df.map_partitions(len).compute().tolist() == [0, len(only), 0]
    out = modules(run)(filtered)
    empty = out.df.get_partition(0).compute()
    assert len(empty) == 0
    assert list(empty.columns) == list(out.df.columns)
    expected = made_by(run)
    assert_same(computed(out), expected.filter(pc.is_in(expected[PAIR_ID], pa.array(list(only)))))


def test_json_in_and_out(pool: Path, run: Path, scheduler: None, tmp_path: Path) -> None:
    config = config_of(run)
    read = DocumentDataset.read_json(str(pool), files_per_partition=1, blocksize=None)
    read.df["media_root"] = str(pool.parent)
    out = SNS(config)(read)
    out.to_json(str(tmp_path / "out"))
    again = ExpertEmbedding(config)(
        DocumentDataset.read_json(str(tmp_path / "out"), files_per_partition=1, blocksize=None)
    )
    direct = ExpertEmbedding(config)(out)
    vectors = [name for name in direct.df.columns if name.startswith("emb_")]
    assert_same(computed(again), computed(direct), [PAIR_ID, ERROR, *vectors])
    lines = [json.loads(line) for file in (tmp_path / "out").iterdir() for line in file.open(encoding="utf-8")]
    spans = {line[PAIR_ID]: line["sns_annotation_spans"] for line in lines}
    assert any(value for value in spans.values())


def test_parquet_in_and_out(run: Path, scheduler: None, tmp_path: Path) -> None:
    config = config_of(run)
    out = ExpertEmbedding(config)(SNS(config)(pool_of(run)))
    write_parquet(pool_of(run).repartition(npartitions=2), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    # Of an earlier dataset with more partitions.
    write_table(tmp_path / "out" / "part-00003.parquet", pa.table({"x": [1]}), {"rows": 1})
    (tmp_path / "out" / "part-00004.parquet").write_bytes(b"somebody's own")
    write_parquet(out, tmp_path / "out")
    assert (tmp_path / "out" / "part-00004.parquet").read_bytes() == b"somebody's own"
    (tmp_path / "out" / "part-00004.parquet").unlink()
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [file.name for file in files] == [f"part-{number:05d}.parquet" for number in range(3)]
    assert_same(pa.concat_tables(map(read_table, files)).sort_by(PAIR_ID), computed(out))
    assert "emb_fused" not in pd.read_parquet(files[0]).columns  # it opens
    again = DocumentDataset.read_parquet(list(map(str, files)), files_per_partition=1, blocksize=None)
    fitted = FinishedRun.load(run).projection
    assert_same(
        computed(Projection(config, fitted)(again)), computed(Projection(config, fitted)(out)), [PAIR_ID, FUSED]
    )


def test_a_dataset_is_fitted_and_ranked_as_a_run(run: Path, scheduler: None, tmp_path: Path) -> None:
    finished = FinishedRun.load(run)
    config, models = finished.config, finished.models
    embedded = Sequential([SNS(config, models), ExpertEmbedding(config, models)])(pool_of(run)).persist()
    fit_projection(embedded, config, tmp_path / "fitted")
    for file in sorted(finished.projection.iterdir()):
        assert (tmp_path / "fitted" / file.name).read_bytes() == file.read_bytes()
    scored = modules(run)(pool_of(run)).persist()
    # A dataset's own pairs, scored by the run's statistics: the run's blend.
    by_score = computed(scored).sort_by([("score", "descending"), (PAIR_ID, "ascending")])
    expected = read_table(run / "ranking" / "chosen.parquet")
    assert_same(by_score.slice(0, expected.num_rows), expected, [PAIR_ID, "score"])
    # Ranked by statistics of its own, with nothing to be learnt beforehand.
    cosines = [name for name in scored.df.columns if name.startswith("cosine__")]
    plain = config.ranking.model_copy(update={"conditions": {}, "broad": None})
    mine, theirs = (
        rank(shards, cosines, plain, config.budget).chosen for shards in (Partitions(scored), shards_of(run))
    )
    assert_same(mine, theirs, [PAIR_ID, "rank", "score", "reason"])

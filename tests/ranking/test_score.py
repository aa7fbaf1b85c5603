"""The scoring step: cosines per space, nulls, quarantine, and shards that change nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from nemo_mm_rank import frames
from nemo_mm_rank.errors import ConfigError, MissingColumnError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.ranking import ScoreStep, Space
from nemo_mm_rank.steps import columns_added

QUERY = torch.tensor([[2.0, 0.0, 0.0]])


def vectors(rows: list[list[float] | None]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


def pool(n: int, **columns: pa.Array) -> pa.Table:
    words = {
        "pair_id": pa.array([f"p{i}" for i in range(n)]),
        "pool": pa.array(["a"] * n),
        "modality": pa.array(["image"] * n),
    }
    return pa.table({**words, **columns})


def test_cosine_per_space_null_where_there_is_no_vector() -> None:
    table = pool(
        3,
        emb_fused=vectors([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
        emb_data__clip=vectors([[1.0, 0.0, 0.0], None, None]),
        emb_data__both__clap=vectors([None, None, [0.0, 0.0, 2.0]]),
        emb_annotation__text=vectors([[0.0, 0.0, 1.0]] * 3),
    )
    step = ScoreStep(
        [
            Space.fused(QUERY),
            Space.annotation("text", torch.tensor([[0.0, 0.0, 1.0]])),
            Space.expert("clip", QUERY),
            Space.expert("both", torch.tensor([[0.0, 1.0, 1.0]]), "clap"),
        ],
        [1.0],
    )
    found = frames.to_table(step(frames.from_table(table))).select([*step.provides, "error"]).to_pydict()
    assert found.pop("error") == [None] * 3
    expected: dict[str, list[float | None]] = {
        "cosine__fused": [0.6, 0.0, -1.0],
        "cosine__annotation": [1.0, 1.0, 1.0],
        "cosine__clip": [1.0, None, None],
        "cosine__both__clap": [None, None, float(np.float32(0.5**0.5))],
    }
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        assert found[name] == [value if value is None else pytest.approx(value, abs=1e-7) for value in column]


def test_several_queries_by_mean_and_max_with_a_negative_one() -> None:
    table = pool(2, emb_fused=vectors([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))
    queries = torch.eye(3)
    weights = [1.0, 1.0, -0.5]
    for how, expected in (("mean", [0.5, 0.1]), ("max", [1.0, 0.2])):
        step = ScoreStep([Space.fused(queries)], weights, how)  # type: ignore[arg-type]
        scores = frames.to_table(step(frames.from_table(table)))["cosine__fused"].to_pylist()
        assert scores == pytest.approx(expected, abs=1e-6)


def test_rows_without_a_usable_vector_are_quarantined() -> None:
    table = pool(5, emb_fused=vectors([[1.0, 0.0, 0.0], [0.0] * 3, [float("nan"), 1.0, 0.0], None, [1.0, 0.0, 0.0]]))
    table = table.append_column("error", pa.array([None, None, None, None, "experts: EmbeddingError: no"]))
    found = frames.to_table(ScoreStep([Space.fused(QUERY)], [1.0])(frames.from_table(table)))
    assert found["error"].to_pylist() == [
        None,
        "rank: EmbeddingError: the vector in 'emb_fused' is zero or not finite",
        "rank: EmbeddingError: the vector in 'emb_fused' is zero or not finite",
        "rank: EmbeddingError: no vector in any of emb_fused",
        "experts: EmbeddingError: no",
    ]
    assert found["cosine__fused"].to_pylist() == [1.0, None, None, None, None]


def test_a_column_without_any_vector_is_missing_everywhere() -> None:
    table = pool(2, emb_fused=vectors([[1.0, 0.0, 0.0]] * 2), emb_data__clip=vectors([None, None]))
    step = ScoreStep([Space.fused(QUERY), Space.expert("clip", QUERY)], [1.0])
    found = frames.to_table(step(frames.from_table(table)))
    assert found["cosine__clip"].to_pylist() == [None, None]
    assert found["error"].null_count == 2


def test_shards_give_the_bits_of_the_whole() -> None:
    values = torch.randn(5000, 37, generator=torch.Generator().manual_seed(0))
    queries = torch.randn(3, 37, generator=torch.Generator().manual_seed(1))
    table = pool(5000, emb_fused=frames.to_arrow(Vectors.full(values)))
    step = pickle.loads(pickle.dumps(ScoreStep([Space.fused(queries)], [1.0, 0.5, -1.0], "max")))
    whole = columns_added(step, table)
    found = [columns_added(step, table.slice(start, 733)) for start in range(0, 5000, 733)]
    assert pa.concat_tables(found).equals(whole)
    assert whole.column_names == ["cosine__fused", "error"]


def test_an_empty_shard() -> None:
    step = ScoreStep([Space.fused(QUERY)], [1.0])
    assert columns_added(step, pool(0, emb_fused=vectors([]))).num_rows == 0


def test_what_does_not_fit_is_refused() -> None:
    table = pool(1, emb_fused=vectors([[1.0, 0.0]]))
    with pytest.raises(ConfigError, match="3 dimensions, the embeddings 2"):
        ScoreStep([Space.fused(QUERY)], [1.0])(frames.from_table(table))
    with pytest.raises(ConfigError, match="at least one space"):
        ScoreStep([], [1.0])
    with pytest.raises(ConfigError, match="must differ"):
        ScoreStep([Space.fused(QUERY)] * 2, [1.0])
    with pytest.raises(MissingColumnError, match="'emb_data__clip'"):
        columns_added(ScoreStep([Space.expert("clip", QUERY)], [1.0]), table)


def test_identity_follows_the_queries() -> None:
    one, other = (ScoreStep([Space.fused(queries)], [1.0]).identity() for queries in (QUERY, QUERY + 1))
    assert one != other
    assert one == ScoreStep([Space.fused(QUERY.clone())], [1.0]).identity()

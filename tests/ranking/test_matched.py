"""Fused cosines on the scale of their annotations' cosines, modality by modality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.io.files import write_table
from nemo_mm_rank.ranking import Files, rank
from nemo_mm_rank.ranking.explain import explain
from nemo_mm_rank.ranking.scoring import Scoring

N = 300
COLUMNS = ["cosine__annotation", "cosine__fused"]
ONLY_FUSED = RankingSettings(weights={"fused": 1.0}, calibration="matched")


def made_up(offset: dict[str, float]) -> pa.Table:
    """Pairs on topic to a degree, pictures more than texts; the fused cosine adds an offset by modality."""
    rng = np.random.default_rng(0)
    modality = rng.choice(["image", "text", "audio"], N, p=[0.5, 0.3, 0.2])
    topic = rng.normal(0, 0.1, N) + np.where(modality == "image", 0.1, 0.0)
    own = np.array([offset[name] for name in modality])
    return pa.table(
        {
            "pair_id": [f"p{row:03d}" for row in range(N)],
            "pool": ["a"] * N,
            "modality": modality,
            "error": pa.nulls(N, pa.string()),
            "cosine__annotation": pa.array(0.3 + topic, pa.float32()),
            "cosine__fused": pa.array(0.5 * topic + own, pa.float32()),
        }
    )


def files(folder: Path, table: pa.Table, shards: int = 3) -> Files:
    paths = []
    for part in range(shards):
        path = folder / f"{shards}-{part}.parquet"
        write_table(path, table.take(pa.array(range(part, table.num_rows, shards))))
        paths.append((path,))
    return Files(tuple(paths))


def chosen(pool: Files, **changes: object) -> list[str]:
    found = rank(pool, COLUMNS, ONLY_FUSED.model_copy(update=changes), Budget(count=60)).chosen
    return list(found["pair_id"].to_pylist())


def test_offsets_no_longer_decide_and_content_does(tmp_path: Path) -> None:
    pool = files(tmp_path, made_up({"image": -0.5, "text": 0.0, "audio": 0.4}))
    by_annotation = chosen(pool, weights={"annotation": 1.0}, calibration="off")
    assert len(set(chosen(pool, calibration="off")) & set(by_annotation)) < 20
    assert chosen(pool) == by_annotation  # the two say the same here, but for the offsets
    # Standardised within each modality, pictures would not be more on topic than texts.
    assert len(set(chosen(pool, calibration="zscore")) & set(by_annotation)) < 55


def test_every_modality_takes_the_scale_of_its_annotations(tmp_path: Path) -> None:
    table = made_up({"image": -0.5, "text": 0.0, "audio": 0.4})
    scoring = Scoring.fit(files(tmp_path, table), COLUMNS, ONLY_FUSED)
    value = scoring.components(table)["fused"]
    annotation = table["cosine__annotation"].to_numpy().astype(np.float64)
    scale = (annotation - annotation.mean()) / annotation.std()
    modality = np.array(table["modality"].to_pylist())
    for name in ("image", "text", "audio"):
        own = modality == name
        assert value[own].mean() == pytest.approx(scale[own].mean(), abs=1e-4)
        assert value[own].std() == pytest.approx(scale[own].std(), abs=1e-4)
    assert (value.mean(), value.std()) == pytest.approx((0, 1), abs=1e-4)


def test_shards_change_no_bit(tmp_path: Path) -> None:
    table = made_up({"image": -0.5, "text": 0.0, "audio": 0.4})
    settings = ONLY_FUSED.model_copy(update={"weights": {"fused": 1.0, "annotation": 0.5}})
    one, other = (rank(files(tmp_path, table, shards), COLUMNS, settings, Budget(count=50)).chosen for shards in (1, 7))
    assert one.equals(other)


def test_explain_tells_the_same_score(tmp_path: Path) -> None:
    pool = files(tmp_path, made_up({"image": -0.5, "text": 0.0, "audio": 0.4}))
    found = rank(pool, COLUMNS, ONLY_FUSED, Budget(count=60))
    first = found.chosen["pair_id"][0].as_py()
    scoring = Scoring.fit(pool, COLUMNS, ONLY_FUSED)
    scoring.save(tmp_path / "scoring.json")
    for one in (scoring, Scoring.load(tmp_path / "scoring.json")):
        assert "chosen, rank 1 of 300" in explain(first, pool, found, one)
        assert f"score {found.chosen['score'][0].as_py():+.3f}" in explain(first, pool, found, one)


def test_it_needs_both_cosines(tmp_path: Path) -> None:
    pool = files(tmp_path, made_up({"image": 0, "text": 0, "audio": 0}))
    with pytest.raises(ConfigError, match="matched needs 'cosine__annotation'"):
        rank(pool, ["cosine__fused"], ONLY_FUSED, Budget(count=5))

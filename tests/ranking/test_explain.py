"""What a person is told about a pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from nemo_mm_rank.config import Budget, RankingSettings
from nemo_mm_rank.errors import UserError
from nemo_mm_rank.ranking import explain
from nemo_mm_rank.ranking.blend import choose
from nemo_mm_rank.ranking.scoring import Scoring

SPANS = pa.list_(pa.list_(pa.float64()))


@dataclass(frozen=True)
class Tables:
    tables: list[pa.Table]

    @property
    def count(self) -> int:
        return len(self.tables)

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        table = self.tables[part]
        return table if columns is None else table.select([name for name in columns if name in table.column_names])


def shards() -> Tables:
    """Five pairs whose fused cosines are 0.0 to 0.8 (mean 0.4), and a quarantined one."""
    table = pa.table(
        {
            "pair_id": [f"coco-{i}" for i in range(6)],
            "pool": ["coco"] * 6,
            "modality": ["image", "image", "image", "audio", "audio", "audio"],
            "error": pa.array([None] * 5 + ["experts: MediaError: cannot decode x.ogg"], pa.string()),
            "cosine__fused": pa.array([0.0, 0.2, 0.4, 0.6, 0.8, None], pa.float32()),
            "cosine__clip__a": pa.array([None, 0.5, 0.5, None, None, None], pa.float32()),
            "emb_fused": pa.array([[1.0, 0], [1, 1], [1, 3], [0, 1], [0, 1], None], pa.list_(pa.float32())),
            "sns_data_spans": pa.array([None, [[0.0, 0.0, 10.0, 20.5]], None, None, None, None], SPANS),
            "sns_annotation_spans": pa.array([None, None, None, [[0.0, 12.0], [20.0, 31.0]], None, None], SPANS),
            "sns_reason": pa.array([None, "forward: accepted", None, None, None, None], pa.string()),
        }
    )
    return Tables([table.slice(0, 2), table.slice(2)])


COSINES = ["cosine__clip__a", "cosine__fused"]


def told(pair_id: str, budget: int = 2, bad_rows: pa.Table | None = None, **options: Any) -> str:
    settings = RankingSettings(**{"weights": {"fused": 2.0}, **options})
    scoring = Scoring.fit(shards(), COSINES, settings)
    return explain(pair_id, shards(), choose(shards(), scoring, settings, Budget(count=budget)), scoring, bad_rows)


def test_chosen() -> None:
    assert told("coco-3").splitlines() == [
        "coco-3 (audio, pool coco): chosen, rank 2 of 5 in the pool",
        "  place 2 of 2 in the blend",
        "  rank 2 of 5: fused +0.7",
        "  score +0.707, at the last one chosen from all (+0.707, 'coco-3')",
        "  fused        +0.71 standard deviations x weight 1",
        "  cosine fused: 0.600 (pool 0.400 +- 0.283)",
        "  kept of the annotation: [0, 12], [20, 31]",
    ]


def test_not_chosen_says_how_far_below_the_cut() -> None:
    assert told("coco-1", weights={"fused": 2.0, "experts": 1.0}, spread=0).splitlines() == [
        "coco-1 (image, pool coco): not chosen, rank 4 of 5 in the pool",
        "  score -0.707, 1.414 below the last one chosen from all (+0.707, 'coco-3')",
        "  experts      +0.00 standard deviations x weight 0.5",
        "  fused        -0.71 standard deviations x weight 1",
        "  cosine clip a: 0.500 (pool 0.500 +- 0.000)",
        "  cosine fused: 0.200 (pool 0.400 +- 0.283)",
        "  kept of the data: [0, 0, 10, 20.5]",
        "  trimming: forward: accepted",
    ]


def test_quotas_make_their_own_cuts() -> None:
    images: dict[str, Any] = {"quota_by": "modality", "quotas": {"image": 1.0}}
    assert "score +1.414; the quotas leave no place for others" in told("coco-4", **images)
    assert "1.414 below the last one chosen from image (+0.000, 'coco-2')" in told("coco-0", budget=1, **images)
    assert "place 2 of 2 in the blend" in told("coco-1", **images)
    assert "rank 4 of 5: fused -0.7; quota image 2/2" in told("coco-1", **images)


def test_a_near_duplicate_names_the_one_that_stayed() -> None:
    text = told("coco-3", collapse_duplicates=True)
    assert "not chosen" in text
    assert "nearly equal to 'coco-4', which is in the blend" in text


def test_quarantined() -> None:
    assert told("coco-5") == "coco-5 (audio, pool coco): not ranked\n  experts: MediaError: cannot decode x.ogg"


def test_a_row_that_never_became_a_pair() -> None:
    bad = pa.table({"pair_id": ["bad-1"], "step": ["pool"], "error": ["BadRow"], "message": ["modality: 'imag'"]})
    assert told("bad-1", bad_rows=bad) == "bad-1: not ranked\n  pool: BadRow: modality: 'imag'"


def test_an_unknown_pair_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"this run has no pair 'coco-44'; did you mean 'coco-4'\?"):
        told("coco-44")
    with pytest.raises(UserError, match=r"did you mean 'coco-4'\?"):
        told("oco-4")
    with pytest.raises(UserError, match=r"this run has no pair 'zzz'$"):
        told("zzz")


def test_a_record_of_another_format_by_its_own_id() -> None:
    records = [{"id": "one"}, {"id": 7}, {"id": "twice"}, {"id": "twice"}, {"text": "one"}, {"id": "sieben"}]
    written = pa.array([json.dumps(record) for record in records])
    tables = [table.append_column("source_record", written.slice(at, table.num_rows)) for at, table in parts()]
    settings = RankingSettings(weights={"fused": 2.0})
    scoring = Scoring.fit(Tables(tables), COSINES, settings)
    ranking = choose(Tables(tables), scoring, settings, Budget(count=2))
    for name, pair in (("one", "coco-0"), ("7", "coco-1"), ("sieben", "coco-5")):
        assert explain(name, Tables(tables), ranking, scoring).startswith(f"{pair} (")
    with pytest.raises(UserError, match="the id 'twice'; name one: coco-2, coco-3"):
        explain("twice", Tables(tables), ranking, scoring)
    with pytest.raises(UserError, match="has no pair 'on'"):
        explain("on", Tables(tables), ranking, scoring)


def parts() -> list[tuple[int, pa.Table]]:
    """Return the shards' tables with the number of the first row of each."""
    return [(0, shards().tables[0]), (2, shards().tables[1])]

"""A column of the user's that has the name of one of ours is never replaced, whichever stage comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from nemo_curator.tasks import DocumentBatch

from nemo_mm_rank.curator import MultimodalRankStage
from nemo_mm_rank.curator.stages import StepStage
from nemo_mm_rank.errors import TakenColumnError
from nemo_mm_rank.run.curation import Result


@pytest.fixture(scope="module")
def stages(run: Result) -> list[StepStage]:
    found = [stage for stage in MultimodalRankStage(run=run.folder).decompose() if isinstance(stage, StepStage)]
    assert [stage.name for stage in found] == ["sns", "experts", "projection", "match", "rank"]
    return found


def test_every_column_of_every_stage_is_refused(stages: list[StepStage], batch: DocumentBatch) -> None:
    table = batch.data.slice(0, 2)
    for stage in stages:
        reads = {name: pa.nulls(2, kind) for name, kind in stage.step.requires.items()}
        whole = pa.table({**reads, **{name: table[name] for name in table.column_names}})
        for name in stage.step.provides:
            for data in (
                whole.append_column(name, pa.array([1.0, 2.0])),
                whole.append_column(name, pa.array([1.0, 2.0])).to_pandas(),
            ):
                taken = DocumentBatch(dataset_name="demo", data=data)
                with pytest.raises(TakenColumnError) as caught:
                    stage.process(taken)
                assert str(caught.value) == (
                    f"{stage.name}: {name!r} is present already and would be overwritten; rename your own columns, and "
                    "leave out those that an earlier step added"
                )
                assert list(taken.data[name] if isinstance(data, pd.DataFrame) else data[name].to_pylist()) == [1, 2]


def test_the_stages_after_each_other_do_not_mind_what_those_before_added(
    stages: list[StepStage], batch: DocumentBatch, through: Any, tmp_path: Path
) -> None:
    mine = DocumentBatch(dataset_name="demo", data=batch.data.append_column("quality", pa.nulls(batch.num_items)))
    [out] = through(stages, [mine])
    assert {"emb_fused", "match_probability", "weakest", "score", "quality"} <= set(out.data.column_names)
    with pytest.raises(TakenColumnError, match=r"rank: .*'score' are present already"):
        stages[-1].process(out)
    scores = [name for name in out.data.column_names if name in stages[-1].step.provides]
    again = stages[-1].process(DocumentBatch(dataset_name="demo", data=out.data.drop_columns(scores)))
    assert again.data["score"].equals(out.data["score"])

"""negCLIPLoss against its definition by hand, and as an operator of EcoDatum's job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from nemo_mm_rank.config import parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.files import read_schema, read_table
from nemo_mm_rank.quality.operators import Batches, OperatorSettings, OthersSettings, OthersStep, shared_spaces
from nemo_mm_rank.quality.operators.others import keys_of, neg_clip_loss
from nemo_mm_rank.run import ecodatum
from nemo_mm_rank.run.ecodatum import EcoDatumConfig, OperatorSetup
from nemo_mm_rank.steps import columns_added

IDS = ["a", "b", "c", "d"]


def sides() -> tuple[Vectors, Vectors]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 4, 3, generator=generator)
    return Vectors.full(both[0]), Vectors.full(both[1])


def by_definition(data: torch.Tensor, annotations: torch.Tensor, batch: list[int], row: int, t: float) -> float:
    """Return one pair's value in a batch that it is of: the code of the paper, for one pair, in plain numbers."""
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (data, annotations))
    to_texts = [float(torch.exp(x[row] @ y[other] / t)) for other in batch]
    to_data = [float(torch.exp(y[row] @ x[other] / t)) for other in batch]
    return float(x[row] @ y[row]) - t / 2 * float(np.log(sum(to_texts)) + np.log(sum(to_data)))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_whole_pool_as_one_batch(temperature: float) -> None:
    data, annotations = sides()
    batches = Batches.of(data, annotations, IDS, OthersSettings(expert="x", model="x", batch_size=100))
    assert batches.bounds == [0, 4]
    found = neg_clip_loss(data, annotations, keys_of(IDS), batches, temperature)
    expected = [by_definition(data.values, annotations.values, [0, 1, 2, 3], row, temperature) for row in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_mean_over_batches_each_with_the_pair_itself() -> None:
    data, annotations = sides()
    batches = Batches.of(data, annotations, IDS, OthersSettings(expert="x", model="x", batches=2, batch_size=2))
    assert batches.bounds == [0, 2, 4]
    found = neg_clip_loss(data, annotations, keys_of(IDS), batches, 0.5)
    parts = ([0, 1], [0, 2, 3])  # the first pair is of the first batch, and joins the second
    expected = np.mean([by_definition(data.values, annotations.values, part, 0, 0.5) for part in parts])
    assert found[0] == pytest.approx(expected, rel=1e-5)
    single = [
        neg_clip_loss(Vectors.full(data.values[[row]]), Vectors.full(annotations.values[[row]]), key, batches, 0.5)[0]
        for row, key in enumerate(keys_of(IDS)[:, None])
    ]
    np.testing.assert_array_equal(single, found)  # whatever is beside it


def test_what_has_no_side_has_no_score(tmp_path: Path) -> None:
    data, annotations = sides()
    batches = Batches.of(data, annotations, IDS, OthersSettings(expert="x", model="x"))
    values = data.values.clone()
    values[1] = 0
    missing = Vectors(values, torch.tensor([True, True, False, True]))
    found = neg_clip_loss(missing, annotations, keys_of(IDS), batches, 0.1)
    assert np.isnan(found).tolist() == [False, True, True, False]
    step = OthersStep({"neg": OthersSettings(expert="clip", model="clip")})
    table = pa.table({"pair_id": ["a"], **dict.fromkeys(("emb_data__clip", "emb_annotation__clip"), [[[1.0]]][0])})
    with pytest.raises(ConfigError, match=r"operators\.others\.neg: no reference"):
        columns_added(step, table)


def test_as_an_operator_of_the_job(tmp_path: Path) -> None:
    pool = make_demo_pool(tmp_path / "pool", 5)
    operators = {"others": {"neg": {"expert": "words", "model": "text", "temperature": 0.05}}, "texts": ["words"]}
    values = {"pools": str(pool), "operators": {**operators, "images": []}, "rows_per_shard": 7}
    one = ecodatum.curate(parse(EcoDatumConfig, {**values, "output": str(tmp_path / "one")}))
    other = ecodatum.curate(parse(EcoDatumConfig, {**values, "rows_per_shard": 50, "output": str(tmp_path / "other")}))

    def added(folder: Path, name: str) -> list[float | None]:
        parts = sorted(folder.glob("steps/*/part-*.parquet"))
        tables = [read_table(part, [name]) for part in parts if name in read_schema(part).names]
        return [value for table in tables for value in table[name].to_pylist()]

    scores, plain = (added(one.folder, f"quality__{name}") for name in ("neg", "agreement_words"))
    both = [(score, cosine) for score, cosine in zip(scores, plain, strict=True) if score is not None]
    assert len(both) == 25
    assert all(cosine is not None and score < cosine for score, cosine in both)
    assert added(other.folder, "quality__neg") == scores
    setup, _ = OperatorSetup.load(tmp_path / "one")
    assert Path(str(setup.operators.others["neg"].reference)).exists()


def test_shared_spaces_are_those_with_text() -> None:
    config = EcoDatumConfig(pools=("x",), output="x")
    found = shared_spaces(config.experts, config.models)
    assert {name: (one.expert, one.model) for name, one in found.items()} == {
        "words": ("words", "text"),
        "features_text": ("features__text", "text"),
    }
    assert OperatorSettings(experts=found).experts == found

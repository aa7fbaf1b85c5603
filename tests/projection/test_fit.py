"""Cross-fitting: out of sample, repeatable, independent of company, and at ease with tiny and lopsided pools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nemo_mm_rank.config import ProjectionSettings, parse
from nemo_mm_rank.errors import ConfigError, ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.io.owned import MARK
from nemo_mm_rank.measures.gaps import matched_gap_square, pooled
from nemo_mm_rank.projection import FitSample, Projection, fit, folds_of
from tests.projection.pool import DIM, QUICK, made_up, take


@pytest.fixture(scope="module")
def sample() -> FitSample:
    return made_up(320, twins=20)


@pytest.fixture(scope="module")
def projection(sample: FitSample) -> Projection:
    return fit(sample, QUICK, seed=3)


def _same(one: Projection, other: Projection) -> bool:
    weights = zip(one.networks.state_dict().values(), other.networks.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in weights)


def test_it_learns_what_carries_over_to_unseen_annotations(projection: Projection) -> None:
    fused, words = projection.metrics["mean"]["fused"], projection.metrics["mean"]["words"]
    assert fused["n"] == words["n"] == 320
    assert fused["recall_at_1"] > words["recall_at_1"] + 0.2
    assert fused["matched_gap"] < 0.6 * words["matched_gap"]
    assert fused["recall_at_1"] <= fused["recall_at_5"] <= fused["recall_at_10"]
    code = projection.metrics["mean"]["code"]  # one pair in four has it, and the others are not found
    assert code["n"] == 80
    assert 0.2 < code["recall_at_10"] < 0.3
    for history in projection.metrics["losses"]:
        assert 1 <= len(history) <= QUICK.max_epochs
        assert history[-1]["training"] < history[0]["training"]


def test_metrics_are_of_each_fold_by_its_own_network(sample: FitSample, projection: Projection) -> None:
    folds = folds_of(sample.annotations, QUICK.folds, 3)
    assert [fold["fused"]["n"] for fold in projection.metrics["folds"]] == np.bincount(folds).tolist()
    json.dumps(projection.metrics)
    fused = projection.project(sample.sources, sample.annotations).values
    anchors, modality = F.normalize(sample.anchors, dim=1), np.array(sample.modality)
    squares = []
    for fold, measures in enumerate(projection.metrics["folds"]):
        rows = np.flatnonzero(folds == fold)
        contents = [sample.annotations[row] for row in rows.tolist()]
        squares.append(matched_gap_square(fused[rows], anchors[rows], modality[rows], contents, fold))
        found = squares[-1].gap()
        for name, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            assert measures["fused"][f"matched_gap{name}"] == pytest.approx(value, abs=1e-6)
    mean = projection.metrics["mean"]["fused"]
    assert mean["matched_gap"] == pytest.approx(pooled(squares).gap().value, abs=1e-6)
    assert mean["matched_gap_low"] <= mean["matched_gap"] <= mean["matched_gap_high"]


def test_where_no_modality_has_two_annotations_no_gap_is_claimed() -> None:
    sample = made_up(8)
    few = replace(sample, annotations=list(sample.modality))  # an image, code and a text say the same wherever they are
    metrics = fit(few, QUICK, seed=0).metrics
    assert metrics["mean"]["fused"]["matched_gap"] is None
    assert metrics["mean"]["fused"]["matched_gap_high"] is None
    assert "NaN" not in json.dumps(metrics)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fit_repeats_to_the_bit(sample: FitSample, projection: Projection, threads: int) -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.manual_seed(99)
    again = fit(sample, QUICK.model_copy(update={"threads": threads}), seed=3)
    assert torch.get_num_threads() == before
    torch.set_rng_state(state)
    assert again.metrics == projection.metrics
    assert _same(again, projection)
    assert not _same(fit(sample, QUICK, seed=4), projection)


def test_no_network_knows_the_annotations_it_projects(sample: FitSample, projection: Projection) -> None:
    """Changing every pair of fold 0 must not change network 0, and must change all others."""
    held = torch.from_numpy(folds_of(sample.annotations, QUICK.folds, 3) == 0)
    anchors = torch.where(held[:, None], -sample.anchors, sample.anchors)
    changed = fit(replace(sample, anchors=anchors), QUICK, seed=3)
    one, other = projection.networks.state_dict(), changed.networks.state_dict()
    names = [f"{fold}.first.0.weight" for fold in range(QUICK.folds)]
    assert [torch.equal(one[name], other[name]) for name in names] == [True, False, False, False]


def test_equal_annotations_are_projected_by_one_network(sample: FitSample, projection: Projection) -> None:
    row = torch.tensor([5, 5])
    one = projection.project(take(sample.sources, row), ["some text", "some text"]).values
    assert torch.equal(one[0], one[1])
    fold = int(folds_of(["some text"], QUICK.folds, 3)[0])
    torch.testing.assert_close(one[:1], projection.networks[fold](take(sample.sources, row[:1])))


def test_a_row_does_not_depend_on_its_company(sample: FitSample, projection: Projection) -> None:
    big = made_up(1200, seed=5)
    whole = projection.project(big.sources, big.annotations).values
    generator = torch.Generator().manual_seed(0)
    for size, threads in ((1, 1), (7, 2), (400, 2), (1200, 1)):
        rows = torch.randperm(1200, generator=generator)[:size]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        part = projection.project(take(big.sources, rows), [big.annotations[row] for row in rows.tolist()])
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        assert torch.equal(part.values, whole[rows])


def test_a_row_without_any_source_is_not_valid(sample: FitSample, projection: Projection) -> None:
    none = {name: Vectors(torch.zeros(2, size), torch.tensor([False, False])) for name, size in DIMS.items()}
    none["words"] = Vectors(sample.sources["words"].values[:2], torch.tensor([False, True]))
    none["sight"] = Vectors(torch.zeros(2, 0), torch.tensor([False, False]))  # a column of nothing but nulls
    out = projection.project(none, ["a", "b"])
    assert out.valid.tolist() == [False, True]
    assert float(out.values[0].abs().sum()) == 0
    assert projection.project(take(sample.sources, torch.arange(0)), []).values.shape == (0, DIM)


DIMS = {"words": DIM, "sight": 8, "code": DIM}


def test_sources_must_fit(sample: FitSample, projection: Projection) -> None:
    assert projection.sources == DIMS
    assert projection.dim == DIM
    rows, text = torch.arange(2), ["a", "b"]
    sources = take(sample.sources, rows)
    with pytest.raises(ModelError, match="'sight' is missing"):
        projection.project({"words": sources["words"], "code": sources["code"]}, text)
    with pytest.raises(ModelError, match="'words' has 5 dimensions, but it was fitted with 12"):
        projection.project({**sources, "words": Vectors.full(torch.zeros(2, 5))}, text)
    with pytest.raises(ModelError, match="'words' has 2 rows for 3 annotations"):
        projection.project(sources, [*text, "c"])


def test_saved_and_loaded_it_projects_the_same(tmp_path: Path, sample: FitSample, projection: Projection) -> None:
    projection.save(tmp_path / "one")
    loaded = Projection.load(tmp_path / "one")
    assert loaded.metrics == projection.metrics
    assert torch.equal(
        loaded.project(sample.sources, sample.annotations).values,
        projection.project(sample.sources, sample.annotations).values,
    )
    loaded.save(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [MARK, "config.json", "model.safetensors"]


def test_what_is_no_projection_is_refused(tmp_path: Path, projection: Projection) -> None:
    with pytest.raises(ModelError, match="contains no projection"):
        Projection.load(tmp_path)
    projection.save(tmp_path)
    torch.save(projection.networks.state_dict(), tmp_path / "model.safetensors")  # a pickle
    with pytest.raises(ModelError, match="contains no projection: SafetensorError"):
        Projection.load(tmp_path)
    projection.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["sources"]["words"] = 13
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="contains no projection"):
        Projection.load(tmp_path)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_pools_with_fewer_pairs_than_folds(n: int) -> None:
    tiny = made_up(n)
    projection = fit(tiny, QUICK, seed=0)
    out = projection.project(tiny.sources, tiny.annotations)
    assert bool(out.valid.all())
    torch.testing.assert_close(out.values.norm(dim=1), torch.ones(n))
    assert projection.metrics["mean"]["fused"]["n"] == n


def test_one_annotation_for_all_leaves_the_experts_as_they_are() -> None:
    sample = made_up(12)
    sample = replace(sample, annotations=["same"] * 12, anchors=sample.anchors[:1].expand(12, -1))
    projection = fit(sample, QUICK, seed=0)
    text = [row for row, name in enumerate(sample.modality) if name == "text"]
    own = int(folds_of(["same"], QUICK.folds, 0)[0])
    assert [len(history) > 0 for history in projection.metrics["losses"]] == [False] * QUICK.folds
    out = projection.project(sample.sources, sample.annotations).values
    assert own in range(QUICK.folds)
    torch.testing.assert_close(out[text], F.normalize(sample.sources["words"].values[text], dim=1))


def test_one_modality_and_a_modality_with_one_member() -> None:
    sample = made_up(80)
    alone = fit(replace(sample, modality=["image"] * 80), QUICK, seed=0)
    assert alone.metrics["mean"]["fused"]["gap"] == 0.0
    lone = fit(replace(sample, modality=["video", *["image"] * 79]), QUICK, seed=0)
    assert np.isfinite(lone.metrics["mean"]["fused"]["recall_at_1"])


def test_training_stops_where_validation_gets_worse(sample: FitSample) -> None:
    unrelated = sample.anchors[torch.randperm(320, generator=torch.Generator().manual_seed(0))]
    settings = QUICK.model_copy(
        update={"alignment_weight": 0.0, "residual_bias_weight": 0.0, "dropout": 0.0, "max_epochs": 40, "patience": 2}
    )
    for history in fit(replace(sample, anchors=unrelated, anchor_space=()), settings, seed=3).metrics["losses"]:
        validation = [epoch["validation"] for epoch in history]
        assert len(validation) < 40
        assert min(validation[-2:]) > min(validation)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 2, "dropout": 0.3},
        {"cluster_bias_weight": 1.0, "scale_bias_weight": 1.0, "normalise_bias": False},
        {"cluster_bias_weight": 10.0, "scale_bias_weight": 1.0},
        {"contrastive_weight": 0.0, "alignment_weight": 0.0},
    ],
)
def test_other_objectives_train_too(changes: dict[str, float]) -> None:
    sample = made_up(60)
    projection = fit(sample, QUICK.model_copy(update=changes), seed=0)
    assert bool(torch.isfinite(projection.project(sample.sources, sample.annotations).values).all())


def test_an_objective_without_any_term_is_refused() -> None:
    none = {"contrastive_weight": 0, "alignment_weight": 0, "residual_bias_weight": 0}
    with pytest.raises(ConfigError, match="at least one weight must be positive"):
        parse(ProjectionSettings, none)


def test_sources_outside_the_anchors_space_suffice() -> None:
    sample = made_up(800)
    images = torch.tensor([row for row, name in enumerate(sample.modality) if name == "image"])
    only = FitSample(
        sources={"sight": take(sample.sources, images)["sight"]},
        anchors=sample.anchors[images],
        modality=["image"] * len(images),
        annotations=[sample.annotations[row] for row in images.tolist()],
    )
    # Five of a hundred by chance.
    assert fit(only, QUICK, seed=0).metrics["mean"]["fused"]["recall_at_5"] > 0.7


def test_a_source_that_nobody_has_is_left_out() -> None:
    sample = made_up(40)
    nobody = Vectors(torch.zeros(40, 0), torch.zeros(40, dtype=torch.bool))
    projection = fit(replace(sample, sources={**sample.sources, "smell": nobody}), QUICK, seed=0)
    assert projection.sources == DIMS


def test_not_finite_is_refused() -> None:
    sample = made_up(40)
    sample.sources["words"].values[7, 2] = float("nan")
    with pytest.raises(ModelError, match="words hold NaN or infinite values in 1 of 40 rows"):
        fit(sample, QUICK, seed=0)

"""MAMCL as a term of the projection: what it learns, what it reports, and what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.mamcl import recalls
from nemo_mm_rank.config import Config, ProjectionSettings, parse
from nemo_mm_rank.errors import ModelError
from nemo_mm_rank.frames import Vectors
from nemo_mm_rank.projection import FitSample, Projection, fit, folds_of
from nemo_mm_rank.projection.fit import balanced_batches
from tests.projection.pool import QUICK, made_up

pytestmark = pytest.mark.filterwarnings("ignore::nemo_mm_rank.projection.LoneRowsWarning")  # the fit says it itself

ALONE = QUICK.model_copy(
    update={"mamcl_weight": 1.0, "contrastive_weight": 0.0, "alignment_weight": 0.0, "residual_bias_weight": 0.0}
)


@pytest.fixture(scope="module")
def sample() -> FitSample:
    return made_up(320, twins=20)


@pytest.fixture(scope="module")
def projection(sample: FitSample) -> Projection:
    return fit(sample, ALONE, seed=3)


def within(sample: FitSample, projection: Projection, seed: int) -> float:
    """The share of held-out annotations that find their own data among those of the same modality."""
    fused = projection.project(sample.sources, sample.annotations).values
    folds = torch.from_numpy(folds_of(sample.annotations, len(projection.networks), seed))
    kinds = torch.tensor([["image", "code", "text"].index(name) for name in sample.modality])
    rivals = (folds[:, None] == folds) & (kinds[:, None] == kinds)
    scores = (F.normalize(sample.anchors, dim=1) @ fused.T).masked_fill(~rivals, -1)
    return float((scores.argmax(1) == torch.arange(len(scores))).double().mean())


def test_it_learns_to_find_data_among_their_own_kind(sample: FitSample, projection: Projection) -> None:
    before = ALONE.model_copy(update={"max_epochs": 1, "learning_rate": 1e-9})
    assert within(sample, projection, 3) > within(sample, fit(sample, before, seed=3), 3) + 0.05
    for history in projection.metrics["losses"]:
        assert history[-1]["training"] < history[0]["training"]
        assert {epoch["active"] for epoch in history} == {1.0}


def test_it_is_reported(sample: FitSample, projection: Projection) -> None:
    assert projection.metrics["mamcl"] == {
        "pairs": {"code": 80, "image": 160, "text": 80},
        "alone": [],
        "equal_data": 0,
        "active": 1.0,
    }
    assert "mamcl" not in fit(made_up(40), QUICK, seed=0).metrics


def test_the_other_terms_do_not_notice_it(sample: FitSample) -> None:
    """Without the weight, a fit is what it was: no class is looked at, and unknown names are nobody's business."""
    strange = replace(sample, modality=["x" if name == "image" else "y" for name in sample.modality])
    assert fit(strange, QUICK, seed=3).metrics["mean"]["fused"]["n"] == 320


def test_it_goes_with_the_other_terms(sample: FitSample) -> None:
    both = fit(sample, QUICK.model_copy(update={"mamcl_weight": 1.0}), seed=3)
    assert both.metrics["mean"]["fused"]["recall_at_1"] > both.metrics["mean"]["words"]["recall_at_1"] + 0.1


def of_one_tower(n: int) -> FitSample:
    """Three modalities by one tower that sets each of them apart, and contents that do not differ by modality."""
    generator = torch.Generator().manual_seed(0)
    anchors = F.normalize(torch.randn(n, 16, generator=generator), dim=1)
    kind = torch.arange(n) % 3
    turn, apart = torch.randn(16, 24, generator=generator), 2 * torch.randn(3, 24, generator=generator)
    seen = anchors @ turn + 0.3 * torch.randn(n, 24, generator=generator) + apart[kind]
    names = [("text", "image", "video")[code] for code in kind.tolist()]
    texts = [f"annotation {row}" for row in range(n)]
    return FitSample({"tower": Vectors.full(F.normalize(seen, dim=1))}, anchors, names, texts)


def test_alone_it_leaves_offsets_that_calibration_or_another_term_takes_away() -> None:
    sample = of_one_tower(600)
    kind, fold = torch.arange(600) % 3, torch.from_numpy(folds_of(sample.annotations, 2, 0))
    found = {}
    for name, other in (("alone", 0.0), ("blended", 1.0)):
        settings = ALONE.model_copy(
            update={"contrastive_weight": other, "learning_rate": 1e-2, "dropout": 0.0, "folds": 2, "max_epochs": 20}
        )
        fused = fit(sample, settings, seed=0).project(sample.sources, sample.annotations).values
        parts = [recalls(fused[fold == k], sample.anchors[fold == k], kind[fold == k]) for k in (0, 1)]
        found[name] = {column: float(torch.cat([part[column] for part in parts]).mean()) for column in parts[0]}
    alone, blended = found["alone"], found["blended"]
    assert alone["same R@1"] > 0.8
    assert alone["mixed R@1"] < alone["same R@1"] - 0.25
    assert alone["wrong modality"] > 0.25
    assert alone["mixed R@1, matched"] > alone["mixed R@1"] + 0.1
    assert blended["mixed R@1"] > alone["mixed R@1"] + 0.25


def test_sets_are_classes_however_they_are_written(sample: FitSample) -> None:
    names = [{"image": "text, image", "code": "code", "text": "text"}[name] for name in sample.modality]
    turned = [name.replace("text, image", "image+text") if row % 8 else name for row, name in enumerate(names)]
    one, other = (fit(replace(sample, modality=name), ALONE, seed=3).metrics["mamcl"] for name in (names, turned))
    assert one["pairs"] == other["pairs"] == {"code": 80, "text": 80, "text+image": 160}


def test_equal_data_are_said_and_are_no_negatives(caplog: pytest.LogCaptureFixture) -> None:
    sample = made_up(80)
    first = torch.tensor([0, 0, 2, 3]).repeat(20)  # the pairs of a modality share their data
    shared = {name: Vectors(column.values[first], column.valid[first]) for name, column in sample.sources.items()}
    with caplog.at_level(logging.WARNING):
        found = fit(replace(sample, sources=shared), ALONE, seed=0).metrics["mamcl"]
    assert (found["equal_data"], found["active"]) == (80, 0.0)
    assert "80 pairs have data that another pair has too" in caplog.text
    one = fit(replace(sample, sources=shared, modality=["image"] * 80), ALONE, seed=0).metrics["mamcl"]
    assert (one["equal_data"], one["active"]) == (80, 1.0)  # in one class, three kinds of data to tell apart


def test_one_pair_alone_in_its_class_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sample = made_up(80)
    with caplog.at_level(logging.WARNING):
        found = fit(replace(sample, modality=["video", *["image"] * 79]), ALONE, seed=0).metrics["mamcl"]
    assert found["alone"] == ["video"]
    assert 0.9 < found["active"] < 1
    assert "alone in their class, so that nothing is learnt from them: video" in caplog.text


def test_most_rows_alone_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sample = made_up(5)
    with caplog.at_level(logging.WARNING):
        found = fit(replace(sample, modality=["video", "image", "text", "code", "audio"]), ALONE, seed=0)
    assert found.metrics["mamcl"]["active"] == 0.0
    assert "100 % of the rows stood alone in their batches" in caplog.text


def test_unknown_modalities_are_refused() -> None:
    sample = made_up(8)
    with pytest.raises(ModelError, match="MAMCL: unknown modality 'vidoe'; did you mean 'video'"):
        fit(replace(sample, modality=["vidoe", *sample.modality[1:]]), ALONE, seed=0)
    with pytest.raises(ModelError, match="MAMCL: empty modality"):
        fit(replace(sample, modality=["", *sample.modality[1:]]), ALONE, seed=0)


def test_a_modality_that_contradicts_the_content_is_refused() -> None:
    sample = replace(made_up(40), takes={"sight": frozenset({"image", "video"}), "code": frozenset({"code"})})
    fit(sample, ALONE, seed=0)
    images = [row for row, name in enumerate(sample.modality) if name == "image"]
    wrong = list(sample.modality)
    wrong[images[0]], wrong[images[1]], wrong[images[2]] = "text", "audio", "text, image"
    message = r"2 of 40 pairs are said to be 'audio', 'text', but have .* 'sight', which only image\+video data have"
    with pytest.raises(ModelError, match=message):
        fit(replace(sample, modality=wrong), ALONE, seed=0)


def test_values_that_are_not_finite_are_refused() -> None:
    sample = made_up(8)
    sample.sources["words"].values[3, 1] = float("nan")
    with pytest.raises(ModelError, match="words hold NaN or infinite values in 1 of 8 rows"):
        fit(sample, ALONE, seed=0)


@pytest.mark.parametrize("few", [1, 5, 7, 12])
def test_a_rare_modality_comes_in_twos(few: int) -> None:
    modality = torch.tensor([0] * (320 - few) + [1] * few)[torch.randperm(320)]
    rows = torch.arange(320)
    batches = balanced_batches(modality, rows, 32, torch.Generator().manual_seed(1), together=2)
    for _ in range(4):  # times through
        epoch = [next(batches) for _ in range(10)]
        assert torch.equal(torch.cat(epoch).sort().values, rows)
        assert {len(batch) for batch in epoch} == {32}
        rare = [int((modality[batch] == 1).sum()) for batch in epoch]
        assert sum(count == 1 for count in rare) <= few % 2


def test_without_bunches_batches_are_as_they_were() -> None:
    modality = torch.arange(100) % 3 // 2
    one, other = (
        balanced_batches(modality, torch.arange(100), 25, torch.Generator().manual_seed(1), together)
        for together in (1, 2)
    )
    assert all(torch.equal(next(one), next(other)) for _ in range(8))


def config(projection: dict[str, float], **ranking: object) -> Config:
    return parse(Config, {"pools": "p", "queries": "q", "projection": projection, "ranking": ranking})


def test_ranking_calibrates_after_mamcl_alone_unless_told_otherwise() -> None:
    only = {"mamcl_weight": 1.0, "contrastive_weight": 0.0}
    assert config({}).ranked_by.calibration == "off"
    assert config({"mamcl_weight": 1.0}).ranked_by.calibration == "off"  # blended with the unmasked term
    assert config(only).ranked_by.calibration == "matched"
    assert config(only, calibration="quantile").ranked_by.calibration == "quantile"
    assert config(only, calibration=False).ranked_by.calibration == "off"  # YAML's bare off
    # What was not said stays so where the configuration is kept and read again; what was said, too.
    for ranking, how in (({}, "matched"), ({"calibration": "off"}, "off")):
        kept = config(only, **ranking).model_dump(mode="json", by_alias=True, exclude_defaults=True)
        assert parse(Config, kept).ranked_by.calibration == how
    assert parse(ProjectionSettings, {**only, "alignment_weight": 0, "residual_bias_weight": 0}).only_mamcl

"""MAMCL against its formula, the authors' figures and its invariances; bad input; two processes as one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.projection import (
    LoneRowsWarning,
    active_rows,
    contrastive_loss,
    equal_rows,
    gather,
    mamcl_loss,
    modality_codes,
)

pytestmark = pytest.mark.filterwarnings("ignore::nemo_mm_rank.projection.LoneRowsWarning")

# The worked example: checked against the authors' own compute_loss.
QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
TARGETS = torch.tensor([[0.8, 0.6], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
CLASSES = [1, 1, 2, 3]


def batch(seed: int, n: int, kinds: int = 3, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries, targets = F.normalize(torch.randn(2, n, d, generator=generator, dtype=torch.float64), dim=2)
    return queries, targets, torch.randint(1, kinds + 1, (n,), generator=generator)


def by_class(queries: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """The size-weighted mean of InfoNCE inside each class."""
    total = torch.zeros((), dtype=queries.dtype)
    for code in torch.unique(codes):
        own = torch.nonzero(codes == code).view(-1)
        scores = queries[own] @ targets[own].T / temperature
        total = total + len(own) * F.cross_entropy(scores, torch.arange(len(own)))
    return total / len(codes)


SEEDS, SIZES, KINDS = st.integers(0, 10_000), st.integers(1, 14), st.integers(1, 5)


def test_the_authors_example() -> None:
    assert float(mamcl_loss(QUERIES, TARGETS, CLASSES, 0.5)) == pytest.approx(0.25650763, abs=1e-8)
    named = ["text", "text", "image", "text, image"]
    assert float(mamcl_loss(QUERIES, TARGETS, named, 0.5)) == pytest.approx(0.25650763, abs=1e-8)
    one_class = mamcl_loss(QUERIES, TARGETS, [1] * 4, 0.5)  # InfoNCE
    assert float(one_class) == pytest.approx(1.56295488, abs=1e-8)


def test_both_directions_are_masked() -> None:
    # Columns 1 and 2 of the class of the first two: exp(1.6) + exp(1.2) again, less 1.6; the lone rows add nothing.
    assert float(mamcl_loss(QUERIES, TARGETS, CLASSES, 0.5, symmetric=True)) == pytest.approx(0.25650763, abs=1e-8)
    there, back = (mamcl_loss(*sides, CLASSES, 0.3) for sides in ((QUERIES, TARGETS), (TARGETS, QUERIES)))
    both = mamcl_loss(QUERIES, TARGETS, CLASSES, 0.3, symmetric=True)
    assert float(both) == pytest.approx((float(there) + float(back)) / 2)


@given(SEEDS, SIZES, KINDS, st.sampled_from([0.03, 0.5]))
@settings(max_examples=40, deadline=None)
def test_it_is_the_size_weighted_mean_of_infonce_within_classes(seed: int, n: int, kinds: int, t: float) -> None:
    queries, targets, codes = batch(seed, n, kinds)
    assert float(mamcl_loss(queries, targets, codes, t)) == pytest.approx(
        float(by_class(queries, targets, codes, t)), abs=1e-12
    )
    info = F.cross_entropy(queries @ targets.T / t, torch.arange(n))
    assert float(mamcl_loss(queries, targets, codes, t)) <= float(info) + 1e-12


@given(SEEDS, SIZES, KINDS)
@settings(max_examples=30, deadline=None)
def test_order_and_names_of_classes_do_not_matter(seed: int, n: int, kinds: int) -> None:
    queries, targets, codes = batch(seed, n, kinds)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(n))
    other = torch.from_numpy(rng.permutation(1000)[:6] + 1)[codes]
    expected = float(mamcl_loss(queries, targets, codes, 0.1))
    found = mamcl_loss(queries[order], targets[order], other[order], 0.1)
    assert float(found) == pytest.approx(expected, abs=1e-12)


@given(SEEDS, SIZES)
@settings(max_examples=20, deadline=None)
def test_one_class_with_both_directions_is_the_contrastive_loss(seed: int, n: int) -> None:
    queries, targets, _ = batch(seed, n)
    found = mamcl_loss(queries, targets, ["image"] * n, 0.1, symmetric=True)
    assert float(found) == pytest.approx(float(contrastive_loss(queries, targets, 0.1)), abs=1e-12)


def test_no_gradient_crosses_classes_and_lone_rows_have_none() -> None:
    queries, targets, _ = batch(3, 6)
    codes = torch.tensor([1, 1, 2, 2, 2, 7])
    queries.requires_grad_(), targets.requires_grad_()
    rows = torch.stack([_row(queries, targets, codes, row) for row in range(6)])
    for row in range(6):
        by_query, by_target = torch.autograd.grad(rows[row], (queries, targets), retain_graph=True)
        assert (by_target[codes != codes[row]] == 0).all()
        others = torch.arange(6) != row
        assert (by_query[others] == 0).all()
    loss = mamcl_loss(queries, targets, codes, 0.1)
    by_query, by_target = torch.autograd.grad(loss, (queries, targets))
    assert float(rows.mean().detach()) == pytest.approx(float(loss.detach()))
    assert by_query[5].tolist() == by_target[5].tolist() == [0.0] * 4
    assert float(by_query[:5].norm(dim=1).min()) > 0


def _row(queries: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor, row: int) -> torch.Tensor:
    own = codes == codes[row]
    return torch.logsumexp(queries[row] @ targets[own].T / 0.1, 0) - queries[row] @ targets[row] / 0.1


def test_the_closed_form_of_its_gradient() -> None:
    queries, targets, codes = batch(8, 7)
    queries.requires_grad_(), targets.requires_grad_()
    same = codes[:, None] == codes
    shares = (queries @ targets.T / 0.2).masked_fill(~same, -math.inf).softmax(1).detach()
    by_query, by_target = torch.autograd.grad(mamcl_loss(queries, targets, codes, 0.2), (queries, targets))
    torch.testing.assert_close(by_query, (shares - torch.eye(7)) @ targets.detach() / (7 * 0.2))
    torch.testing.assert_close(by_target, (shares - torch.eye(7)).T @ queries.detach() / (7 * 0.2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_right(symmetric: bool) -> None:
    queries, targets, codes = batch(4, 5)
    negatives = batch(5, 3)[0].requires_grad_()
    inputs = (queries.requires_grad_(), targets.requires_grad_(), negatives)
    assert torch.autograd.gradcheck(
        lambda q, c, extra: mamcl_loss(q, c, codes, 0.4, extra, symmetric=symmetric), inputs
    )


def test_all_alone_is_zero_and_said() -> None:
    queries, targets, _ = batch(0, 4)
    queries.requires_grad_()
    with pytest.warns(LoneRowsWarning, match="4 of 4 rows have no negative of their class"):
        loss = mamcl_loss(queries, targets, ["text", "image", "video", "audio"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert queries.grad is not None
    assert float(queries.grad.abs().max()) == 0.0
    with pytest.warns(LoneRowsWarning, match="3 of 5 rows"):
        mamcl_loss(*batch(0, 5)[:2], [1, 1, 2, 3, 4])


@pytest.mark.filterwarnings("error")
def test_half_a_batch_alone_is_not_most() -> None:
    mamcl_loss(QUERIES, TARGETS, CLASSES)
    assert active_rows(CLASSES).tolist() == [True, True, False, False]
    assert active_rows(CLASSES, torch.tensor([5, 5, 6, 7])).any().item() is False


def test_vectors_are_used_as_given() -> None:
    queries, targets, codes = batch(1, 6)
    expected = float(mamcl_loss(queries, targets, codes, 0.1))
    assert float(mamcl_loss(queries * 2, targets, codes, 0.2)) == pytest.approx(expected)
    assert float(mamcl_loss(queries * 2, targets, codes, 0.1)) != pytest.approx(expected)


def test_moving_a_whole_modality_changes_nothing() -> None:
    """The caveat: a target's modality may add whatever it likes to its scores."""
    queries, targets, codes = batch(2, 9)
    offset = torch.tensor([0.0, 0.0, 5.0, -3.0])[codes]  # by class
    shifted = torch.cat([targets, offset[:, None]], 1), torch.cat([queries, torch.ones(9, 1)], 1)
    assert float(mamcl_loss(shifted[1], shifted[0], codes, 0.1)) == pytest.approx(
        float(mamcl_loss(queries, targets, codes, 0.1))
    )
    assert float(mamcl_loss(shifted[1], shifted[0], [1] * 9, 0.1)) > 1


def test_negatives_are_everybodys() -> None:
    queries, targets, codes = batch(6, 5)
    negatives = batch(7, 3)[0]
    expected = 0.0
    for row in range(5):
        rivals = torch.cat([targets[codes == codes[row]], negatives])
        expected += float(torch.logsumexp(queries[row] @ rivals.T / 0.1, 0) - queries[row] @ targets[row] / 0.1) / 5
    assert float(mamcl_loss(queries, targets, codes, 0.1, negatives)) == pytest.approx(expected)


@given(SEEDS, st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_equal_targets_are_not_negatives_where_asked(seed: int, n: int) -> None:
    queries, targets, codes = batch(seed, n)
    targets = targets[torch.arange(n) // 2]  # in twos
    codes = codes[torch.arange(n) // 2]
    ids = equal_rows(targets.float())
    assert len(torch.unique(ids)) == (n + 1) // 2
    expected = 0.0
    for row in range(n):
        rivals = [k for k in range(n) if k == row or (codes[k] == codes[row] and k // 2 != row // 2)]
        scores = queries[row] @ targets[rivals].T / 0.1
        expected += float(torch.logsumexp(scores, 0) - queries[row] @ targets[row] / 0.1) / n
    assert float(mamcl_loss(queries, targets, codes, 0.1, groups=ids)) == pytest.approx(expected)
    # A second column of ids: equal in either way is enough.
    both = torch.stack([torch.arange(n), ids], dim=1)
    assert float(mamcl_loss(queries, targets, codes, 0.1, groups=both)) == pytest.approx(expected)


def test_equal_rows_are_found_and_others_are_not() -> None:
    values = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    values[4321] = values[7]
    values[9, 0] += 1e-6
    ids = equal_rows(values)
    assert len(torch.unique(ids)) == 4999
    assert ids[4321] == ids[7]
    assert equal_rows(values[:0]).tolist() == []
    assert len(torch.unique(equal_rows(torch.zeros(3, 0)))) == 1


def test_codes_of_modality_sets() -> None:
    names = ["text", "image", "video", "audio", "code", "text, image", "image,text", "video+text", "audio, code"]
    assert modality_codes(names).tolist() == [1, 2, 4, 8, 16, 3, 3, 5, 24]
    assert modality_codes(np.array(names)).tolist() == modality_codes(names).tolist()
    assert modality_codes([{"text", "image"}, ("video",), ["audio", "audio"]]).tolist() == [3, 4, 8]
    for codes in ([3, 1], np.array([3, 1], dtype=np.int32), torch.tensor([3, 1], dtype=torch.int32)):
        assert modality_codes(codes).tolist() == [3, 1]
    assert modality_codes(["image", "text+image"], content=[["image"], ["image", "text"]]).tolist() == [2, 3]


def test_half_precision_is_summed_in_full() -> None:
    queries, targets, codes = batch(1, 6)
    loss = mamcl_loss(queries.bfloat16(), targets.bfloat16(), codes)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(mamcl_loss(queries, targets, codes)), rel=0.1)


NAN, GOOD = torch.tensor([[0.0, math.nan], [1.0, 0.0]]), torch.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mamcl_loss(NAN, GOOD, [1, 1]), "queries: NaN"),
        (lambda: mamcl_loss(GOOD, NAN, [1, 1]), "targets: NaN"),
        (lambda: mamcl_loss(GOOD, GOOD, [1, 1], negatives=NAN), "negatives: NaN"),
        (lambda: mamcl_loss(GOOD, torch.eye(3), [1, 1]), "targets must be of shape"),
        (lambda: mamcl_loss(GOOD, GOOD, [1, 1], negatives=torch.eye(3)), "negatives must have 2 dimensions, not 3"),
        (lambda: mamcl_loss(GOOD, GOOD, [1, 1], 0.0), "temperature must be positive"),
        (lambda: mamcl_loss(GOOD, GOOD, [1]), "one target modality for each of 2 rows"),
        (lambda: mamcl_loss(GOOD, GOOD, ["text", "imgae"]), "unknown modality 'imgae'; did you mean 'image'"),
        (lambda: mamcl_loss(GOOD, GOOD, ["text", ""]), "empty modality"),
        (lambda: mamcl_loss(GOOD, GOOD, ["text", "image,"]), "empty modality"),
        (lambda: mamcl_loss(GOOD, GOOD, ["text", []]), "empty modality"),
        (lambda: mamcl_loss(GOOD, GOOD, np.array(["text", None])), "names, collections of names, or codes"),
        (lambda: mamcl_loss(GOOD, GOOD, [0, 1]), "0 stands for no modality"),
        (lambda: mamcl_loss(GOOD, GOOD, [True, False]), "not torch.bool"),
        (lambda: mamcl_loss(GOOD, GOOD, torch.ones(2)), "names or a vector of integers"),
        (lambda: mamcl_loss(GOOD, GOOD, [1, 1], groups=torch.zeros(3)), "ids for each of 2 rows, not 3"),
        (
            lambda: modality_codes(["image", "text", "text"], content=["image", "image", "text+image"]),
            "2 of 3 target modalities contradict their content: row 1 is said to be 'text' and is 'image'",
        ),
    ],
)
def test_mistakes_are_named(call: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_without_a_process_group_a_batch_is_the_whole() -> None:
    assert gather(QUERIES) is QUERIES


PROCESS = """
import json, sys
import torch, torch.distributed as dist
from nemo_mm_rank.projection.mamcl import gather, mamcl_loss
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
own = slice(rank * 6, rank * 6 + 6)
queries, targets, codes = (torch.tensor(part[own], dtype=torch.float64) for part in json.load(open(sys.argv[4])))
codes = codes.long()
queries.requires_grad_(), targets.requires_grad_()
loss = mamcl_loss(gather(queries), gather(targets), gather(codes), 0.1)
loss.backward()
refused = ""
try:
    gather(queries[: 3 + rank])
except ValueError as error:
    refused = str(error)
found = {"loss": loss.item(), "queries": queries.grad.tolist(), "targets": targets.grad.tolist(), "refused": refused}
open(out, "w").write(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    outs = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    given = tmp_path / "batch.json"
    given.write_text(json.dumps([part.tolist() for part in batch(11, 12)]))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store"), str(out), str(given)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    found = [json.loads(out.read_text()) for out in outs]
    queries, targets, codes = batch(11, 12)
    queries.requires_grad_(), targets.requires_grad_()
    loss = mamcl_loss(queries, targets, codes, 0.1)
    by_query, by_target = torch.autograd.grad(loss, (queries, targets))
    for rank, one in enumerate(found):
        own = slice(rank * 6, rank * 6 + 6)
        assert one["loss"] == pytest.approx(float(loss.detach()), abs=1e-12)
        torch.testing.assert_close(torch.tensor(one["queries"], dtype=torch.float64), by_query[own])
        torch.testing.assert_close(torch.tensor(one["targets"], dtype=torch.float64), by_target[own])
        assert "batches of one shape" in one["refused"]

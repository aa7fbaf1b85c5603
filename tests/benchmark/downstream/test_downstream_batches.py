from __future__ import annotations

from itertools import islice

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_mm_rank.benchmark.downstream.small import PackedRows, PrefixLM, all_rows, lay_out, training_batches
from nemo_mm_rank.benchmark.downstream.vocabulary import Tokens
from nemo_mm_rank.frames import Vectors

PREFIX = 3


def tokens_of(lengths: list[int]) -> Tokens:
    """Annotations whose tokens all differ."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Tokens(torch.arange(int(starts[-1])), starts)


def asked(tokens: Tokens, batch: PackedRows) -> dict[int, list[int]]:
    """Return what is asked for of each place among the rows, having checked that what is read fits it."""
    found: dict[int, list[int]] = {}
    read = dict(zip(batch.place.tolist(), batch.inputs.tolist(), strict=True))
    for place, target in zip(batch.asked.tolist(), batch.targets.tolist(), strict=True):
        row, step = divmod(place, batch.length)
        found.setdefault(row, []).append(target)
        assert step - (PREFIX - 1) == len(found[row]) - 1
        if step >= PREFIX:
            assert read.pop(place) == found[row][-2]
    assert not read
    return found


def test_a_row_is_read_up_to_the_token_before_the_last_that_is_asked_for() -> None:
    tokens = tokens_of([2, 4, 1])
    batch = lay_out(tokens, torch.tensor([1, 2, 0]), torch.tensor([3, 1, 2]), PREFIX)
    assert asked(tokens, batch) == {0: [2, 3, 4], 1: [6], 2: [0, 1]}
    assert batch.inputs.tolist() == [2, 3, 0]
    assert batch.length == PREFIX + 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 9))
def test_every_batch_asks_for_exactly_so_many_tokens(lengths: list[int], size: int, seed: int) -> None:
    tokens = tokens_of(lengths)
    modality = torch.arange(len(lengths)) % 2
    rows = torch.arange(len(lengths))[:: 1 + seed % 2]
    batches = training_batches(tokens, modality, rows, size, PREFIX, torch.Generator().manual_seed(seed))
    for batch in islice(batches, 5):
        assert len(batch.targets) == size
        found = asked(tokens, batch)
        assert set(batch.rows.tolist()) <= set(rows.tolist())
        for place, row in enumerate(batch.rows.tolist()):
            whole = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]].tolist()
            # All but the last row are whole.
            assert found[place] == whole[: len(found[place])]
            assert found[place] == whole or place == len(batch.rows) - 1


def test_all_rows_are_learnt_from_alike_and_modalities_mixed() -> None:
    tokens = tokens_of([4] * 30)
    modality = (torch.arange(30) >= 20).long()
    batches = training_batches(tokens, modality, torch.arange(30), 24, PREFIX, torch.Generator().manual_seed(0))
    first = list(islice(batches, 10))
    counts = torch.bincount(torch.cat([batch.rows for batch in first]), minlength=30)
    assert counts.tolist() == [2] * 30
    assert all(int(modality[batch.rows].sum()) == 2 for batch in first)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40))
def test_every_row_is_judged_once_and_whole(lengths: list[int], size: int) -> None:
    tokens = tokens_of(lengths)
    batches = list(all_rows(tokens, torch.arange(len(lengths)), size, PREFIX))
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(len(lengths)))
    assert sorted(torch.cat([batch.targets for batch in batches]).tolist()) == tokens.ids.tolist()
    assert all(len(batch.targets) <= max(size, *lengths) + size for batch in batches)


def network(vocabulary: int) -> PrefixLM:
    made = PrefixLM([4, 2], vocabulary, width=16, layers=2, heads=2, prefix=PREFIX, longest=12, dropout=0.5)
    made.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in made.sources:
            torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        for parameter in made.parameters():
            parameter.mul_(8)  # so that all that a row sees shows
    return made


def test_a_row_sees_its_own_prefix_and_the_tokens_before_and_nothing_else() -> None:
    tokens = tokens_of([5, 2, 7, 1])
    told = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    there = torch.tensor([True, False, True, False])
    other = ~there & (torch.arange(4) != 3)  # the last row has no features at all
    columns = [Vectors(told * there[:, None], there), Vectors(told[:, :2] * other[:, None], other)]
    made = network(len(tokens.ids))
    together = made(columns, lay_out(tokens, torch.tensor([2, 0, 3, 1]), torch.tensor([7, 4, 1, 2]), PREFIX))
    parts = torch.split(together, [7, 4, 1, 2])
    for row, count, found in zip([2, 0, 3, 1], [7, 4, 1, 2], parts, strict=True):
        alone = made(columns, lay_out(tokens, torch.tensor([row]), torch.tensor([count]), PREFIX))
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
        # The first tokens do not know what follows.
        fewer = made(columns, lay_out(tokens, torch.tensor([row]), torch.tensor([1]), PREFIX))
        torch.testing.assert_close(found[:1], fewer, rtol=1e-4, atol=1e-4)
    changed = [Vectors(columns[0].values + 1.0, there), columns[1]]
    batch = lay_out(tokens, torch.arange(4), torch.tensor([5, 2, 7, 1]), PREFIX)
    differs = (made(changed, batch) - made(columns, batch)).abs().amax(dim=1) > 1e-3
    assert [bool(own.all()) for own in torch.split(differs, [5, 2, 7, 1])] == [True, False, True, False]
    assert not torch.split(differs, [5, 2, 7, 1])[1].any()


def test_only_a_generator_drops_and_its_seed_says_what() -> None:
    tokens = tokens_of([5, 2])
    columns = [Vectors.full(torch.ones(2, 4)), Vectors.full(torch.ones(2, 2))]
    batch = lay_out(tokens, torch.arange(2), torch.tensor([5, 2]), PREFIX)
    made = network(len(tokens.ids))
    with torch.no_grad():
        first, again = (made(columns, batch, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.allclose(first, made(columns, batch, torch.Generator().manual_seed(4)))
        assert torch.equal(made(columns, batch), made(columns, batch))

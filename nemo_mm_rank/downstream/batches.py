"""Batches of exactly so many annotation tokens, whatever the annotations' lengths, every modality in its share."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nemo_mm_rank.downstream.network import Batch
from nemo_mm_rank.downstream.vocabulary import Tokens
from nemo_mm_rank.projection.train import balanced_batches


def training_rows(
    lengths: torch.Tensor, modality: torch.Tensor, rows: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows that have ``size`` annotation tokens together, for ever, all ``rows`` over and over.

    Rows come shuffled, modalities evenly mixed. The last row of a batch is asked for only as many tokens as are
    missing, so that every strategy learns from the same number of tokens at every step.

    Args:
        lengths: ``(n,)`` int64, tokens of each annotation of the whole pool.
        modality: ``(n,)`` int64 codes of the whole pool.
        rows: ``(k,)`` int64, which of them to learn from; at least one.
        size: annotation tokens of a batch.
        generator: CPU.

    Yields:
        ``(b,)`` int64 rows, and how many of its first tokens each is asked for.
    """
    passes = balanced_batches(modality, rows, len(rows), generator)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while int(lengths[waiting].sum()) < size:
            waiting = torch.cat([waiting, next(passes)])
        total = lengths[waiting].cumsum(0)
        taken = int(torch.searchsorted(total, size)) + 1
        chosen, waiting = waiting[:taken], waiting[taken:]
        wanted = lengths[chosen].clone()
        wanted[-1] -= total[taken - 1] - size
        yield chosen, wanted


def alike(lengths: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Return the places of ``lengths`` in groups of about ``size`` together, those of like length in one."""
    ordered = lengths.argsort(stable=True)
    group = (lengths[ordered].cumsum(0) - 1) // size
    return torch.split(ordered, torch.unique_consecutive(group, return_counts=True)[1].tolist())


def training_batches(
    tokens: Tokens, modality: torch.Tensor, rows: torch.Tensor, size: int, prefix: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield the batches of `training_rows`, laid out after ``prefix`` tokens each."""
    for chosen, wanted in training_rows(tokens.lengths, modality, rows, size, generator):
        yield lay_out(tokens, chosen, wanted, prefix)


def all_rows(tokens: Tokens, rows: torch.Tensor, size: int, prefix: int) -> Iterator[Batch]:
    """Yield every one of ``rows`` once, whole, in batches of about ``size`` tokens, those of like length together."""
    lengths = tokens.lengths[rows]
    for own in alike(lengths, size):
        yield lay_out(tokens, rows[own], lengths[own], prefix)


def lay_out(tokens: Tokens, rows: torch.Tensor, wanted: torch.Tensor, prefix: int) -> Batch:
    """Return the batch of ``rows`` that asks for the first ``wanted`` tokens of each (at least one)."""
    length = prefix + int(wanted.max()) - 1
    row = torch.repeat_interleave(torch.arange(len(rows)), wanted)
    step = torch.arange(len(row)) - torch.repeat_interleave(wanted.cumsum(0) - wanted, wanted)
    targets = tokens.ids[tokens.starts[rows][row] + step]
    asked = row * length + prefix - 1 + step
    # What is asked for is read next, but for each row's last token.
    read = step < wanted[row] - 1
    return Batch(rows, targets[read], asked[read] + 1, asked, targets, length)

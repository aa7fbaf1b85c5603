"""Vectors: cosines with a few queries, each row by itself, and blocks of features to unit vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.arrays import Floats, Ints
from nemo_mm_rank.errors import ConfigError
from nemo_mm_rank.frames import Vectors

_ROWS = 4096
_CACHED = 1 << 18
Combine = Literal["mean", "max"]


def cosines(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return ``x . q / |x|`` for every vector ``x`` and direction ``q``: the cosine where ``q`` has unit length.

    A BLAS product rounds a row by where it lies in the matrix and by the number of threads. Here the sum over the
    dimensions is taken row by row, so a row's result depends on that row alone (on CUDA: blocks of one fixed shape).

    Args:
        vectors: ``(n, d)`` float32, of any length (norm).
        directions: ``(q, d)`` float32.

    Returns:
        ``(n, q)`` float32 on the vectors' device; NaN or infinite for a vector whose norm is zero or not finite.
    """
    directions = directions.to(device=vectors.device, dtype=torch.float32)
    out = vectors.new_empty((len(vectors), len(directions)), dtype=torch.float32)
    if vectors.device.type == "cpu":
        _rows_numpy(vectors.detach().float().contiguous(), directions, out)
    else:
        _rows_torch(vectors, directions, out)
    return out


def _rows_numpy(vectors: torch.Tensor, directions: torch.Tensor, out: torch.Tensor) -> None:
    matrix, result = vectors.numpy(), out.numpy()
    queries = directions.contiguous().numpy()
    # Blocks of 1 MiB: from the second product on, the rows are in the cache. Where they begin changes no row's bits.
    step = max(1, _CACHED // max(1, matrix.shape[1]))

    def block(start: int) -> None:
        rows, into = matrix[start : start + step], result[start : start + step]
        # einsum (unlike matmul) sums along each row by itself; it leaves BLAS out and the GIL free.
        for query, column in zip(queries, into.T, strict=True):
            np.einsum("ij,j->i", rows, query, out=column)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            into /= np.where(np.isinf(norms), np.nan, norms)[:, None]

    starts = range(0, len(matrix), step)
    if len(starts) < 2 or torch.get_num_threads() < 2:
        for start in starts:
            block(start)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(block, starts))


def _rows_torch(vectors: torch.Tensor, directions: torch.Tensor, out: torch.Tensor) -> None:
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS].float()
        count = len(rows)
        # How CUDA splits a sum depends on the shape, so the last block is filled up to the shape of the others.
        rows = torch.nn.functional.pad(rows, (0, 0, 0, _ROWS - count))
        norms = (rows * rows).sum(1).sqrt()
        norms[norms.isinf()] = float("nan")
        for column, query in enumerate(directions):
            out[start : start + count, column] = ((rows * query).sum(1) / norms)[:count]


def combine(
    queries: torch.Tensor, weights: Sequence[float], how: Combine, beside: Sequence[float] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce weighted queries to the directions that `cosines` needs.

    With unit queries ``q``, weights ``w`` (negative: what not to pick) and ``W`` the sum of the positive weights,

    * ``mean``: ``score(x) = sum(w q . x) / W / |x|``, one direction for all queries;
    * ``max``: ``score(x) = (max over w > 0 of w q . x  +  sum over w < 0 of w q . x) / max(w) / |x|``.

    One query of any positive weight scores its plain cosine either way. Queries of weight 0 are left out.

    Args:
        queries: ``(q, d)``, of any norm.
        weights: one per query, at least one of them (or of ``beside``) positive.
        how: see above.
        beside: weights of what is scored in other ways and added afterwards: they count in ``W`` and ``max(w)``.

    Returns:
        ``best`` ``(p, d)`` float32, whose highest product counts, and ``rest`` ``(0 or 1, d)``, which is added to it.

    Raises:
        ConfigError: no positive weight, or a query without a direction (zero or not finite).
    """
    weight = torch.tensor(list(weights), dtype=torch.float64)
    if queries.ndim != 2 or len(weight) != len(queries):
        raise ConfigError(f"{len(weight)} query weights for queries of shape {tuple(queries.shape)}")
    positive = [value for value in (*weight.tolist(), *beside) if value > 0]
    if not positive:
        raise ConfigError("queries: at least one needs a positive weight")
    queries = queries.detach().cpu().double()
    norms = queries.norm(dim=1)
    for row, norm in enumerate(norms.tolist()):
        if not 0 < norm < float("inf"):
            raise ConfigError(f"query {row + 1} has no direction in this space: its vector is zero or not finite")
    weighted = queries / norms[:, None] * weight[:, None]
    if how == "mean":
        direction = weighted.sum(0, keepdim=True) / torch.tensor(positive, dtype=torch.float64).sum()
        return direction.float(), direction[:0].float()
    scale = max(positive)
    rest = weighted[weight < 0].sum(0, keepdim=True) / scale
    return (weighted[weight > 0] / scale).float(), rest[: int((weight < 0).any())].float()


def rowwise(left: Vectors, right: Vectors) -> torch.Tensor:
    """Return the cosine of each row of ``left`` and the same row of ``right``, each row by itself as in `cosines`.

    Args:
        left: ``(n, d)``, of any norm.
        right: the same shape, in the same space, on the same device.

    Returns:
        ``(n,)`` float32 on their device, NaN where either row is not valid, zero or not finite.

    Raises:
        ConfigError: the rows differ in dimension.
    """
    out = left.values.new_full((len(left.valid),), float("nan"), dtype=torch.float32)
    both = torch.nonzero(left.valid & right.valid).view(-1)
    if not len(both):
        return out
    if left.values.shape != right.values.shape:
        sizes = left.values.shape[1], right.values.shape[1]
        raise ConfigError(f"embeddings of {sizes[0]} and {sizes[1]} dimensions do not share a space")
    for rows in torch.split(both, _ROWS):
        a, b = left.values[rows].float(), right.values[rows].float()
        if a.device.type == "cpu":
            x, y = a.numpy(), b.numpy()
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                xy, xx, yy = (np.einsum("ij,ij->i", one, other) for one, other in ((x, y), (x, x), (y, y)))
                out[rows] = torch.from_numpy(xy / (np.sqrt(xx) * np.sqrt(yy)))
        else:
            # Blocks of one fixed shape, as in `cosines`.
            a, b = (torch.nn.functional.pad(one, (0, 0, 0, _ROWS - len(rows))) for one in (a, b))
            found = (a * b).sum(1) / ((a * a).sum(1).sqrt() * (b * b).sum(1).sqrt())
            out[rows] = found[: len(rows)]
    return torch.where(out.isfinite(), out, float("nan"))


def unit_rows(values: npt.NDArray[Any], floor: float = 0.0) -> Floats:
    """L2-normalise the rows of ``(n, k)`` values; a row of zeros stays one.

    Rows not much longer than ``floor`` stay shorter than 1, so that what is next to nothing is not blown up.
    """
    rows = np.ascontiguousarray(values, dtype=np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True) + floor**2)
    unit: Floats = rows / np.where(norms > 0, norms, 1.0)
    return unit


def join_blocks(blocks: Sequence[npt.NDArray[Any]], floors: Sequence[float] | None = None) -> Floats:
    """Return the blocks ``(n, k)`` side by side, each L2-normalised by row so that none outweighs another.

    Args:
        blocks: all of ``n`` rows.
        floors: for each block, the length that is next to nothing; default: 0.
    """
    floors = floors or [0.0] * len(blocks)
    return np.concatenate([unit_rows(block, floor) for block, floor in zip(blocks, floors, strict=True)], axis=1)


_BLOCK = 256


def products(vectors: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the cosines of rows with many others, a block of rows at a time, each row the same whatever is beside it.

    Every product is of one shape and on one thread; of few others `cosines` is as fast.

    Args:
        vectors: ``(n, d)`` of any norm.
        others: ``(m, d)`` of unit length, on the same device.

    Yields:
        Which rows, and ``(b, m)`` float32: NaN for a vector whose norm is zero or not finite.
    """
    right = others.float().T.contiguous()
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK].float()
        count = len(rows)
        rows = torch.nn.functional.pad(rows, (0, 0, 0, _BLOCK - count))
        with threads(1):
            norms = (rows * rows).sum(1, keepdim=True).sqrt()
            norms[norms.isinf() | (norms == 0)] = float("nan")
            found = (rows / norms) @ right
        yield slice(start, start + count), found[:count]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside: with another number, sums may be rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take(column: Vectors, rows: Ints) -> Vectors:
    """Return some rows of a column."""
    where = torch.from_numpy(rows).to(column.values.device)
    return Vectors(column.values[where], column.valid[where])


def all_rows(vectors: torch.Tensor) -> Vectors:
    """Return vectors all of which are there."""
    return Vectors(vectors, torch.ones(len(vectors), dtype=torch.bool))


def on_host(column: Vectors) -> Vectors:
    """Return a column in the host's memory, float32."""
    return Vectors(column.values.float().cpu(), column.valid.cpu())


def to_numpy(values: torch.Tensor) -> Floats:
    """Return values on the host, float64."""
    return values.double().cpu().numpy()

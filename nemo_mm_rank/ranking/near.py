"""The first of some vectors that is near to another, without comparing each with all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nemo_mm_rank.arrays import Bools, Floats, Ints, Vectors

_ALONE = 8192
"""So many vectors are one cell: there is little to save."""
_SAMPLED, _ROUNDS = 32, 4
"""Vectors a cell that its centre is made of, and rounds of doing so."""
_CHUNK = 4096
# A product of float32 matrices rounds by its shape and threads; closer calls than this are made again in float64.
_MARGIN = 1e-4
_SLACK = 2e-3  # of distances and angles, in float32
_APART = 0.1  # centres count as no nearer to each other, so that a rounded difference is not blown up


@dataclass
class _Cell:
    """Members that lie nearest to one centre: ``count`` rows of buffers that grow by doubling."""

    positions: Ints
    vectors: Vectors
    count: int = 0
    nearest: float = np.inf
    farthest: float = -np.inf

    def add(self, positions: Ints, vectors: Vectors, angles: Vectors) -> None:
        start, self.count = self.count, self.count + len(positions)
        if self.count > len(self.positions):
            more = max(self.count - len(self.positions), len(self.positions))
            self.positions = np.concatenate([self.positions, np.empty(more, np.int64)])
            self.vectors = np.concatenate([self.vectors, np.empty((more, vectors.shape[1]), np.float32)])
        self.positions[start : self.count], self.vectors[start : self.count] = positions, vectors
        self.nearest = min(self.nearest, float(angles.min()))
        self.farthest = max(self.farthest, float(angles.max()))


class NearIndex:
    """Members of a set of vectors, among which the first that is near to a given one is found: exactly.

    Members are kept in cells, each with the centre that is nearest. Those of another cell lie beyond the plane halfway
    between both centres, and at angles with their own centre that are known: where the plane or all of these angles
    are farther away than near ones may be, a cell holds none, and is not looked at.
    """

    def __init__(self, vectors: Vectors, similarity: float) -> None:
        """Give all ``(n, d)`` vectors, and from which cosine on two are near; one of zeros is near to none."""
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        self._similarity = similarity
        self._distance = float(np.sqrt(max(0.0, 2 - 2 * similarity))) + _SLACK
        self._angle = float(np.arccos(np.clip(similarity, -1, 1))) + _SLACK
        self._centres = _centres(self._vectors)
        between = 2 - 2 * self._centres @ self._centres.T
        self._between = np.sqrt(np.maximum(between, _APART**2))
        empty = np.empty(0, np.int64), np.empty((0, vectors.shape[1]), np.float32)
        self._cells = [_Cell(*empty) for _ in self._centres]

    def add(self, members: Ints) -> None:
        """Make vectors members, by their positions."""
        if not len(members):
            return
        products = _product(self._vectors[members], self._centres)
        nearest = products.argmax(1)
        for cell in np.unique(nearest).tolist():
            in_cell = np.flatnonzero(nearest == cell)
            positions, angles = members[in_cell], np.arccos(np.clip(products[in_cell, cell], -1, 1))
            self._cells[cell].add(positions, self._vectors[positions], angles)

    def first(self, rows: Ints) -> Ints:
        """Return ``(r,)`` the lowest position of a member that is near to each row, -1 where none is."""
        none = len(self._vectors)
        lowest = np.full(len(rows), none, dtype=np.int64)
        if not len(rows):
            return lowest
        vectors = self._vectors[rows]
        products = _product(vectors, self._centres)
        nearest, angles = products.argmax(1), np.arccos(np.clip(products, -1, 1))
        open_ = (products.max(1, keepdims=True) - products) <= self._distance * self._between[nearest]
        open_ &= angles >= np.array([cell.nearest for cell in self._cells], np.float32) - self._angle
        open_ &= angles <= np.array([cell.farthest for cell in self._cells], np.float32) + self._angle
        for number in np.flatnonzero(open_.any(0)).tolist():
            cell, open_rows = self._cells[number], np.flatnonzero(open_[:, number])
            for start in range(0, cell.count, _CHUNK):
                block = slice(start, min(start + _CHUNK, cell.count))
                row, column = np.nonzero(self._near(vectors[open_rows], cell.vectors[block]))
                np.minimum.at(lowest, open_rows[row], cell.positions[block][column])
        return np.where(lowest < none, lowest, -1)

    def matrix(self, rows: Ints, others: Ints) -> Bools:
        """Return ``(r, o)``: whether the cosine reaches the similarity."""
        return self._near(self._vectors[rows], self._vectors[others])

    def _near(self, left: Vectors, right: Vectors) -> Bools:
        """Return ``(r, o)``: whether the cosine reaches the similarity, the same whatever the shape."""
        products = _product(left, right)
        near: Bools = products >= self._similarity + _MARGIN
        close = np.argwhere(np.abs(products - self._similarity) < _MARGIN)
        for start in range(0, len(close), _CHUNK):
            i, j = close[start : start + _CHUNK].T
            near[i, j] = _cosine(left[i], right[j]) >= self._similarity
        return near


def _centres(vectors: Vectors) -> Vectors:
    """Return ``(c, d)`` unit vectors, as many as the root of ``n``: centres of cells of about equal size."""
    count = 1 if len(vectors) <= _ALONE else round(len(vectors) ** 0.5)
    sample = vectors[:: max(1, len(vectors) // (count * _SAMPLED))]
    centres = sample[:: max(1, len(sample) // count)][:count]
    for _ in range(_ROUNDS if count > 1 else 0):
        cells = np.concatenate(
            [_product(sample[s : s + _CHUNK], centres).argmax(1) for s in range(0, len(sample), _CHUNK)]
        )
        sums = np.zeros_like(centres)
        np.add.at(sums, cells, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.where(norms > 0, norms, 1), centres)
    return centres


def _product(left: Vectors, right: Vectors) -> Vectors:
    product: Vectors = (torch.from_numpy(left) @ torch.from_numpy(right).T).numpy()
    return product


def _cosine(x: Vectors, y: Vectors) -> Floats:
    """Return row-wise cosines in float64; exactly 1 for equal rows."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = (np.einsum("ij,ij->i", a, b) for a, b in ((x, x), (y, y), (x, y)))
    cosine: Floats = xy / np.sqrt(xx * yy)
    return cosine

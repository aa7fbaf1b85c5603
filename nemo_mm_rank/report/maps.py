"""Two-dimensional maps of embedding spaces: principal components, then t-SNE, on a bounded sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.measures.plane import FEWEST, flatten
from nemo_mm_rank.models.expert import Source, sources
from nemo_mm_rank.report.run import Run
from nemo_mm_rank.schema import FUSED, annotation_column
from nemo_mm_rank.shards import read_vectors

SAMPLE = 600
"""Pairs on a map. Each has a point for its data and, where annotations lie in the same space, one for that."""
MAX_MAPS = 9

_FRAME = np.array([1000.0, 720.0])


def maps(run: Run, positions: Ints, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return a map of the space of every expert, and of the fused one last, for the page's scripts.

    Args:
        run: the finished run.
        positions: the sample, among the ranked pairs.
        indices: the same pairs by their index on the page.
    """
    places = run.scored.places[positions]
    index = np.asarray(indices)
    spaces = [
        (source.expert if count == 1 else f"{source.expert}: {source.model}", source)
        for expert in run.config.experts
        for count, source in ((len(sources(expert)), source) for source in sources(expert))
    ]
    drawn = []
    for title, source in spaces[: MAX_MAPS - 1]:
        note = ", ".join(sorted(source.modalities)) if source.modalities else "every modality"
        drawn.append(_map(run, title, note, source.column, _anchor(run, source), places, index))
    fused = _map(run, "fused", "all experts, projected", FUSED, annotation_column(run.config.anchor), places, index)
    return [drawing for drawing in (*drawn, fused) if drawing is not None]


def _anchor(run: Run, source: Source) -> str | None:
    """Return the column of annotations in the space of a source, where there is one."""
    column = annotation_column(source.model)
    return column if column in run.shards.columns() else None


def _map(
    run: Run, title: str, note: str, column: str, anchor: str | None, places: Ints, index: Ints
) -> dict[str, Any] | None:
    data = read_vectors(places, run.shards, column)
    sides = [(data, 0)]
    if anchor is not None:
        annotations = read_vectors(places, run.shards, anchor)
        if annotations.shape[1] == data.shape[1]:
            # Of the pairs that this space holds: the others' annotations would be strangers on its map.
            annotations[~data.any(axis=1)] = 0
            sides.append((annotations, 1))
    present = [(np.flatnonzero(vectors.any(axis=1)), side) for vectors, side in sides]
    points = np.concatenate([vectors[rows] for (vectors, _), (rows, _) in zip(sides, present, strict=True)])
    if len(points) < FEWEST:
        return None
    plane = np.round(_framed(flatten(points, run.config.seed))).astype(int)
    return {
        "title": title,
        "note": note,
        "x": plane[:, 0].tolist(),
        "y": plane[:, 1].tolist(),
        "pair": np.concatenate([index[rows] for rows, _ in present]).tolist(),
        "data": len(present[0][0]),
    }


def _framed(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn the longer way across, and scale alike in both ways into `_FRAME`, in its middle."""
    centred = plane - plane.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes *= np.sign(axes[:, [0]]) + (axes[:, [0]] == 0)  # of the two directions of an axis, always the same
    turned = centred @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    scale = float((_FRAME / np.maximum(high - low, 1e-12)).min())
    framed: npt.NDArray[np.float64] = (turned - (low + high) / 2) * scale + _FRAME / 2
    return framed

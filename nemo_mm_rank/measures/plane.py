"""A space in two dimensions: principal components, then t-SNE."""

from __future__ import annotations

import importlib.util

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.arrays import Vectors
from nemo_mm_rank.errors import require

FEWEST = 12
"""Points that make a map."""

_COMPONENTS, _PERPLEXITY = 50, 30.0


def flatten(points: Vectors, seed: int) -> npt.NDArray[np.float64]:
    """Return ``(n, 2)`` places of ``points`` ``(n, d)``: neighbours by cosine stay neighbours, far ones say little.

    t-SNE (van der Maaten and Hinton, 2008) from principal components, by scikit-learn on one thread: the same points
    and seed give the same places. By cuML where there is a GPU; its sums may be rounded otherwise from run to run.

    Raises:
        UserError: scikit-learn is not installed.
    """
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    components = min(_COMPONENTS, *unit.shape)
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    if torch.cuda.is_available() and importlib.util.find_spec("cuml") is not None:
        decomposition, manifold = (require(f"cuml.{name}", "gpu") for name in ("decomposition", "manifold"))
        reduced = decomposition.PCA(n_components=components).fit_transform(unit)
        placed = manifold.TSNE(n_components=2, perplexity=perplexity, random_state=seed, method="barnes_hut")
        return np.asarray(placed.fit_transform(reduced), dtype=np.float64)
    decomposition, manifold = (require(f"sklearn.{name}", "report") for name in ("decomposition", "manifold"))
    with require("threadpoolctl", "report").threadpool_limits(1):
        reduced = decomposition.PCA(n_components=components, svd_solver="full").fit_transform(unit.astype(np.float64))
        placed = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1, max_iter=600)
        return np.asarray(placed.fit_transform(reduced), dtype=np.float64)

"""DataComp's filtering baselines, with its exact definitions (Gadre et al. 2023; ``baselines/apply_filter.py``).

Each is a pure function from columns to ``(n,)`` bool: whether a pair is kept. `basic`, `laion2b` and `image_based` ask
for English by the label that a classifier puts first, whatever its probability. (For LAION's, DataComp has gcld3; here
it is whichever made the labels.) A score that is not there (NaN) is below every threshold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from nemo_mm_rank.arrays import Bools

Floats: TypeAlias = npt.NDArray[np.floating]
Numbers: TypeAlias = npt.NDArray[np.number]

ENGLISH = "en"
MIN_SIDE, MAX_ASPECT = 200, 3.0
LAION_THRESHOLD = 0.28
"""Of the cosine by CLIP ViT-B/32."""
ROWS_AT_ONCE = 4096

_WORD = re.compile(r"\n|[^ \n\r\t\v\f\0]+")


def basic(languages: Sequence[str | None], texts: Sequence[str], widths: Numbers, heights: Numbers) -> Bools:
    """Keep English captions of more than two words and five characters, of pictures that are large and not too long.

    Args:
        languages: ``n`` labels.
        texts: captions.
        widths, heights: ``(n,)`` pixels of the original pictures: the shorter side at least 200, the longer one at
            most three times that.
    """
    words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    shorter, longer = np.minimum(widths, heights), np.maximum(widths, heights)
    pictures = (shorter >= MIN_SIDE) & (longer <= MAX_ASPECT * shorter)
    return english(languages) & (words > 2) & (characters > 5) & pictures


def clip_score(scores: Floats, threshold: float) -> Bools:
    """Keep scores of at least ``threshold`` (DataComp's examples: .3 of ViT-L/14, .25 of ViT-B/32)."""
    kept: Bools = scores >= threshold
    return kept


def clip_threshold(scores: Floats, fraction: float) -> float:
    """Return the threshold that keeps ``fraction`` of the pool: the score at place ``int(n * fraction)``, best first.

    `clip_score` keeps that one too, and all that are equal to it. Pairs without a score come last, and count.

    Args:
        scores: ``(n,)`` of the whole pool, at least one.
        fraction: below 1.
    """
    descending = -np.sort(-np.nan_to_num(scores, nan=-np.inf))
    return float(descending[int(len(scores) * fraction)])


def laion2b(languages: Sequence[str | None], clip_b32: Floats) -> Bools:
    """Keep English captions with a CLIP score (ViT-B/32) of at least .28."""
    return english(languages) & clip_score(clip_b32, LAION_THRESHOLD)


def image_based(
    languages: Sequence[str | None],
    texts: Sequence[str],
    features: torch.Tensor,
    centroids: torch.Tensor,
    targets: npt.NDArray[np.integer],
) -> Bools:
    """Keep English captions of more than a word and five characters, of pictures in a cluster that has target images.

    Args:
        languages: ``n`` labels.
        texts: captions.
        features: ``(n, d)`` embeddings of the pictures (DataComp: CLIP ViT-L/14).
        centroids: ``(k, d)`` of a clustering of the pool (100,000 by k-means).
        targets: the clusters to keep, for example `nearest_centroids` of ImageNet's training pictures.
    """
    characters = np.fromiter(map(len, texts), np.int64, len(texts))
    inside = np.isin(nearest_centroids(features, centroids), targets)
    kept: Bools = english(languages) & (fasttext_words(texts) > 1) & (characters > 5) & inside
    return kept


def nearest_centroids(features: torch.Tensor, centroids: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return ``(n,)`` the centroid with the greatest inner product with each of ``(n, d)`` features."""
    transposed = centroids.float().T
    found = [
        (block.to(centroids.device).float() @ transposed).argmax(dim=1) for block in torch.split(features, ROWS_AT_ONCE)
    ]
    nearest: npt.NDArray[np.int64] = torch.cat(found).cpu().numpy() if found else np.zeros(0, dtype=np.int64)
    return nearest


def fasttext_words(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return ``(n,)`` the number of words as ``fasttext.tokenize`` parts them: a line end is one too."""
    counts = (len(_WORD.findall(text)) for text in texts)
    return np.fromiter(counts, np.int64, len(texts))


def english(languages: Sequence[str | None]) -> Bools:
    """Whether each label is that of English."""
    return np.fromiter((label == ENGLISH for label in languages), np.bool_, len(languages))

"""The vector of data of several parts by a model that takes them one by one: the mean of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from nemo_mm_rank.errors import EmbeddingError, PairError
from nemo_mm_rank.media.parts import Apart
from nemo_mm_rank.models.base import Encoded, Encoder, Items

LEAST = 1e-6
"""A shorter mean is that of parts whose vectors cancel each other out."""


def mean_of_parts(apart: Apart, items: Sequence[Items], encoders: Mapping[int, Encoder]) -> Encoded:
    """Embed some parts of each row, and return the mean of their vectors, L2-normalised.

    Args:
        apart: what the parts are.
        items: ``n`` rows, each with its decoded parts.
        encoders: by the number of the part; all of one space. Other parts are passed by.

    Returns:
        ``n`` vectors; where a part has none, the error names it. ``texts`` are what was said of the parts, line by
        line.
    """
    errors: dict[int, PairError] = {}
    vectors: list[torch.Tensor] = []
    said: list[list[str]] = [[] for _ in items]
    for number, encoder in encoders.items():
        encoded = encoder.encode([parts[number] for parts in items], apart.kinds[number])
        vectors.append(encoded.vectors)
        for row, error in encoded.errors.items():
            errors.setdefault(row, apart.named(number, error))
        for row, text in enumerate(encoded.texts or ()):
            if text is not None and apart.kinds[number].is_media:
                said[row].append(text)
    if len(vectors) == 1:
        mean = vectors[0]
    else:
        sums = torch.stack(vectors).mean(dim=0)
        for row in torch.nonzero(sums.norm(dim=1) < LEAST).flatten().tolist():
            errors.setdefault(row, EmbeddingError("the vectors of its parts cancel each other out"))
        mean = F.normalize(sums, dim=1)
    if errors:
        mean = mean.clone()
        mean[list(errors)] = float("nan")
    texts = ["\n".join(own) if own else None for own in said]
    return Encoded(mean, errors, texts if any(text is not None for text in texts) else None)

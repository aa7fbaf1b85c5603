"""What an adaptation is judged by: do held-out annotations find their data, among all and among their own kind?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_mm_rank.adapt.pairs import Pairs
from nemo_mm_rank.evaluation.geometry import recalls
from nemo_mm_rank.models.chat_encoder import ChatEncoder
from nemo_mm_rank.steps import by_value


def measure(encoder: ChatEncoder, pairs: Pairs, rows: Sequence[int]) -> dict[str, float] | None:
    """Return recall on some pairs, or None where there are fewer than two.

    ``recall_at_1`` and ``recall_at_10`` search the data of all modalities; ``recall_at_1_same_modality`` only that of
    the pair's own, its mean over the pairs: an objective that never compares modalities shows in the difference. All
    are means of both directions.

    Args:
        encoder: as it is now.
        pairs: of the blend.
        rows: positions of held-out pairs.
    """
    good, texts, items = pairs.read(rows)
    queries, targets = encoder.encode(texts), encoder.encode(items)
    kept = [at for at in range(len(good)) if at not in queries.errors and at not in targets.errors]
    if len(kept) < 2:
        return None
    left, right = targets.vectors[kept].cpu(), queries.vectors[kept].cpu()
    found = recalls(left, right, (1, 10))
    modality = pairs.modality
    own = 0.0
    for places in by_value([modality[good[at]] for at in kept]).values():
        here = torch.tensor(places)
        own += len(places) * recalls(left[here], right[here], (1,))[1]["average"] / len(kept)
    return {
        "pairs": len(kept),
        "recall_at_1": found[1]["average"],
        "recall_at_10": found[10]["average"],
        "recall_at_1_same_modality": own,
    }

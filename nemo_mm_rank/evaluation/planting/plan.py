"""Which pairs something is planted in: exact counts, the same share of every modality, drawn by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nemo_mm_rank.evaluation.apportion import apportion
from nemo_mm_rank.evaluation.planting.settings import Kind, PlantSettings
from nemo_mm_rank.schema import Modality
from nemo_mm_rank.steps import by_value

Ints = npt.NDArray[np.int64]

_ANNOTATIONS = frozenset({Kind.SWAP_WITHIN, Kind.SWAP_ACROSS, Kind.FOREIGN_SENTENCE})
_MEDIA_ALONE = frozenset({Kind.CROPPED, Kind.PADDED, Kind.CORRUPT})


def _divided(total: int, weights: Mapping[Kind, float], caps: Mapping[Kind, int]) -> dict[Kind, int]:
    """Return kind -> count; what a full kind cannot take goes to the others."""
    counts = apportion(total, list(weights.values()), [caps[kind] for kind in weights])
    return dict(zip(weights, counts.tolist(), strict=True))


def counts_of(
    modality: Sequence[str], divisible: npt.NDArray[np.bool_], settings: PlantSettings
) -> dict[str, dict[Kind, int]]:
    """Return modality -> kind -> number of pairs that it is planted in.

    Every modality gets the same share, ``settings.total`` of its pairs: a kind that it cannot have leaves its part to
    the others. Kinds that need another pair (swaps, padding, duplicates) are left out where there is none.

    Args:
        modality: ``(n,)`` names.
        divisible: ``(n,)`` whether a sentence can be taken away.
        settings: the weights.
    """
    groups = {name: np.array(rows) for name, rows in by_value(modality).items()}
    totals = {name: round(settings.total * len(rows)) for name, rows in groups.items()}
    weights = dict(sorted(settings.kinds.items(), key=lambda item: list(Kind).index(item[0])))

    def caps(name: str) -> dict[Kind, int]:
        rows = groups[name]
        most = dict.fromkeys(weights, len(rows))
        if name not in list(Modality):  # data of several parts, which stay together
            most.update(dict.fromkeys(most.keys() - _ANNOTATIONS, 0))
        elif not Modality(name).is_media:
            most.update(dict.fromkeys(_MEDIA_ALONE & most.keys(), 0))
        if Kind.KEY_SENTENCE in most:
            most[Kind.KEY_SENTENCE] = int(divisible[rows].sum())
        if len(rows) - totals[name] < 1:
            most.update(dict.fromkeys({Kind.NEAR_DUPLICATE} & most.keys(), 0))
        if len(rows) < 2:
            most.update(dict.fromkeys({Kind.PADDED, Kind.SWAP_WITHIN} & most.keys(), 0))
        return most

    bounds = {name: caps(name) for name in groups}
    counts = {name: _divided(totals[name], weights, bounds[name]) for name in groups}
    # Annotations go round within a modality, which takes two, and from modality to modality, which takes as many of
    # others as there are of one.
    across = {name: counts[name].get(Kind.SWAP_ACROSS, 0) for name in groups}
    largest = max(across, key=lambda name: across[name])
    others = sum(across.values()) - across[largest]
    if across[largest] > others:
        bounds[largest][Kind.SWAP_ACROSS] = others
        counts[largest] = _divided(totals[largest], weights, bounds[largest])
    for name in groups:
        if counts[name].get(Kind.SWAP_WITHIN) == 1:
            fixed = {**bounds[name], Kind.SWAP_WITHIN: 0}
            if Kind.SWAP_ACROSS in fixed:
                fixed[Kind.SWAP_ACROSS] = counts[name][Kind.SWAP_ACROSS]
            counts[name] = _divided(totals[name], weights, fixed)
    return counts


def draw(
    modality: Sequence[str],
    divisible: npt.NDArray[np.bool_],
    counts: Mapping[str, Mapping[Kind, int]],
    rng: np.random.Generator,
) -> dict[Kind, Ints]:
    """Draw the rows of every kind, none of them twice; returned ascending.

    Args:
        modality: ``(n,)`` names.
        divisible: ``(n,)`` whether a sentence can be taken away.
        counts: as `counts_of` returns them.
        rng: draws.
    """
    found: dict[Kind, list[Ints]] = {}
    for name, rows in sorted(by_value(modality).items()):
        order = rng.permutation(np.array(rows))
        planned = dict(counts[name])
        # First the kind that not every row can have.
        key = order[divisible[order]][: planned.pop(Kind.KEY_SENTENCE, 0)]
        found.setdefault(Kind.KEY_SENTENCE, []).append(key)
        rest = order[~np.isin(order, key)]
        for kind, count in planned.items():
            found.setdefault(kind, []).append(rest[:count])
            rest = rest[count:]
    return {kind: np.sort(np.concatenate(parts)).astype(np.int64) for kind, parts in found.items()}

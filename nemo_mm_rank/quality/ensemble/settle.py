"""Which labeling functions a label model is made of: those that tell pairs apart, and that it does not turn round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_mm_rank.quality.ensemble.guards import Fault, idle
from nemo_mm_rank.quality.ensemble.model import LEAST, LabelModel
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings


@dataclass(frozen=True)
class Settled:
    """A label model of the functions that are left.

    Attributes:
        model: fitted to them.
        counted: patterns of their votes.
        left_out: number of a function -> why it is not among them.
    """

    model: LabelModel
    counted: PatternCounts
    left_out: Mapping[int, Fault]


def settle(counted: PatternCounts, settings: EnsembleSettings) -> Settled | None:
    """Fit a label model to the functions that tell pairs apart, and let go of those that it turns round.

    One goes at a time, the least believed first, since the others may look better without it. Three are kept in any
    case. None where there are not even three that tell pairs apart.

    Args:
        counted: patterns of all functions' votes.
        settings: what counts as telling nothing, what is done to inverted functions, and of the label model.
    """
    left_out = {fault.function: fault for fault in idle(counted, settings.alike)}
    kept = [place for place in range(counted.patterns.shape[1]) if place not in left_out]
    if len(kept) < LEAST:
        return None
    while True:
        mine = counted.only(kept)
        model = settings.label_model.make().fit_counts(mine.patterns, mine.counts)
        faults = model.inverted
        if settings.inverted == "keep" or not faults or len(kept) == LEAST:
            return Settled(model, mine, left_out)
        worst = min(faults, key=lambda fault: float(model.weights[fault.function]))
        place = kept.pop(worst.function)
        left_out[place] = Fault(place, worst.kind, worst.message)

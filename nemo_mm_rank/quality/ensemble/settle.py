"""Which functions an ensemble is made of: those that tell pairs apart, and that the label model does not turn round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_mm_rank.arrays import Floats
from nemo_mm_rank.quality.ensemble.guards import Fault, idle
from nemo_mm_rank.quality.ensemble.model import LEAST, LabelModel
from nemo_mm_rank.quality.ensemble.patterns import PatternCounts
from nemo_mm_rank.quality.ensemble.settings import EnsembleSettings
from nemo_mm_rank.quality.ensemble.vetoes import vetoed
from nemo_mm_rank.quality.ensemble.votes import Votes


@dataclass(frozen=True)
class Settled:
    """A label model of the functions that are left, and the vetoes beside it.

    Attributes:
        model: fitted to the voters.
        voters: numbers of the functions that vote in it, ascending.
        vetoes: numbers of those that veto, ascending.
        counted: patterns of the voters' votes.
        left_out: number of a function -> why it is neither.
    """

    model: LabelModel
    voters: Sequence[int]
    vetoes: Sequence[int]
    counted: PatternCounts
    left_out: Mapping[int, Fault]

    def predict(self, votes: Votes) -> Floats:
        """Return ``(n,)`` the quality of pairs by ``(n, m)`` votes of all functions, those left out among them."""
        return vetoed(self.model.predict_proba(votes[:, self.voters]), votes[:, self.vetoes])


def settle(counted: PatternCounts, settings: EnsembleSettings) -> Settled | None:
    """Fit a label model to the functions that tell pairs apart, and let go of those that it turns round.

    One goes at a time, the least believed first, since the others may look better without it. Three are kept in any
    case. None where there are not even three that tell pairs apart. Vetoes have no part in it: one is left out only
    where it tells no pairs apart.

    Args:
        counted: patterns of all functions' votes.
        settings: what counts as telling nothing, which are vetoes, what is done to inverted functions, and of the
            label model.
    """
    left_out = {fault.function: fault for fault in idle(counted, settings.alike)}
    vetoes = [place for place, one in enumerate(settings.functions.values()) if one.veto and place not in left_out]
    kept = [place for place in range(counted.patterns.shape[1]) if place not in {*left_out, *vetoes}]
    if len(kept) < LEAST:
        return None
    while True:
        mine = counted.only(kept)
        model = settings.label_model.make().fit_counts(mine.patterns, mine.counts)
        faults = model.inverted
        if settings.inverted == "keep" or not faults or len(kept) == LEAST:
            return Settled(model, kept, vetoes, mine, left_out)
        worst = min(faults, key=lambda fault: float(model.weights[fault.function]))
        place = kept.pop(worst.function)
        left_out[place] = Fault(place, worst.kind, worst.message)

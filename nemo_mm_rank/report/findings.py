"""What a careful reader of a run would check, checked: sentences that speak for its blend or against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nemo_mm_rank.evaluation.gaps import gap_text
from nemo_mm_rank.io.digest import table_digest
from nemo_mm_rank.io.parquet import read_table
from nemo_mm_rank.report.content import Finding, counted, share, space_name
from nemo_mm_rank.report.run import Run

_SHIFT = 0.1  # of a share, from which on a mix is another
_CLOSE = 0.1  # standard deviations of the scores, within which a pair might as well have been chosen


def findings(run: Run) -> list[Finding]:
    """Return what a careful reader would check, checked."""
    counts = run.manifest["counts"]
    rows, quarantined, ranked = counts["pool"]["rows"], run.quarantine.num_rows, run.scoring.ranked
    found = []
    if rows == ranked + quarantined:
        text = f"Every row is accounted for: {rows:,} in = {ranked:,} ranked + {quarantined:,} quarantined."
        found.append(Finding("good", text))
    else:
        found.append(Finding("warn", f"{rows:,} rows in, but {ranked:,} ranked + {quarantined:,} quarantined."))
    if table_digest(read_table(run.folder.blend)) == run.manifest["blend"]["digest"]:
        found.append(Finding("good", "The blend is the one that the manifest vouches for (same digest)."))
    else:
        found.append(Finding("warn", "The blend is not the one that the manifest vouches for: its digest differs."))
    if quarantined > 0.05 * rows:
        said = f"{share(quarantined, rows)} of the rows could not be ranked; see what was left out."
        found.append(Finding("warn", said))
    found += _of_spaces(run.manifest["projection"]["metrics"]["mean"])
    found += _of_mix(counts)
    found += _of_cut(run)
    return found


def _of_spaces(spaces: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    fused, others = spaces.get("fused"), {name: space for name, space in spaces.items() if name != "fused"}
    if fused is None or not others:
        return []
    name, best = max(others.items(), key=lambda item: item[1]["recall_at_10"])
    said = (
        f"On held-out pairs the fused space finds the other half among the first ten for "
        f"{share(fused['recall_at_10'], 1)} of the pairs, the best single space ({space_name(name)}) for "
        f"{share(best['recall_at_10'], 1)}; matched gap {gap_text(fused, 'matched_gap')} "
        f"against {gap_text(best, 'matched_gap')}."
    )
    gaps = fused["matched_gap"], best["matched_gap"]
    better = fused["recall_at_10"] >= best["recall_at_10"] and None not in gaps and gaps[0] <= gaps[1]
    return [Finding("good" if better else "note", said)]


def _of_mix(counts: Mapping[str, Any]) -> list[Finding]:
    ranked, blend = counts["ranked"], counts["blend"]
    whole, chosen = sum(ranked.values()), sum(blend.values())
    absent = [name for name, n in ranked.items() if n and not blend.get(name)]
    found = []
    if absent:
        found.append(Finding("warn", f"Nothing was chosen from {', '.join(absent)}."))
    if chosen and whole:
        gains = {name: blend.get(name, 0) / chosen - n / whole for name, n in ranked.items() if n}
        by_gain = sorted(gains, key=lambda name: gains[name])
        for name, verb in ((by_gain[-1], "more"), (by_gain[0], "less")):
            if abs(gains[name]) >= _SHIFT and name not in absent:
                shares = f"{share(blend[name], chosen)} of the blend, {share(ranked[name], whole)} of the pool"
                found.append(Finding("note", f"There is {verb} {name} in the blend than in the pool: {shares}."))
        if not found:
            found.append(Finding("good", "Every modality has about the share in the blend that it has in the pool."))
    return found


def _of_cut(run: Run) -> list[Finding]:
    distance = run.distance
    spread = float(run.scored.scores.std())
    if not spread or not np.isfinite(distance).any():
        return []
    left_out = int(((distance < 0) & (distance >= -_CLOSE * spread)).sum())
    chosen = run.ranking.chosen.num_rows
    said = (
        f"{counted(left_out, 'pair')} left out {'lies' if left_out == 1 else 'lie'} within {_CLOSE:g} standard "
        f"deviations below the cut, {share(left_out, chosen)} of the blend's size: look at the borderline before you "
        "trust it to the pair."
    )
    return [Finding("note", said)]

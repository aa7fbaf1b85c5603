"""What SNS has trimmed: the gate's verdicts by modality, and pairs to look at with their cut parts marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_mm_rank.arrays import Ints
from nemo_mm_rank.config import SNSSettings
from nemo_mm_rank.report.content import Section, Widget
from nemo_mm_rank.report.run import Run, leading
from nemo_mm_rank.schema import MODALITY, SNS_REASON
from nemo_mm_rank.shards import live
from nemo_mm_rank.sns.decide import VERDICTS, verdict
from nemo_mm_rank.sns.standards import Standards
from nemo_mm_rank.tables import Row, Table

EACH = 8
"""Trimmed pairs of each modality that a page shows."""

UNCUT = ("all refused", "nothing to cut")
"""Verdicts that leave a pair whole."""

ABOUT = (
    "Refused: what would be left agrees less with the other side than the whole does, so the "
    "pair stays whole (gate_ratio in the settings). "
    "One of both refused: together the two cuts lose agreement, so only the better one was made."
)


def verdicts(pairs: Iterable[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Count pairs by what became of them, and by modality: one entry for each of `VERDICTS`.

    >>> verdicts([("text", "untrimmed: one segment"), ("text", "forward: kept 1 of 2 sentences")])["data cut"]
    Counter({'text': 1})

    Args:
        pairs: modality and `sns.decide.reason` of each.
    """
    counts: dict[str, Counter[str]] = {said: Counter() for said in VERDICTS.values()}
    for modality, why in pairs:
        counts[verdict(why)][modality] += 1
    return counts


def lines(counts: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the head and the lines of a table of verdicts: a column for each modality, and one for all."""
    modalities = sorted({modality for by_modality in counts.values() for modality in by_modality})
    cells = [(name, [by_modality.get(modality, 0) for modality in modalities]) for name, by_modality in counts.items()]
    return ["", *modalities, "all"], [(name, *(f"{n:,}" for n in (*pairs, sum(pairs)))) for name, pairs in cells]


CUTS = "Where the pool is cut"
CUTS_ABOUT = (
    "Learnt from a sample: parts of its pairs as they are, and parts of other pairs planted among them. ROC "
    "AUC: how often an own part scores above a planted one. Where the two cannot be told apart, nothing is cut."
)


def cut_tables(settings: SNSSettings) -> list[Table]:
    """Return a table of what a pool's cut scores are expected to do; none where no pool has given any."""
    if settings.cuts is None or settings.chosen_by != "pool":
        return []
    rows = []
    for name, standard in sorted(Standards.load(Path(settings.cuts)).standards.items()):
        told = f"{standard.told:.2f}" if standard.told == standard.told else "too few"
        cells = ["nothing", *["-"] * 3]
        if standard.line:
            shares = (standard.lost, standard.caught, standard.foreign)
            cells = [f"{standard.cut:.2f}", *(f"{100 * share:.1f} %" for share in shares)]
        rows.append(Row((name.replace("/", ": "), f"{standard.pairs:,}", told, *cells)))
    head = ["", "pairs", "ROC AUC", "cut below", "own parts lost", "planted parts cut", "taken for foreign"]
    return [Table(CUTS, head, rows, note=CUTS_ABOUT)]


@dataclass(frozen=True)
class Trimmed:
    """What a page shows of the trimming.

    Attributes:
        settings: of the run.
        counts: as `verdicts` gives them; empty where nothing was to be trimmed.
        shown: positions of ranked pairs that were cut, the modalities in turn.
    """

    settings: SNSSettings
    counts: Mapping[str, Mapping[str, int]]
    shown: Ints

    @classmethod
    def of(cls, run: Run) -> Trimmed:
        """Read the verdicts in one pass over the reasons; draw the pairs to look at by the hash of their ids."""
        if SNS_REASON not in run.shards.columns():
            return cls(run.config.sns, {}, np.zeros(0, dtype=np.int64))
        pairs, places = Counter[tuple[str, str]](), []
        for part, rows, table in live(run.shards, [MODALITY, SNS_REASON]):
            reasons = list(zip(*(table[name].to_pylist() for name in (MODALITY, SNS_REASON)), strict=True))
            pairs.update(reasons)
            cut = rows[[verdict(why) not in UNCUT for _, why in reasons]]
            places.append(np.stack([np.full(len(cut), part), cut], axis=1))
        scored = run.scored
        positions = scored.find(np.concatenate(places).astype(np.int64))
        drawn = positions[np.argsort(scored.key[positions], kind="stable")]
        return cls(run.config.sns, verdicts(pairs.elements()), leading([drawn], scored.modality, 0, EACH))

    def sections(self) -> list[Section]:
        """Return the section of the page; none where nothing was to be trimmed."""
        if not self.counts:
            return []
        head, cells = lines(self.counts)
        table = Table("Verdicts", head, [Row(line) for line in cells], note=ABOUT)
        lead = (
            "Pairs cut to the parts of their two sides that support each other; what was cut away is struck out or dim."
        )
        tables = [table, *cut_tables(self.settings)]
        return [Section("trimmed", "What was trimmed", lead, [*tables, Widget("trimmed")])]

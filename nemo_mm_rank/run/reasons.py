"""Why pairs failed, by count: what differs only in names and numbers is one reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from nemo_mm_rank.errors import TransientError

_OWN = r"'[^']*'|\"[^\"]*\"|\d[\d.,]*"
"""What of a message is one pair's own: what stands in quotes, and numbers (RE2)."""

TRANSIENT = TransientError.__name__
"""In the column ``error`` of a quarantine."""


@dataclass(frozen=True)
class Reason:
    """What several pairs failed for.

    Attributes:
        step: in which they failed.
        error: its class.
        message: of the first of them.
        pairs: how many.
    """

    step: str
    error: str
    message: str
    pairs: int

    def __str__(self) -> str:
        """Return it as part of a line."""
        return f"{self.pairs:,} x {self.step}: {self.error}: {shortened(self.message)}"


def shortened(message: str, limit: int = 160) -> str:
    """Return a message as it stands in a line or table with others."""
    return message if len(message) <= limit else message[: limit - 1] + "…"


def reasons(quarantine: pa.Table) -> list[Reason]:
    """Return why the pairs of a quarantine failed, the most frequent reason first.

    Args:
        quarantine: with ``step, error, message``.
    """
    table = quarantine.select(["step", "error", "message"])
    table = table.append_column("kind", pc.replace_substring_regex(table["message"], _OWN, "…"))
    groups = table.group_by(["step", "error", "kind"], use_threads=False)
    counts = groups.aggregate([("message", "first"), ([], "count_all")]).to_pylist()
    merged = [Reason(row["step"], row["error"], row["message_first"] or "", row["count_all"]) for row in counts]
    return sorted(merged, key=lambda reason: -reason.pairs)


def in_short(found: Sequence[Reason], most: int = 3) -> str:
    """Return the most frequent reasons as part of a line, and how many more there are."""
    shown = "; ".join(map(str, found[:most]))
    rest = sum(reason.pairs for reason in found[most:])
    return f"{shown}; and {rest:,} for {len(found) - most} other reasons" if rest else shown


def may_pass(quarantine: pa.Table) -> list[str]:
    """Return a line on the pairs whose failure may pass, where there are any."""
    n = pc.sum(pc.equal(quarantine["error"], TRANSIENT), min_count=0).as_py()
    pairs, them = ("pair", "it") if n == 1 else ("pairs", "them")
    line = (
        f"{n:,} {pairs} failed for reasons that may be temporary: the next start of the same command tries {them} again"
    )
    return [line] if n else []

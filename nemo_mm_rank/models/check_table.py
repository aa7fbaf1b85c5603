"""What `models.check` finds, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from nemo_mm_rank.models.check import Checked, Refused

COLUMNS = ("name", "class", "revision", "modalities", "device", "dtype", "dim", "memory", "items/s")


def print_checks(checks: Iterable[Checked | Refused], console: Console) -> bool:
    """Print the models that work as a table and each that does not as one line; return whether all of them work."""
    done = list(checks)
    refused = [one for one in done if isinstance(one, Refused)]
    table = Table(title="Models")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for one in done:
        if isinstance(one, Checked):
            table.add_row(*_row(one))
    if table.row_count:
        console.print(table, highlight=False, markup=False)
    for one in refused:
        console.print(f"failed   {one.name}: {one.reason}", highlight=False, markup=False, soft_wrap=True)
    return not refused


def _row(one: Checked) -> tuple[str, ...]:
    return (
        one.name,
        one.class_,
        one.revision[:12],
        " ".join(one.modalities),
        one.device,
        one.dtype or "-",
        "-" if one.dim is None else str(one.dim),
        "-" if one.memory is None else f"{one.memory / 2**20:.0f} MiB",
        f"{one.rate:,.1f}",
    )

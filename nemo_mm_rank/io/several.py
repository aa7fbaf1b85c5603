"""Data of several parts in a manifest: a list of ``{modality, data}`` in the place of a string."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nemo_mm_rank.errors import nearest
from nemo_mm_rank.io.bad_row import shown
from nemo_mm_rank.io.fields import Fields
from nemo_mm_rank.schema import DATA, DATA_BYTES, DATA_PARTS, MODALITY, PARTS, Modality, combined

Fault = Callable[[list[int], str, str, str], None]
"""Takes the rows, the field at fault, what was expected, and what was found."""

Part = tuple[Modality, str]

EXPECTED = "a list of parts {modality, data}"


@dataclass
class Several:
    """The rows of a batch whose data is given in parts.

    Attributes:
        rows: position -> its parts, at least one, in the order of `Modality`.
    """

    rows: dict[int, list[Part]] = field(default_factory=dict)

    def modality(self, said: pa.Array, fault: Fault) -> pa.Array:
        """Return the rows' modalities, those of rows in parts being what the parts are; what contradicts is a fault."""
        values = said.to_pylist()
        for row, parts in self.rows.items():
            found = combined(kind for kind, _ in parts)
            if values[row] is not None and {name.strip() for name in values[row].split("+")} != set(found.split("+")):
                fault([row], MODALITY, f"{found!r}, as its parts are", shown(values[row]))
            values[row] = found
        return pa.array(values, pa.string())

    def data(self, values: pa.Array) -> pa.Array:
        """Return the rows' data, that of rows in parts being the parts' own, line by line."""
        texts = values.to_pylist()
        for row, parts in self.rows.items():
            texts[row] = "\n".join(data for _, data in parts)
        return pa.array(texts, pa.string())

    def column(self, n: int) -> pa.Array | None:
        """Return `DATA_PARTS` of ``n`` rows, or None where none has more than one part."""
        values: list[Any] = [None] * n
        for row, parts in self.rows.items():
            if len(parts) > 1:
                values[row] = [{"modality": str(kind), "data": data} for kind, data in parts]
        return pa.array(values, PARTS) if any(values) else None


def read_parts(table: Fields, fault: Fault) -> Several | None:
    """Take the data that is given in parts out of ``table``; None where there is none.

    Args:
        table: its data column is without them afterwards.
        fault: is told of parts that are none.
    """
    several = Several()
    found: dict[int, Any] = {}
    for name in (DATA_PARTS, DATA):
        column = table.get(name)
        if isinstance(column, pa.Array):
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                continue
            values = column.to_pylist()
        elif column is not None and any(type(value) is list for value in column):
            values = column
        else:
            continue
        lists = {row: value for row, value in enumerate(values) if isinstance(value, list)}
        found |= lists
        if name == DATA:
            table.replace(DATA, [None if row in lists else value for row, value in enumerate(values)])
    payload = table.get(DATA_BYTES)
    for row, value in found.items():
        if payload is not None and _there(payload[row]):
            fault([row], DATA_BYTES, "nothing beside data in parts", "content")
        try:
            several.rows[row] = _parts(value)
        except _FaultError as error:
            fault([row], *error.args)
            several.rows[row] = [(Modality.TEXT, "")]
    return several if found else None


class _FaultError(Exception):
    """Field, what was expected, what was found."""


def _parts(values: list[Any]) -> list[Part]:
    found: dict[Modality, str] = {}
    for number, value in enumerate(values, 1):
        kind, data = _part(value, number)
        if kind in found:
            raise _FaultError(DATA, "one part of each modality", f"another {kind} (part {number})")
        found[kind] = data
    if not found:
        raise _FaultError(DATA, EXPECTED, "none")
    return [(kind, found[kind]) for kind in Modality if kind in found]


def _part(value: Any, number: int) -> Part:
    if not isinstance(value, dict):
        raise _FaultError(DATA, EXPECTED, f"{shown(value)} (part {number})")
    for key in value:
        if key not in (MODALITY, DATA) and value[key] is not None:
            raise _FaultError(DATA, EXPECTED, f"a key {shown(key)} (part {number}){nearest(key, (MODALITY, DATA))}")
    kind, data = value.get(MODALITY), value.get(DATA)
    if not isinstance(kind, str) or kind not in list(Modality):
        close = nearest(kind.lower(), Modality) if isinstance(kind, str) else ""
        raise _FaultError(MODALITY, f"one of {', '.join(Modality)}", f"{shown(kind)} (part {number}){close}")
    if not isinstance(data, str) or not data.strip():
        raise _FaultError(DATA, "a non-empty string", f"{shown(data)} ({kind} part)")
    return Modality(kind), data


def _there(value: Any) -> bool:
    return bool(value.is_valid if isinstance(value, pa.Scalar) else value is not None)

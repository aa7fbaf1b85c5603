"""NeMo's manifests: a recording, or the seconds of one that ``offset`` and ``duration`` name, with what is said."""

from __future__ import annotations

import math
from typing import Any

from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.formats.base import About, FaultError, Format, kept, listed, records
from nemo_mm_rank.io.rows import Column, Rows
from nemo_mm_rank.media.window import with_window
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, Modality

FILE, TEXT, OFFSET, DURATION = "audio_filepath", "text", "offset", "duration"


def _fits(rows: Rows, _: About) -> bool:
    return {FILE, TEXT} <= rows.columns.keys()


def _seconds(value: Any, name: str, least: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    if not number or (name == DURATION and not value):
        raise FaultError(name, f"seconds, {least}", shown(value))
    return float(value)


def _read(rows: Rows, about: About) -> Rows:
    data: list[str | None] = []
    faults: dict[int, FaultError] = {}
    for row, (file, offset, duration) in enumerate(
        zip(*(listed(rows, name) for name in (FILE, OFFSET, DURATION)), strict=True)
    ):
        data.append(file if isinstance(file, str) else None)
        try:
            if not isinstance(file, str) or not file:
                raise FaultError(FILE, "the path of a recording", "nothing" if file is None else shown(file))
            start, seconds = _seconds(offset, OFFSET, "0 or more"), _seconds(duration, DURATION, "more than 0")
            if start is not None:
                data[row] = with_window(file, start, seconds)
        except FaultError as fault:
            faults[row] = fault
    modality: Column = [Modality.AUDIO] * len(data)
    made = {MODALITY: modality, DATA: data, ANNOTATION: rows.columns.get(TEXT, [None] * len(data))}
    return kept(rows, {**made, **records(rows, about)}, [FILE, TEXT], faults)


SPEECH = Format("nemo-manifest", "a manifest as of NeMo", _fits, _read, records=True)

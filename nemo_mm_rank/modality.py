"""Sets of modalities: what data of one part or of several is made of."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_mm_rank.errors import nearest
from nemo_mm_rank.schema import Modality, combined

MODALITY_CODES: dict[str, int] = {
    Modality.TEXT: 1,
    Modality.IMAGE: 2,
    Modality.VIDEO: 4,
    Modality.AUDIO: 8,
    Modality.CODE: 16,
}
"""One bit each; a set is the sum of its members'. Text, image and video as in UNITE's code (arXiv 2505.19650); audio
and code are ours."""


def code_of(label: str | Iterable[str]) -> int:
    """Return the code of a set: ``"image"``, ``"text, image"``, ``"image+text"`` or a collection of names.

    Raises:
        ValueError: a name that is unknown or empty, or no name at all.
    """
    names = label.replace("+", ",").split(",") if isinstance(label, str) else sorted(label)
    code = 0
    for name in (name.strip() for name in names):
        if name not in MODALITY_CODES:
            raise ValueError(f"unknown modality {name!r}{nearest(name, MODALITY_CODES)}" if name else "empty modality")
        code |= MODALITY_CODES[name]
    if not code:
        raise ValueError("empty modality")
    return code


def name_of(code: int) -> str:
    """Return the one name of a set (`schema.combined`), such as ``"text+image"``; any other number as it is."""
    known = 0 < code < 2 * max(MODALITY_CODES.values())
    return combined(name for name, bit in MODALITY_CODES.items() if code & bit) if known else str(code)

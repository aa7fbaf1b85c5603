"""What a run says of its own choices: a mix with where it comes from, and settings that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_mm_rank.config import Config, RankingSettings
from nemo_mm_rank.mix import advice, find_mix
from nemo_mm_rank.ranking.blend import label


def notes(config: Config) -> list[str]:
    """Return one line for every setting that was not set and follows from another."""
    if config.projection.only_mamcl and config.ranking.calibration is None:
        return [
            "MAMCL is the projection's only contrastive term and leaves offsets between modalities, so fused cosines "
            f"are calibrated by modality ({config.ranked_by.calibration}), unless ranking.calibration says otherwise"
        ]
    return []


def caveats(config: Config) -> list[str]:
    """Return what a reader of the blend has to know of the models behind it."""
    if config.models[config.anchor].class_ == "hashed-text":
        return [
            f"the anchor {config.anchor!r} compares spellings, not meanings, so pairs that share words with the query "
            "come first: for real work name a sentence encoder (see presets)"
        ]
    return []


def mix_entry(settings: RankingSettings, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what became of the mix that was asked for, JSON-able; None where none was.

    Args:
        settings: as they were given.
        summary: of the ranking by them.
    """
    if settings.mix is None:
        return None
    mix = find_mix(settings.mix)
    types = [
        {
            "type": label(entry["group"], mix.shares),
            "share": mix.shares.get(entry["group"]),
            "quota": entry["quota"],
            "chosen": entry["chosen"],
        }
        for entry in summary["groups"]
    ]
    return {
        "name": settings.mix if isinstance(settings.mix, str) else None,
        "source": mix.source,
        "note": mix.note,
        "types": types,
        "shortage": settings.shortage,
        "filling": summary["filling"]["chosen"],
        "advice": advice(mix),
    }

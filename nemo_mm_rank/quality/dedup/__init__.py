"""Quality-guided deduplication: of pairs whose data is the same to the eye or ear, the one that agrees best stays."""

from nemo_mm_rank.quality.dedup.choose import Duplicates, deduplicate
from nemo_mm_rank.quality.dedup.settings import DuplicateSettings

__all__ = ["DuplicateSettings", "Duplicates", "deduplicate"]

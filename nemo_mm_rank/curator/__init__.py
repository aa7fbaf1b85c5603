"""For pipelines of NeMo Curator 1.4 and later: stages, filters, modifiers, readers and writers.

Everything is a thin wrapper round the same steps that the command line runs, and imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nemo_mm_rank.errors import require

if TYPE_CHECKING:
    from nemo_mm_rank.curator.audio import AudioPairsStage, AudioScoreStage
    from nemo_mm_rank.curator.clips import ClipPairsStage, ClipScoreFilterStage
    from nemo_mm_rank.curator.filters import BlendMembershipFilter, ObjectiveFilter, PairAgreementFilter
    from nemo_mm_rank.curator.images import ImageKeepStage, ImagePairsStage
    from nemo_mm_rank.curator.interleaved import InterleavedPairsStage, InterleavedScoreFilterStage
    from nemo_mm_rank.curator.modifiers import AnnotationSentenceModifier, SNSModifier
    from nemo_mm_rank.curator.pairs import PairColumnsStage
    from nemo_mm_rank.curator.quality import (
        ColumnQualityStage,
        EcoDatumStage,
        EnsembleStage,
        MediaQualityStage,
        SentenceQualityStage,
        TextQualityStage,
    )
    from nemo_mm_rank.curator.readers import PoolReader
    from nemo_mm_rank.curator.samples import ImageSamplePairsStage
    from nemo_mm_rank.curator.stages import ExpertEmbeddingStage, MatchStage, ProjectionStage, RankScoreStage, SNSStage
    from nemo_mm_rank.curator.workflow import MultimodalRankStage, MultimodalRankWorkflow
    from nemo_mm_rank.curator.writers import BlendWriter, QuarantineStage, WebDatasetWriter


require("nemo_curator", "curator")


__all__ = [
    "AnnotationSentenceModifier",
    "AudioPairsStage",
    "AudioScoreStage",
    "BlendMembershipFilter",
    "BlendWriter",
    "ClipPairsStage",
    "ClipScoreFilterStage",
    "ColumnQualityStage",
    "EcoDatumStage",
    "EnsembleStage",
    "ExpertEmbeddingStage",
    "ImageKeepStage",
    "ImagePairsStage",
    "ImageSamplePairsStage",
    "InterleavedPairsStage",
    "InterleavedScoreFilterStage",
    "MatchStage",
    "MediaQualityStage",
    "MultimodalRankStage",
    "MultimodalRankWorkflow",
    "ObjectiveFilter",
    "PairAgreementFilter",
    "PairColumnsStage",
    "PoolReader",
    "ProjectionStage",
    "QuarantineStage",
    "RankScoreStage",
    "SNSModifier",
    "SNSStage",
    "SentenceQualityStage",
    "TextQualityStage",
    "WebDatasetWriter",
]

_HOMES = {
    "clips": "ClipPairsStage ClipScoreFilterStage",
    "filters": "BlendMembershipFilter ObjectiveFilter PairAgreementFilter",
    "images": "ImageKeepStage ImagePairsStage",
    "interleaved": "InterleavedPairsStage InterleavedScoreFilterStage",
    "modifiers": "AnnotationSentenceModifier SNSModifier",
    "pairs": "PairColumnsStage",
    "quality": "ColumnQualityStage EcoDatumStage EnsembleStage MediaQualityStage SentenceQualityStage TextQualityStage",
    "readers": "PoolReader",
    "samples": "ImageSamplePairsStage",
    "audio": "AudioPairsStage AudioScoreStage",
    "stages": "ExpertEmbeddingStage ProjectionStage MatchStage RankScoreStage SNSStage",
    "workflow": "MultimodalRankStage MultimodalRankWorkflow",
    "writers": "BlendWriter QuarantineStage WebDatasetWriter",
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

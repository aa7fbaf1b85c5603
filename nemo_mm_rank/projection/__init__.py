"""The network that fuses the experts in the anchor's space, and its objectives."""

from nemo_mm_rank.projection.fit import fit
from nemo_mm_rank.projection.losses import (
    alignment_loss,
    cluster_bias_loss,
    contrastive_loss,
    residual_bias_loss,
    scale_bias_loss,
)
from nemo_mm_rank.projection.mamcl import LoneRowsWarning, active_rows, equal_rows, gather, mamcl_loss, modality_codes
from nemo_mm_rank.projection.network import FusionNetwork
from nemo_mm_rank.projection.step import Projection, ProjectionStep
from nemo_mm_rank.sampling import FitSample, folds_of
from nemo_mm_rank.schema import AGREEMENT

__all__ = [
    "AGREEMENT",
    "FitSample",
    "FusionNetwork",
    "LoneRowsWarning",
    "Projection",
    "ProjectionStep",
    "active_rows",
    "alignment_loss",
    "cluster_bias_loss",
    "contrastive_loss",
    "equal_rows",
    "fit",
    "folds_of",
    "gather",
    "mamcl_loss",
    "modality_codes",
    "residual_bias_loss",
    "scale_bias_loss",
]

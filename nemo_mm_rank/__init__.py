"""nemo-mm-rank: the best k pairs of a multimodal pool for an objective in plain words."""

__version__ = "0.1.0"

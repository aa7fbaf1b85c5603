"""Symmetric Nucleus Sub-sampler: trims a pair to the parts of its two sides that support each other."""

from nemo_mm_rank.sns.selection import gate, nucleus, select_windows, threshold, union_box
from nemo_mm_rank.text.phrases import components
from nemo_mm_rank.text.split import block_spans, sentence_spans, split_sentences

__all__ = [
    "block_spans",
    "components",
    "gate",
    "nucleus",
    "select_windows",
    "sentence_spans",
    "split_sentences",
    "threshold",
    "union_box",
]

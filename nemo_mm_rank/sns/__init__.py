"""Symmetric Nucleus Sub-sampler: each pair trimmed to the parts that support each other."""

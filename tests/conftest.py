"""Imported before any test module, so that the package can set OpenMP's waiting before torch is imported."""

import os

import nemo_mm_rank  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")

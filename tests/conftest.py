"""Imported before any test module, so that the package can set OpenMP's waiting before torch is imported."""

import os

import pytest

import nemo_mm_rank  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ON_RAY = ("test_parity.py", "test_curator_cluster.py", "test_curator_workflow.py")
"""Files whose tests start Ray: two clusters at a time on one machine find each other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker where several share the work: fixtures are made once for a file."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "ray" if item.path.name in ON_RAY else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))

"""One self-contained page about a finished run: what it did, whether to trust its blend, what was left out and why.

Doors: ``write_report(folder)``. What lies in a folder is read by `run` and `benchmark`, put together as the plain
objects of `content`, and drawn by the template, style and scripts in ``page/``.
"""

from nemo_mm_rank.report.page import write_report

__all__ = ["write_report"]

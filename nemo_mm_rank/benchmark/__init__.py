"""The benchmark: every strategy at the same budget on the same pool, judged by truth, by training, and by cost."""

from __future__ import annotations

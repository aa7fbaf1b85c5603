"""One process of a launch: ``accelerate launch ... --module nemo_mm_rank.benchmark.downstream.vlm FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from nemo_mm_rank.benchmark.downstream.vlm.launch import work

work(Path(sys.argv[1]))

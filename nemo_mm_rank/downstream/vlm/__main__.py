"""One process of a launch: ``accelerate launch ... --module nemo_mm_rank.downstream.vlm FOLDER``."""

import sys
from pathlib import Path

from nemo_mm_rank.downstream.vlm.launch import work

work(Path(sys.argv[1]))

from __future__ import annotations

import subprocess
import sys

import nemo_mm_rank.curator as package

BLOCKED = """
import sys
sys.modules["nemo_curator"] = None
from nemo_mm_rank.errors import UserError
try:
    import nemo_mm_rank.curator.stages
except UserError as error:
    print(error)
"""


def test_without_curator_one_line_names_the_extra() -> None:
    said = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.startswith(
        "this needs 'nemo_curator', which is not installed: pip install 'nemo-mm-rank[curator]'"
    )


def test_every_name_is_there() -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert not hasattr(package, "Nothing")

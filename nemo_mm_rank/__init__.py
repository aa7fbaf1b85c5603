"""nemo-mm-rank: the best k pairs of a multimodal pool for an objective in plain words."""

import os
import sys

if sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").startswith(f"{__name__}.") for word in sys.orig_argv):
    # `python -m nemo_mm_rank...`: Python has put the current folder first on the import path, and it may be a pool
    # that somebody else made. What we are imported from has to stay, at the end.
    _own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
        del sys.path[0]
        sys.path += [] if _own in sys.path else [_own]

from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait for each other. Where cores are shared with other processes or workers, a
# thread that waits then takes the core that the one it waits for needs: 41 s instead of 5 s for a hundred texts on
# two busy cores. OpenMP reads this when torch is imported first, so this has to come before; your own setting stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["Config", "Result", "__version__", "curate", "rank"]

if TYPE_CHECKING:
    from nemo_mm_rank.api import Result, curate, rank
    from nemo_mm_rank.config import Config


def __getattr__(name: str) -> Any:
    """Import the API at first use: importing torch takes seconds that ``--help`` should not cost."""
    if name in __all__:
        from nemo_mm_rank import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

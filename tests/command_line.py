"""The command line in this process: what it writes, raw, and its exit status."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

import pytest

from nemo_mm_rank import cli

HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal or turns writing round: all but line ends and tabs."""


class CommandLine:
    """Runs commands as `nemo-mm-rank` does, and leaves this process as it was."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setenv("PYTHONSAFEPATH", os.environ.get("PYTHONSAFEPATH", ""))
        patch.setattr(sys, "path", list(sys.path))
        if logging.lastResort is not None:
            patch.setattr(logging.lastResort, "formatter", logging.lastResort.formatter)
        self._patch = patch

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Return the status, and all that was written."""
        self._patch.setattr(sys, "argv", ["nemo-mm-rank", *map(str, arguments)])
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capture.readouterr()
        return int(ended.value.code or 0), out + err

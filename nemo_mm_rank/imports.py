"""Where classes of the user's own come from: the installed environment, then folders that the user names.

A folder that is not named is no place to import from, the current one least of all: it may be somebody else's pool.
What is named stands at the end of the import path, so that no file in it hides a module that is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from nemo_mm_rank.errors import ConfigError

_named: list[str] = []


def named() -> tuple[str, ...]:
    """Return the folders that this process has been told to import from, as absolute paths."""
    return tuple(_named)


def import_from(folders: Iterable[str | Path]) -> None:
    """Let import paths such as ``my_models:Captioner`` be looked up in these folders, too, after all that is installed.

    Model settings that are pickled carry the folders to where they are unpickled, a Dask or Ray worker.

    Raises:
        ConfigError: one of them is no folder.
    """
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"import_from: {path} is no folder")
        take_up([str(path)])


def take_up(folders: Iterable[str]) -> None:
    """Do as `import_from` with what another process has named; it may not be there on this machine."""
    for folder in folders:
        if folder not in _named:
            _named.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def lies_in(module: str, folders: Iterable[str | Path]) -> bool:
    """Whether ``module`` would be imported from one of ``folders``; nothing is imported to find out."""
    try:
        found = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return False
    if found is None:
        return False
    places = list(found.submodule_search_locations or ([found.origin] if found.origin else []))
    homes = [Path(folder).expanduser().resolve() for folder in folders]
    return bool(places) and all(any(Path(place).resolve().is_relative_to(home) for home in homes) for place in places)

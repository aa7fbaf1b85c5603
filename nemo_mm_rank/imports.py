"""Where classes of the user's own come from: the installed environment, then folders that the user names.

A folder that is not named is no place to import from, the current one least of all: it may be somebody else's pool.
What is named stands at the end of the import path, so that no file in it hides a module that is installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_mm_rank.errors import ConfigError, nearest

_named: list[str] = []


def named() -> tuple[str, ...]:
    """Return the folders that this process has been told to import from, as absolute paths."""
    return tuple(_named)


def import_from(folders: Iterable[str | Path]) -> None:
    """Let import paths such as ``my_models:Captioner`` be looked up in these folders, too, after all that is installed.

    Model settings that are pickled carry the folders to where they are unpickled, a Dask or Ray worker.

    Raises:
        ConfigError: one of them is not a folder.
    """
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(f"import_from: {path} is not a folder")
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


def find_class(path: str, what: str) -> type[Any]:
    """Return the class at an import path ``package.module:Class``.

    Args:
        path: of the class.
        what: the class is to be, for messages.

    Raises:
        ConfigError: where there is no such module or class.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{what} {path!r}: cannot import {module_name!r} ({error}); if it is a file of yours, name its "
            "folder with --import-from FOLDER, or with import_from in the configuration"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"module {module_name!r} has no class {class_name!r}{nearest(class_name, known)}")
    return found

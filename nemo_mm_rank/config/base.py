"""What every section of a configuration is, and how it is read: one line for each mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nemo_mm_rank.console import printable, without_passwords
from nemo_mm_rank.errors import ConfigError, nearest
from nemo_mm_rank.imports import import_from, named, take_up
from nemo_mm_rank.modality import declare, names, register, registered
from nemo_mm_rank.modality import take_up as take_up_modalities


class Settings(BaseModel):
    """A section of the configuration: frozen, closed to keys that it does not know, and to passwords in URLs."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _no_passwords(self) -> Self:
        refuse_passwords(dict(self))
        return self


def refuse_passwords(value: Any) -> None:
    """Refuse URLs with a password, wherever they stand in ``value``: a run's folder would keep them for all to read.

    Raises:
        ValueError: without the URL.
    """
    if isinstance(value, str) and without_passwords(value) != value:
        raise ValueError(
            "a URL here contains a password, and the run would write it to disk; give it to fsspec in the environment "
            "(FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD, say) or by its configuration file"
        )
    if isinstance(value, dict):
        refuse_passwords([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for one in value:
            refuse_passwords(one)


class Carrying(BaseModel):
    """Settings that take along, where they are pickled, what a worker finds classes of the user's own by."""

    def __getstate__(self) -> dict[Any, Any]:
        """Add the folders that classes are imported from, and the modalities that are registered."""
        return {**super().__getstate__(), "import_from": named(), "modalities": registered()}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Name those folders and modalities here."""
        state = dict(state)
        take_up(state.pop("import_from"))
        take_up_modalities(state.pop("modalities"))
        super().__setstate__(state)


def _modality(name: Any) -> str:
    if name not in names():
        there = [f"'{known}'" for known in names()]
        raise PydanticCustomError("modality", f"Input should be {', '.join(there[:-1])} or {there[-1]}")
    return str(name)


ModalityName = Annotated[str, AfterValidator(_modality)]
"""The name of one modality: built in, or declared in ``modalities``."""


def listed(value: Any) -> Any:
    """Return a list of values as it is, and one value as a list."""
    return value if isinstance(value, (list, tuple)) else [value]


def _folders(value: Any) -> Any:
    folders = [str(one) for one in listed(value)]
    refuse_passwords(folders)
    return [str(Path(one).expanduser().absolute()) for one in folders]


Folders = Annotated[tuple[str, ...], BeforeValidator(_folders)]
"""Folders to import classes from, after all that is installed; those in a file are relative to where it lies."""


class Importing(Settings):
    """Settings that name classes of the user's own."""

    import_from: Folders = Field((), description="Folders that hold classes of yours. '.' is the folder of this file.")
    modalities: dict[str, str] = Field(
        default_factory=dict,
        description="Modalities of yours: a name and its import path, such as 'my_module:PointCloud'.",
    )

    @model_validator(mode="before")
    @classmethod
    def _declare(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("modalities"):
            declare(values["modalities"])  # before anything is read that may name one of them
        return values

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name != "modalities" or value}

    def register(self) -> None:
        """Let this process import what these settings name.

        Raises:
            ConfigError: a folder that is none, or a class that is no modality.
        """
        import_from(self.import_from)
        register(self.modalities)


OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads a bare ``off`` as false."""

Share = Annotated[float, Field(ge=0, le=1)]

S = TypeVar("S", bound=BaseModel)


def parse(settings: type[S], values: Any) -> S:
    """Validate ``values`` as ``settings``; any mapping and sequence will do, such as Hydra's.

    Raises:
        ConfigError: one line per mistake: where it is, what it is, and the nearest valid name.
    """
    try:
        return settings.model_validate(plain(values))
    except ValidationError as error:
        raise ConfigError("\n".join(_line(settings, mistake) for mistake in error.errors())) from error


def plain(value: Any) -> Any:
    """Return mappings as dictionaries and sequences as lists, all the way down.

    >>> from types import MappingProxyType
    >>> plain(MappingProxyType({"pools": range(2)}))
    {'pools': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(one) for one in value]
    return value


_HOW = {
    "pools": "; name a pool, as in: nemo-mm-rank curate pool.jsonl",
    "queries": "; say what you want, as in: --query 'natural outdoor scenes' (or show it with --like)",
}
"""How to give what a run cannot do without."""


def _line(settings: type[BaseModel], mistake: Any) -> str:
    where = printable(".".join(str(part) for part in mistake["loc"])) or "configuration"
    if mistake["type"] == "extra_forbidden":
        section = _section(settings, mistake["loc"][:-1])
        known = [field.alias or name for name, field in section.model_fields.items()]
        return f"{where}: unknown key{nearest(str(mistake['loc'][-1]), known)}"
    if mistake["type"] == "missing":
        return f"{where}: missing{_HOW.get(where, '')}"
    message = mistake["msg"].removeprefix("Value error, ")
    given = mistake.get("input")
    shown = f", not {given!r}" if isinstance(given, (str, int, float)) and mistake["type"] != "value_error" else ""
    return f"{where}: {message}{shown}"


def _section(settings: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the section that ``path`` leads to, through tuples, dicts and unions of sections."""
    for part, following in zip(path, (*path[1:], None), strict=False):
        if isinstance(part, int) or part not in settings.model_fields:
            continue
        found: list[type[BaseModel]] = []
        waiting = [settings.model_fields[part].annotation]
        while waiting:
            kind = waiting.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found.append(kind)
            else:
                waiting.extend(get_args(kind))
        if found:
            # Of sections that are told apart by their kind, the path names it next.
            kinds = {getattr(one.model_fields.get("kind"), "default", None): one for one in found}
            settings = kinds.get(following, found[0])
    return settings


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML configuration as plain values.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping at its top.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration must be a mapping of keys, not {type(values).__name__}")
    if folders := values.get("import_from"):
        home = Path(path).absolute().parent
        values["import_from"] = [str(home / Path(str(folder)).expanduser()) for folder in listed(folders)]
    return {key: value for key, value in values.items() if value is not None}  # a section with all commented out

"""Hooks of the documentation's build: pages that are made of the code, so that they cannot say anything else.

A line ``<!-- configuration: module:Class -->`` becomes tables of a configuration's keys, ``<!-- commands -->`` the
reference of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import click
import griffe
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemo_mm_rank.imports import find_class

_CONFIGURATION = re.compile(r"<!-- configuration: (\S+) -->")
_COMMANDS = "<!-- commands -->"
_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)


class Examples(griffe.Extension):
    """Shows the examples of docstrings as code, not as quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of an object; griffe calls this for each that it has read."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts of a page in place; MkDocs calls this for every page."""
    markdown = _CONFIGURATION.sub(
        lambda found: "\n".join(configuration(find_class(found[1], "configuration"))), markdown
    )
    return markdown.replace(_COMMANDS, "\n".join(commands())) if _COMMANDS in markdown else markdown


def configuration(
    settings: type[BaseModel], path: str = "", seen: dict[type[BaseModel], str] | None = None
) -> Iterator[str]:
    """Yield a table of the keys of ``settings``, and then those of its sections, by their paths."""
    seen = {} if seen is None else seen
    seen[settings] = path
    if path:
        yield from ("", f"### `{path}`", "", _first_paragraph(settings))
    yield from ("", "| key | type | default | bounds | meaning |", "|---|---|---|---|---|")
    below = []
    for name, field in settings.model_fields.items():
        key = field.alias or name
        cells = (f"`{key}`", _type(field.annotation), _default(field), _bounds(field), field.description or "")
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
        below += [(f"{path}.{key}".lstrip(".") + mark, one) for mark, one in _sections(field.annotation)]
    for inner, section in below:
        if section in seen:
            yield from ("", f"### `{inner}`", "", f"The keys are those of `{seen[section]}`.")
        else:
            yield from configuration(section, inner, seen)


def _first_paragraph(settings: type[BaseModel]) -> str:
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _sections(annotation: Any, mark: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections that a type holds, with what stands for an item of a list (``[]``) or mapping (``.NAME``)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield mark, annotation
        return
    origin = get_origin(annotation)
    mark += {dict: ".NAME", tuple: "[]", list: "[]"}.get(origin, "") if isinstance(origin, type) else ""
    for inner in get_args(annotation):
        yield from _sections(inner, mark)


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    arguments = [one for one in get_args(annotation) if one is not Ellipsis]
    origin = get_origin(annotation)
    if origin is None:
        name = getattr(annotation, "__name__", str(annotation))
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return "section"
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(name, name)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    if getattr(origin, "__name__", "") == "Literal":
        return ", ".join(f"`{one}`" for one in arguments)
    inner = [_type(one) for one in arguments]
    if origin is dict:
        return f"mapping to {inner[-1]}"
    if origin in (tuple, list):
        return f"list of {inner[0]}"
    return " or ".join(dict.fromkeys(inner))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    if any(isinstance(one, BaseModel) for one in inner):
        return "see below"
    if value is None or value in ({}, (), []):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "pattern": "pattern"}
    found = []
    for rule in field.metadata:
        for name, sign in signs.items():
            if (value := getattr(rule, name, None)) is not None:
                found.append(f"{sign} `{value}`")
    return ", ".join(found)


def commands() -> Iterator[str]:
    """Yield the reference of the command line, a heading each command."""
    from nemo_mm_rank.cli import app

    root = typer.main.get_command(app)
    yield from _commands(root, "nemo-mm-rank")


def _commands(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    inner = getattr(command, "commands", None)
    if inner is not None:
        for word, one in inner.items():
            yield from _commands(one, f"{name} {word}")
        return
    usage = " ".join(command.collect_usage_pieces(context)).replace("{", "").replace("}", "")
    yield from ("", f"## `{name}`", "", command.help or "", "", "```text", f"{name} {usage}", "```", "")
    yield from ("| argument or option | default | meaning |", "|---|---|---|")
    for parameter in command.params:
        record = parameter.opts + parameter.secondary_opts
        shown = ", ".join(f"`{word}`" for word in record) if record[0].startswith("-") else f"`{parameter.name}`"
        default = parameter.default
        said = f"`{default}`" if default not in (None, (), [], False, "") and not callable(default) else ""
        cells = (shown.upper() if not record[0].startswith("-") else shown, said, getattr(parameter, "help", "") or "")
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"

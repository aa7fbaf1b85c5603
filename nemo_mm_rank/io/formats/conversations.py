"""Conversations as pairs: data is the media and the user's turns, annotation what the assistant said to them.

LLaVA, ShareGPT and Alpaca as LLaMA-Factory reads them, ms-swift and OpenAI's messages differ in what they call things,
and in nothing else: one reader takes all of them. Marks such as ``<image>`` say where a medium stands and are no text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.formats.base import About, FaultError, Format, kept, listed, looked_at, records
from nemo_mm_rank.io.rows import Column, Rows
from nemo_mm_rank.schema import ANNOTATION, DATA, DATA_BYTES, MODALITY, Modality

USER, ASSISTANT, SYSTEM, TOOL, CALL = "user", "assistant", "system", "tool", "call"

ROLES = {
    **dict.fromkeys(("human", "user"), USER),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("observation", "tool", "tool_response", "function_response", "function"), TOOL),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
"""What roles are called -> what they are. What a tool answers is shown to the assistant, so it is of the data."""

_TAGS = {
    "user_tag": USER,
    "assistant_tag": ASSISTANT,
    "system_tag": SYSTEM,
    "observation_tag": TOOL,
    "function_tag": CALL,
}
"""What LLaMA-Factory calls the names of roles."""

TURNS, _ROLE, _CONTENT = ("messages", "conversations", "conversation"), ("from", "role"), ("value", "content")
_TEXT, _IMAGE, _AUDIO, _VIDEO = map(str, (Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.VIDEO))
_IN_ORDER = (_IMAGE, _AUDIO, _VIDEO)
MEDIA: dict[str, tuple[str, ...]] = {
    _IMAGE: ("images", "image"),
    _VIDEO: ("videos", "video"),
    _AUDIO: ("audios", "audio"),
}
"""Modality -> the fields of a record that list media of it."""

_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,")


class Medium(NamedTuple):
    """One medium of a record.

    Attributes:
        kind: its modality.
        name: where it is: a path or URL; of content a name only.
        content: what the record carries itself.
    """

    kind: str
    name: str
    content: bytes | None = None


@dataclass(frozen=True)
class Names:
    """What a pool's records call things; the turns of Alpaca are spread over fields."""

    turns: str | None
    role: tuple[str, ...] = _ROLE
    content: tuple[str, ...] = _CONTENT
    media: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MEDIA)
    system: str = "system"
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    alpaca: Mapping[str, str] = field(default_factory=dict)

    @property
    def used(self) -> list[str]:
        """The fields that make a pair."""
        turns = [self.turns] if self.turns else list(self.alpaca.values())
        return [*turns, self.system, *(name for names in self.media.values() for name in names)]


_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}


def names_of(rows: Rows, about: About, alpaca: bool) -> Names:
    """Return what rows call things: as a ``dataset_info.json`` says, else as they look."""
    columns, tags = _said(about, "columns"), _said(about, "tags")
    media = {kind: (columns[f"{kind}s"],) if f"{kind}s" in columns else names for kind, names in MEDIA.items()}
    system = columns.get("system", "system")
    if alpaca:
        given = {role: columns.get(role, name) for role, name in _ALPACA.items()}
        return Names(None, media=media, system=system, alpaca=given)
    roles = {tags[tag]: role for tag, role in _TAGS.items() if tag in tags}
    role, content = (
        (tags[tag],) if tag in tags else names for tag, names in (("role_tag", _ROLE), ("content_tag", _CONTENT))
    )
    turns = columns.get("messages") or _turns_column(rows) or next((one for one in TURNS if one in rows.columns), None)
    return Names(turns or TURNS[0], role, content, media, system, ROLES | roles)


def _said(about: About, section: str) -> dict[str, str]:
    """Return a section of what ``dataset_info.json`` says."""
    found = about.told.get(section)
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _turns_column(rows: Rows) -> str | None:
    return next((name for name in TURNS if any(_is_turns(value) for value in looked_at(rows, name))), None)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) and ("from" in one or "role" in one) for one in value)


def _first(turn: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if (value := turn.get(name)) is not None:
            return value
    return None


@dataclass
class _Told:
    """What a conversation says.

    Attributes:
        present: the modalities whose marks are marks; elsewhere ``<video>`` may be an element of HTML.
        turns: role and text, without marks, one after the other.
        media: those that turns carry themselves, with None for each that is only marked, as ``(kind, medium)``.
        marks: kind -> how many marks stand in the texts.
    """

    present: Set[str]
    turns: list[tuple[str, str]] = field(default_factory=list)
    media: list[tuple[str, Medium | None]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """Return a text without its marks, which are counted."""
        for kind in _IN_ORDER if "<" in text else ():
            if kind in self.present and (mark := f"<{kind}>") in text:
                before, *after = text.split(mark)  # several times as fast as a regular expression
                self.marks[kind] = self.marks.get(kind, 0) + len(after)
                *pieces, last = [before, *(piece.lstrip(" \t").removeprefix("\n") for piece in after)]
                text = " ".join([*(piece.rstrip(" \t") for piece in pieces), last])
        return text


def _told(turns: Any, names: Names, present: Set[str], marked: bool = False) -> _Told:
    """Take the turns of one record apart, their marks left where they are ``marked``.

    Raises:
        FaultError: they are no conversation.
    """
    where, roles = names.turns or "", names.roles
    if type(turns) is not list or not turns:
        raise FaultError(where, "a list of turns", "nothing" if turns is None else shown(turns))
    told, before = _Told(present), None
    for number, turn in enumerate(turns, 1):
        if type(turn) is not dict:
            raise FaultError(where, "turns with a role and a text", f"{shown(turn)} (turn {number})")
        said = _first(turn, names.role)
        role = roles.get(said) if type(said) is str else None
        if role is None:
            known = ", ".join(names.roles)
            raise FaultError(where, f"a role ({known}) in each turn", f"{shown(said)} (turn {number})")
        if role == before and role in (USER, ASSISTANT):
            raise FaultError(where, "user and assistant in turn", f"{said} after {said} (turn {number})")
        before = role if role != SYSTEM else before
        content = _first(turn, names.content)
        if type(content) is str:
            content = content if role == SYSTEM or marked else told.text(content)
        elif type(content) is list:
            content = ("" if marked else "\n").join(_parts(content, told, where, number, marked))
        elif content is None:
            content = ""
        else:
            raise FaultError(where, "a text or a list of parts in each turn", f"{shown(content)} (turn {number})")
        told.turns.append((role, content))
    return told


def _parts(parts: list[Any], told: _Told, where: str, number: int, marked: bool) -> Iterator[str]:
    """Yield the texts of a turn that has parts; its media go into ``told``, marks for them among the texts."""
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            yield part["text"]
            continue
        modality = next((one for one in MEDIA if isinstance(kind, str) and one in kind), None)
        if modality is None:
            raise FaultError(where, "parts of type text, image, video or audio", f"{shown(part)} (turn {number})")
        if marked:
            yield f"<{modality}>"
        value = _first(part, (str(kind), modality, "url", "path"))
        told.media.append((modality, None if value is None else _medium(modality, value, where)))


def _medium(kind: str, value: Any, where: str) -> Medium:
    """Return what a record names or carries: a path or URL, a data URL, or an object with bytes, path, url or data.

    Raises:
        FaultError: it is none of these.
    """
    if isinstance(value, dict):
        content, name = value.get("bytes"), _first(value, ("path", "url", "data"))
        if isinstance(content, bytes) and content:
            return Medium(kind, name or named(content), content)
        if isinstance(value.get("data"), str) and name is value["data"]:
            return _decoded(kind, name, where)
        value = name
    if not isinstance(value, str) or not value.strip():
        raise FaultError(where, f"the path of each {kind}", shown(value))
    if match := _DATA_URL.match(value):
        return _decoded(kind, value[match.end() :], where)
    return Medium(kind, value)


def _decoded(kind: str, text: str, where: str) -> Medium:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FaultError(where, f"the content of each {kind} in base64", str(error)) from error
    return Medium(kind, named(content), content)


def _media(given: Mapping[str, Any], at: Mapping[str, str], told: _Told, names: Names) -> list[Medium]:
    """Return the media of a record in its order, those of its turns or those that its fields list.

    Args:
        given: field -> value.
        at: modality -> the field that lists media of it.
        told: its turns.
        names: what things are called.

    Raises:
        FaultError: there are not as many as marks, or one is named in no way that is known.
    """
    out: list[Medium] = []
    for kind, fields in names.media.items() if at or told.marks or told.media else ():
        name = at.get(kind)
        if name is None and kind not in told.marks and not told.media:
            continue
        value = given[name] if name is not None else None
        own = [medium for one, medium in told.media if one == kind] if told.media else []
        found = [_medium(kind, one, name or "") for one in (value if isinstance(value, list) else [value]) if value]
        found = found or [medium for medium in own if medium is not None]
        out += found
        marks = told.marks.get(kind, 0) + len(own)
        if kind == _IMAGE and not found and Modality.VIDEO in told.present:
            told.marks[Modality.VIDEO] = told.marks.get(Modality.VIDEO, 0) + marks  # LLaVA marks videos as images
        elif marks and marks != len(found):
            expected = f"as many {kind}s as marks <{kind}> ({marks})"
            where = name or next((one for one in fields if one in given), fields[0])
            raise FaultError(where, expected, str(len(found) or "none"))
    return out


def _sides(told: _Told, about: About, where: str) -> tuple[str, str]:
    """Return what the user said and what the assistant said, as the pool's settings choose.

    Raises:
        FaultError: the assistant says nothing.
    """
    system: list[str] = []
    asked: list[str] = []
    said: list[str] = []
    exchanges = [(asked, said)]
    for role, text in told.turns:
        if role == SYSTEM:
            system.append(text.strip())
        elif role in (ASSISTANT, CALL):
            said.append(text)
        else:
            if said and role == USER:
                asked, said = [], []
                exchanges.append((asked, said))
            asked.append(text.strip())
    exchanges = [one for one in exchanges if any(map(str.strip, one[1]))]
    if not exchanges:
        raise FaultError(where, "a turn of the assistant's with text", "none")
    if about.source.turns != "all":
        exchanges = [exchanges[0 if about.source.turns == "first" else -1]]
    data = [text for asked, _ in exchanges for text in asked]
    if about.source.system == "keep":
        data = system + data
    return "\n".join(filter(None, data)), "\n".join([text for _, said in exchanges for text in said if text])


def _alpaca_turns(row: Mapping[str, Any], names: Names) -> list[dict[str, str]]:
    given = {role: row.get(field_name) for role, field_name in names.alpaca.items()}
    for role in ("prompt", "query", "response"):
        if not (isinstance(given[role], str) or (role == "query" and given[role] is None)):
            raise FaultError(names.alpaca[role], "a text", shown(given[role]))
    before = given["history"] or []
    for pair in before if isinstance(before, list) else [before]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise FaultError(names.alpaca["history"], "a list of pairs of texts", shown(before))
    asked = "\n".join(text for text in (given["prompt"], given["query"]) if text)
    pairs = [*before, (asked, given["response"])]
    return [{"from": role, "value": text} for pair in pairs for role, text in zip((USER, ASSISTANT), pair, strict=True)]


def read(rows: Rows, about: About, alpaca: bool = False) -> Rows:
    """Make pairs of conversations, each of which keeps the record that it was made of."""
    names = names_of(rows, about, alpaca)
    fields = [name for name in dict.fromkeys(names.used) if name in rows.columns]
    n = len(rows.lines)
    modality: list[str | None] = [None] * n
    data: list[Any] = [None] * n
    annotation: list[str | None] = [None] * n
    every: dict[int, list[tuple[str, str]]] = {}
    apart: dict[int, list[tuple[str, str]]] = {}
    contents: list[bytes | None] = [None] * n
    several: dict[int, list[bytes | None]] = {}
    faults: dict[int, FaultError] = {}
    there = [(kind, name) for kind, own in names.media.items() for name in reversed(own) if name in fields]
    columns = [listed(rows, name) for name in fields]
    for row, values in enumerate(zip(*columns, strict=True) if columns else [()] * n):
        given = dict(zip(fields, values, strict=True))
        try:
            at = {kind: name for kind, name in there if given[name]}
            turns = given.get(names.turns) if names.turns else _alpaca_turns(given, names)
            told = _told(turns, names, {_IMAGE, *at})
            if isinstance(given.get(names.system), str):
                told.turns.insert(0, (SYSTEM, given[names.system]))
            media = _media(given, at, told, names)
            asked, annotation[row] = _sides(told, about, names.turns or names.alpaca["response"])
            if not media:
                if not asked:
                    raise FaultError(names.turns or names.alpaca["prompt"], "a turn of the user's, or a medium", "none")
                modality[row], data[row] = Modality.TEXT, asked
                continue
            every[row] = [(kind, name) for kind, name, _ in media]
            if any(content is not None for _, _, content in media):
                contents[row] = next(content for _, _, content in media if content is not None)
                if len(media) > 1:
                    several[row] = [content for _, _, content in media]
            first = dict(reversed(every[row]))
            parts = [(kind, first[kind]) for kind in _IN_ORDER if kind in first]
            if asked:
                apart[row] = [(_TEXT, asked), *parts]
            elif len(parts) > 1:
                apart[row] = parts
            else:
                modality[row], data[row] = parts[0]
        except FaultError as fault:
            faults[row] = fault
    made: dict[str, Column] = {MODALITY: modality, DATA: data, ANNOTATION: annotation, **records(rows, about)}
    if any(content is not None for content in contents):
        made[DATA_BYTES] = pa.array(contents, pa.binary())
    return kept(replace(rows, parts=apart, media=every, carried=several), made, fields, faults)


@dataclass(frozen=True)
class Spoken:
    """All of a conversation: turns ``(role, text)`` with a mark for each medium, and what else its record holds."""

    turns: list[tuple[str, str]]
    system: str
    others: dict[str, Any]


def spoken(record: Mapping[str, Any], about: About | None, kinds: Set[str]) -> Spoken:
    """Return all that a record says.

    Args:
        record: as it was read.
        about: of its pool; None where nothing is known.
        kinds: the modalities of the media that it has.

    Raises:
        FaultError: it is no conversation.
    """
    rows = Rows("", np.zeros(1, np.int64), {name: [value] for name, value in record.items()})
    about = about or About(PoolSource(path=""), "")
    names = names_of(rows, about, alpaca=not _is_messages(rows, about) and _is_alpaca(rows, about))
    turns = record.get(names.turns) if names.turns else _alpaca_turns(record, names)
    told = _told(turns, names, kinds, marked=True)
    system = [record[names.system]] if isinstance(record.get(names.system), str) else []
    system += [text for role, text in told.turns if role == SYSTEM]
    said = [(role, text) for role, text in told.turns if role != SYSTEM]
    if Modality.VIDEO in kinds and Modality.IMAGE not in kinds:
        said = [(role, text.replace("<image>", "<video>")) for role, text in said]
    unmarked = [kind for kind in MEDIA if kind in kinds and not any(f"<{kind}>" in text for _, text in said)]
    if unmarked:
        files = {kind: next((record[one] for one in names.media[kind] if record.get(one)), None) for kind in unmarked}
        marks = "".join(f"<{kind}>" * (len(f) if isinstance(f := files[kind], list) else 1) for kind in unmarked)
        first = next((at for at, (role, _) in enumerate(said) if role == USER), 0)
        said[first] = (said[first][0], marks + said[first][1])
    others = {name: value for name, value in record.items() if name not in names.used}
    return Spoken(said, "\n".join(system), others)


def _read_alpaca(rows: Rows, about: About) -> Rows:
    return read(rows, about, alpaca=True)


def named(content: bytes) -> str:
    """Return the name of a content that comes without one."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _is_llava(rows: Rows, about: About) -> bool:
    single = any(name in rows.columns for name in ("image", "video", "audio"))
    return not about.told and _turns_column(rows) in TURNS[1:] and single


def _is_sharegpt(rows: Rows, about: About) -> bool:
    if about.told:
        return bool(about.told.get("formatting") == "sharegpt")
    return any("from" in turn for value in looked_at(rows, _turns_column(rows) or "") for turn in value[:1])


def _is_alpaca(rows: Rows, about: About) -> bool:
    if about.told:
        return bool(about.told.get("formatting", "alpaca") == "alpaca")
    return {"instruction", "output"} <= rows.columns.keys()


def _is_messages(rows: Rows, _: About) -> bool:
    return _turns_column(rows) is not None


def _is_swift(rows: Rows, about: About) -> bool:
    lists = any(names[0] in rows.columns for names in MEDIA.values())
    return _is_messages(rows, about) and lists


CONVERSATIONS = (
    Format("llava", "conversations as of LLaVA", _is_llava, read, records=True),
    Format("sharegpt", "conversations as of ShareGPT", _is_sharegpt, read, records=True),
    Format("alpaca", "instructions with answers, as of Alpaca", _is_alpaca, _read_alpaca, records=True),
    Format("swift", "conversations as of ms-swift", _is_swift, read, records=True),
    Format("messages", "messages as of OpenAI", _is_messages, read, records=True),
)

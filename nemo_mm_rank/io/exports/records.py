"""Blends as records that trainers read: the pool's own, LLaVA, ShareGPT, ms-swift, OpenAI's messages, NeMo, ids."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nemo_mm_rank.errors import UserError
from nemo_mm_rank.io.export import jsonable
from nemo_mm_rank.io.exports.base import Export, Medium, Placer, Row, Settings, Talk, media_of, rows_of, talk_of, told
from nemo_mm_rank.io.formats.speech import DURATION, FILE, OFFSET, TEXT
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.window import without_window
from nemo_mm_rank.schema import ANNOTATION, MODALITY, PAIR_ID, POOL, SOURCE_RECORD, Modality

BLEND = "blend"
MARK = re.compile(r"<(image|video|audio)>")
_WORDS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation", "call": "function_call"}
_LISTS = (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)


def lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON, one a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _array(path: Path, rows: Iterable[str]) -> None:
    """Write JSON texts as the elements of one array."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        before = "[\n"
        for row in rows:
            file.write(before + row)
            before = ",\n"
        file.write("\n]\n" if before != "[\n" else "[]\n")


def _own(blend: pa.Table, folder: Path, settings: Settings) -> None:
    records = blend[SOURCE_RECORD] if SOURCE_RECORD in blend.column_names else None
    if records is None or records.null_count:
        raise UserError(
            "--format own: not all pairs of the blend were made of records (conversations, NeMo manifests); the blend "
            "itself has the pool's columns: RUN/blend.parquet, or JSONL by rank --jsonl"
        )
    pools = blend[POOL].to_pylist()
    for number, pool in enumerate(dict.fromkeys(pools)):
        mine = blend.take([at for at, name in enumerate(pools) if name == pool])
        stem = re.sub(r"[^\w.+-]", "_", pool).lstrip(".") or f"pool-{number}"
        stem = stem if not list(folder.glob(f"{stem}.*")) else f"{stem}-{number}"
        texts = (text.as_py() for text in mine[SOURCE_RECORD])
        if pool in settings.arrays:
            _array(folder / f"{stem}.json", texts)
        else:
            with (folder / f"{stem}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{text}\n" for text in texts)
        facts = [name for name in (PAIR_ID, "rank", "score", "reason") if name in mine.column_names]
        lines(folder / f"{stem}.scores.jsonl", rows_of(mine.select(facts)))


def _placed(blend: pa.Table, folder: Path, settings: Settings) -> Iterator[tuple[Row, Talk, dict[str, list[str]]]]:
    """Yield each pair as a conversation, with where its media are: modality -> names in the order of their marks."""
    placer = Placer(folder, settings)
    for row in rows_of(blend):
        talk = talk_of(row, settings)
        media: dict[str, list[str]] = {}
        for medium in talk.media:
            media.setdefault(medium.kind, []).append(placer.put(row[PAIR_ID], medium))
        yield row, talk, media


def _turns(talk: Talk) -> list[Row]:
    return [{"from": _WORDS[role], "value": text} for role, text in talk.turns]


def _llava(blend: pa.Table, folder: Path, settings: Settings) -> None:
    def records() -> Iterator[str]:
        for row, talk, media in _placed(blend, folder, settings):
            files = {kind: names[0] if len(names) == 1 else names for kind, names in media.items()}
            system = {"system": talk.system} if talk.system else {}
            turns = _turns(talk)
            if Modality.IMAGE not in media:  # a video is marked as an image
                turns = [{**turn, "value": turn["value"].replace("<video>", "<image>")} for turn in turns]
            record = {"id": row[PAIR_ID], **talk.others, **files, **system, "conversations": turns, **told(row)}
            yield json.dumps(jsonable(record), ensure_ascii=False, allow_nan=False)

    _array(folder / f"{BLEND}.json", records())


def _sharegpt(blend: pa.Table, folder: Path, settings: Settings) -> None:
    there: dict[str, str] = {}

    def records() -> Iterator[Row]:
        for row, talk, media in _placed(blend, folder, settings):
            lists = {f"{kind}s": media[kind] for kind in _LISTS if kind in media}
            system = {"system": talk.system} if talk.system else {}
            there.update({name: name for name in (*system, *lists)})
            yield {**talk.others, "conversations": _turns(talk), **system, **lists, **told(row)}

    lines(folder / f"{BLEND}.jsonl", records())
    columns = {"messages": "conversations", **there}
    entry = {"file_name": f"{BLEND}.jsonl", "formatting": "sharegpt", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({BLEND: entry}, indent=2) + "\n", encoding="utf-8")


_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "call": "assistant"}
_SWIFT = {**_ROLES, "tool": "tool_response", "call": "tool_call"}


def _swift(blend: pa.Table, folder: Path, settings: Settings) -> None:
    def records() -> Iterator[Row]:
        for row, talk, media in _placed(blend, folder, settings):
            system = [{"role": "system", "content": talk.system}] if talk.system else []
            turns = [{"role": _SWIFT[role], "content": text} for role, text in talk.turns]
            lists = {f"{kind}s": files for kind, files in media.items()}
            yield {**talk.others, "messages": [*system, *turns], **lists, **told(row)}

    lines(folder / f"{BLEND}.jsonl", records())


def parts(text: str, kinds: Iterable[str], files: dict[str, Iterator[str]]) -> list[Row]:
    """Return a text with marks as parts, those of media with names in their order; a line end goes with its mark."""
    found: list[Row] = []
    place = 0
    for mark in MARK.finditer(text):
        if mark[1] in kinds:
            if before := text[place : mark.start()]:
                found.append({"type": "text", "text": before})
            found.append({"type": mark[1], "path": next(files[mark[1]])})
            place = mark.end() + (text[mark.end() : mark.end() + 1] == "\n")
    if (rest := text[place:]) or not found:
        found.append({"type": "text", "text": rest})
    return found


def _messages(blend: pa.Table, folder: Path, settings: Settings) -> None:
    def records() -> Iterator[Row]:
        for row, talk, media in _placed(blend, folder, settings):
            files = {kind: iter(names) for kind, names in media.items()}
            system = [{"role": "system", "content": [{"type": "text", "text": talk.system}]}] if talk.system else []
            turns = [{"role": _ROLES[role], "content": parts(text, media, files)} for role, text in talk.turns]
            yield {**talk.others, "messages": [*system, *turns], **told(row)}

    lines(folder / f"{BLEND}.jsonl", records())


def _nemo(blend: pa.Table, folder: Path, settings: Settings) -> None:
    others = sorted(set(blend[MODALITY].to_pylist()) - {Modality.AUDIO})
    if others:
        raise UserError(
            f"--format nemo-manifest: it holds pairs of audio and text only, and the blend also has {', '.join(others)}"
        )
    placer, opener = Placer(folder, settings), Opener(settings.media)

    def records() -> Iterator[Row]:
        for row in rows_of(blend):
            [medium] = media_of(row, settings)
            said = talk_of(row, settings).turns[-1][1] if settings.trimmed else row[ANNOTATION]
            known = {name: row[name] for name in (OFFSET, DURATION) if isinstance(row.get(name), (int, float))}
            if DURATION in known and medium.spans is None and (OFFSET in known or medium.content is None):
                # A window of a recording stays one: the file is whole, as it was.
                medium = Medium(medium.kind, without_window(medium.reference), medium.root, medium.content)
            else:
                heard: Any = opener.open(medium.reference, medium.kind, None, medium.root, medium.content)
                spans = medium.spans
                known = {DURATION: sum(end - start for start, end in spans) if spans else heard.duration}
            yield {FILE: placer.put(row[PAIR_ID], medium), TEXT: said, **known, **told(row)}

    lines(folder / "manifest.jsonl", records())


def _uids(blend: pa.Table, folder: Path, _: Settings) -> None:
    ids = blend[PAIR_ID].to_pylist()
    if any("\n" in one or "\r" in one for one in ids):
        raise UserError(
            "--format uids: the blend has ids that contain a line break, which a list with one id on "
            "each line cannot hold"
        )
    content = "".join(f"{one}\n" for one in ids).encode()
    (folder / "uids.txt").write_bytes(content)
    (folder / "uids.txt.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  uids.txt\n", encoding="utf-8")


RECORDS = (
    Export("own", "the chosen records as they were, with scores beside them", _own),
    Export("llava", "LLaVA: a JSON array", _llava),
    Export("sharegpt", "ShareGPT, with an entry for LLaMA-Factory", _sharegpt),
    Export("swift", "ms-swift: JSON lines", _swift),
    Export("messages", "OpenAI's messages with parts: JSON lines", _messages),
    Export("nemo-manifest", "NeMo: a manifest of recordings", _nemo),
    Export("uids", "the ids, a line each, and their digest", _uids),
)

__all__ = ["RECORDS", "Medium", "lines", "parts"]

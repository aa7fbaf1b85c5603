"""Blends as Hugging Face data sets: Parquet with media in it, and a card that says what they are and how made.

Media columns are typed as Image, Audio and Video, so that ``datasets.load_dataset(DIR)`` and viewers show them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nemo_mm_rank.errors import PairError, UserError
from nemo_mm_rank.io.bad_rows import shown
from nemo_mm_rank.io.exports.base import Export, Row, Settings, media_of, rows_of, talk_of, texts_of
from nemo_mm_rank.io.formats.hub import TEXT
from nemo_mm_rank.modality import is_media, modalities_of
from nemo_mm_rank.schema import ANNOTATION, DATA, MODALITY, PAIR_ID, POOL, SOURCE_MEDIA, VECTOR, WHERE, Modality

MAX_SHARD_BYTES = 450 * 2**20
"""Of media and text, so that a file stays below the 500 MB that the Hub's viewer reads."""
_HELD_BYTES = 32 * 2**20
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {Modality.IMAGE: "Image", Modality.AUDIO: "Audio", Modality.VIDEO: "Video"}
EMBEDDING, X, Y = "embedding", "x", "y"
_FIRST = (PAIR_ID, "rank", "score", "reason", MODALITY, POOL)
_OURS = (DATA, *WHERE, ANNOTATION)


def _schema(blend: pa.Table, settings: Settings) -> tuple[pa.Schema, dict[str, str]]:
    """Return the columns of the files, and those of media -> what kind they are."""
    classes = set(blend[MODALITY].to_pylist())
    kinds = {kind for name in classes for kind in modalities_of(name)}
    others = sorted(kind for kind in kinds if is_media(kind) and kind not in FEATURES)
    if others:
        raise UserError(
            f"--format hf: a Hugging Face data set holds text, code, image, audio and video, not {', '.join(others)}"
        )
    media = {kind: feature for kind, feature in FEATURES.items() if kind in kinds}
    several = {f"{kind}s": feature for kind, feature in media.items() if _most(blend, kind) > 1}
    first = [name for name in _FIRST if name in blend.column_names]
    both = any({Modality.TEXT, Modality.CODE} <= {*modalities_of(name)} for name in classes)
    texts = [TEXT, *([Modality.CODE] if both else [])]
    fields = [blend.schema.field(name) for name in first]
    fields += [pa.field(str(kind), FILE) for kind in media]
    fields += [pa.field(name, pa.list_(FILE)) for name in several]
    fields += [pa.field(str(name), pa.string()) for name in (*texts, ANNOTATION)]
    fields += [pa.field(EMBEDDING, VECTOR)] if settings.vectors is not None else []
    fields += [pa.field(name, pa.float32()) for name in (X, Y) if settings.plane is not None]
    fields += [blend.schema.field(name) for name in blend.column_names if name not in (*first, *_OURS)]
    return pa.schema(fields), {str(kind): feature for kind, feature in media.items()} | several


def _freely_named(blend: pa.Table) -> pa.Table:
    """Return a blend with those columns of the user's renamed that have names of the data set's."""
    made = {*FEATURES, *(f"{kind}s" for kind in FEATURES), TEXT, Modality.CODE, EMBEDDING, X, Y}
    used = {*made, *blend.column_names}
    names = []
    for name in blend.column_names:
        free = name
        while name in made and free in used:
            free = f"original_{free}"
        used.add(free)
        names.append(free)
    return blend.rename_columns(names)


def _most(blend: pa.Table, kind: str) -> int:
    """Return how many media of a kind a pair has at most."""
    if SOURCE_MEDIA not in blend.column_names:
        return 1
    counts = (sum(one[MODALITY] == kind for one in own or ()) for own in blend[SOURCE_MEDIA].to_pylist())
    return max(counts, default=0)


def _rows(blend: pa.Table, schema: pa.Schema, features: Mapping[str, str], settings: Settings) -> Iterator[Row]:
    for at, row in enumerate(rows_of(blend)):
        out = dict(row)
        files: dict[str, list[Row]] = {}
        for number, medium in enumerate(media_of(row, settings)):
            try:
                with medium.open(settings.media) as file:
                    content = file.read()
            except PairError as error:
                said = f"{shown(medium.reference)} {error}"
                raise UserError(f"pair {row[PAIR_ID]!r}: {said}; nothing was exported") from error
            name = f"{at:08d}-{number}.{medium.extension}"
            files.setdefault(medium.kind, []).append({"bytes": content, "path": name})
        for kind, own in files.items():
            out[kind] = own[0]
            if f"{kind}s" in features:
                out[f"{kind}s"] = own
        if settings.trimmed:
            out[ANNOTATION] = talk_of(row, settings).turns[-1][1]
        out |= {TEXT if not number else kind: text for number, (kind, text) in enumerate(texts_of(row, settings))}
        if settings.vectors is not None:
            out[EMBEDDING] = settings.vectors[at].as_py()
        if settings.plane is not None:
            out[X], out[Y] = settings.plane[at].as_py()
        yield {name: out.get(name) for name in schema.names}


def _hub(blend: pa.Table, folder: Path, settings: Settings) -> None:
    blend = _freely_named(blend)
    schema, features = _schema(blend, settings)
    kinds: dict[str, Any] = {
        name: {"_type": feature} if name in FEATURES else {"feature": {"_type": feature}, "_type": "List"}
        for name, feature in features.items()
    }
    note = {"huggingface": json.dumps({"info": {"features": kinds}})}
    schema = schema.with_metadata(note)
    (folder / "data").mkdir()
    writer: pq.ParquetWriter | None = None
    count = held = written = 0
    waiting: list[Row] = []

    def flush() -> None:
        nonlocal writer, waiting, held, written, count
        if writer is not None and written + held > MAX_SHARD_BYTES:
            writer.close()
            writer, written = None, 0
        if writer is None:
            writer = pq.ParquetWriter(folder / f"data/train-{count:05d}.parquet", schema, compression="zstd")
            count += 1
        writer.write_table(pa.Table.from_pylist(waiting, schema))
        written, held, waiting = written + held, 0, []

    for row in _rows(blend, schema, features, settings):
        size = sum(_size(value) for value in row.values())
        if waiting and (held + size > _HELD_BYTES or len(waiting) == 1000):
            flush()
        waiting.append(row)
        held += size
    flush()
    if writer is not None:
        writer.close()
    size = sum(file.stat().st_size for file in (folder / "data").iterdir())
    card = _card(blend, schema, features, settings, size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value)) if value and isinstance(value[0], dict) else 8 * len(value)
    return len(value) if isinstance(value, (str, bytes)) else 8


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Return a type as data cards write it."""
    if pa.types.is_list(kind):
        inner = _feature(kind.value_type)
        return {"list": inner["dtype"] if list(inner) == ["dtype"] else inner.get("struct", inner)}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type)} for field in kind]}
    return {"dtype": {"double": "float64", "float": "float32", "halffloat": "float16"}.get(str(kind), str(kind))}


def _card(blend: pa.Table, schema: pa.Schema, features: Mapping[str, str], settings: Settings, size: int) -> str:
    """Return the data card: a head for programs, and what people want to know."""
    described = [
        {"name": field.name}
        | (
            {"dtype": features[field.name].lower()}
            if field.name in FEATURES
            else {"list": features[field.name].lower()}
            if field.name in features
            else _feature(field.type)
        )
        for field in schema
    ]
    rows = blend.num_rows
    head: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "dataset_info": {
            "features": described,
            "splits": [{"name": "train", "num_bytes": size, "num_examples": rows}],
            "download_size": size,
            "dataset_size": size,
        },
        "tags": ["nemo-mm-rank", *sorted({kind for name in features for kind in [features[name].lower()]})],
    }
    licences = next((name for name in ("license", "licence") if name in blend.column_names), None)
    counts = Counter(zip(blend[POOL].to_pylist(), blend[MODALITY].to_pylist(), strict=True))
    table = ["| pool | modality | pairs |", "|---|---|---|"]
    table += [f"| {_cell(pool)} | {modality} | {n:,} |" for (pool, modality), n in sorted(counts.items())]
    body = ["# A curated blend", "", f"{rows:,} pairs of data and annotation, best first (`rank`, `score`, `reason`)."]
    body += ["", *table]
    if licences:
        found = Counter(map(str, blend[licences].to_pylist())).most_common(20)
        body += ["", f"Licences (column `{licences}`), which stay those of the sources:", ""]
        body += [f"* {_cell(name)}: {n:,}" for name, n in found]
    body += ["", "## How it was made", ""]
    body += [f"* {name}: {_cell(json.dumps(value, ensure_ascii=False))}" for name, value in settings.card.items()]
    names = {EMBEDDING: "the pair's data in the fused space", X: "", TEXT: "the text of the data, where it has one"}
    body += ["", "## Columns", ""]
    body += [f"* `{name}`: {said}" for name, said in names.items() if said and name in schema.names]
    if X in schema.names:
        body += ["* `x`, `y`: a map of that space, neighbours by cosine side by side"]
    dumped = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{dumped}---\n" + "\n".join(body) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


HUB = Export("hf", "a Hugging Face data set: Parquet with media, and a data card", _hub)

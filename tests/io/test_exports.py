"""Exports: what was put in comes out, in the order of the ranking; the real library of Hugging Face reads its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nemo_mm_rank.config import PoolSource
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.errors import ConfigError, UserError
from nemo_mm_rank.io.exports import EXPORTS, Settings, export_blend, hub, usual_export
from nemo_mm_rank.io.formats.base import About
from nemo_mm_rank.io.ingest import ingest
from nemo_mm_rank.io.owned import Claim
from nemo_mm_rank.schema import VECTOR
from tests.media_files import write_wav

Record = dict[str, Any]
OURS = ("pair_id", "rank", "score")


def ranked(source: PoolSource, folder: Path, bad: int = 0) -> pa.Table:
    """Return all pairs of a pool in another order, as a blend of 100 % has them."""
    report = ingest([source], folder)
    assert report.bad == bad
    table = pa.concat_tables(pq.read_table(part) for part in sorted(folder.glob("part-*.parquet")))
    order = np.random.default_rng(0).permutation(table.num_rows)
    table = table.take(pa.array(order))
    table = table.append_column("rank", pa.array(np.arange(1, table.num_rows + 1)))
    return table.append_column("score", pa.array(np.linspace(2, -2, table.num_rows)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "a.mp4").write_bytes(b"a film")
    (folder / "a.wav").write_bytes(b"a sound")
    return folder


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
others = st.dictionaries(texts.map(lambda text: f"k{text}"), values, max_size=3)
exchanges = st.lists(st.tuples(texts, texts), max_size=2)


@st.composite
def talks(draw: st.DrawFn, kinds: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, list[str]], str, Record]:
    """Draw turns, media by kind, a system prompt, and other fields."""
    said = [*draw(exchanges), ("What is it?", draw(texts.filter(str.strip)))]
    media = {kind: draw(st.lists(st.sampled_from(FILES[kind]), min_size=1, max_size=2)) for kind in kinds}
    marks = "".join(f"<{kind}>" * len(files) for kind, files in media.items())
    first = (f"{marks}\n{said[0][0]}" if marks else said[0][0], said[0][1])
    turns = [
        (role, text) for pair in (first, *said[1:]) for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return turns, media, draw(texts), draw(others)


FILES = {"image": ["0.png", "1.png", "2.png"], "video": ["a.mp4"], "audio": ["a.wav"]}
WORDS = {"user": "human", "assistant": "gpt"}


@st.composite
def records(draw: st.DrawFn, form: str) -> Record:
    kinds = draw(st.sampled_from([[], ["image"], ["image", "audio"], ["image", "video", "audio"]]))
    turns, media, system, more = draw(talks(kinds))
    if form == "llava":
        files = {kind: names[0] if len(names) == 1 else names for kind, names in media.items()}
        return {"id": draw(texts), **more, **files, "conversations": [{"from": WORDS[r], "value": t} for r, t in turns]}
    lists = {f"{kind}s": names for kind, names in media.items()}
    if form == "sharegpt":
        told = {"system": system} if system else {}
        return {**more, "conversations": [{"from": WORDS[r], "value": t} for r, t in turns], **told, **lists}
    first = [{"role": "system", "content": system}] if system else []
    return {**more, "messages": [*first, *({"role": r, "content": t} for r, t in turns)], **lists}


def opened(record: Record, folder: Path) -> Record:
    """Return a record with the contents of its media in their place."""

    def content(value: Any) -> Any:
        return [content(one) for one in value] if isinstance(value, list) else (folder / value).read_bytes()

    names = [kind + s for kind in FILES for s in ("", "s")]
    return {key: content(value) if key in names else value for key, value in record.items() if key not in OURS}


def bag(found: Sequence[Record]) -> Counter[str]:
    return Counter(json.dumps(one, sort_keys=True, default=repr) for one in found)


def unique(form: str) -> st.SearchStrategy[list[Record]]:
    # LLaVA's images stand in its column from the first record on: that is what tells it from ShareGPT.
    whole = st.lists(records(form), min_size=1, max_size=4, unique_by=lambda record: json.dumps(record, sort_keys=True))
    named = {"llava": "image", "swift": "images"}.get(form)
    return whole if named is None else whole.map(lambda rows: [{**row, named: row.get(named)} for row in rows])


def written(form: str, rows: list[Record], file: Path, indent: int | None) -> PoolSource:
    if indent is None:
        file = file.with_suffix(".jsonl")
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        file.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    return PoolSource.model_validate({"path": str(file), "format": form})


@pytest.mark.parametrize("form", ["llava", "sharegpt", "swift"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), indent=st.sampled_from([None, 0, 2]))
def test_what_goes_in_comes_out(folder: Path, form: str, data: st.DataObject, indent: int | None) -> None:
    rows = data.draw(unique(form))
    file = folder / "pool.json"
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        source = written(form, rows, file, indent)
        table = ranked(source, work / "pool")
        about = About(source, "pool")
        arrays = frozenset({"pool"} if indent is not None else ())
        how = Settings(pools={"pool": about}, arrays=arrays)
        own = export_blend(table, work / "own", "own", how)
        assert [path.name for path in own] == [f"pool.json{'' if arrays else 'l'}", "pool.scores.jsonl"]
        if indent is None:
            before, after = Path(source.path).read_bytes(), own[0].read_bytes()
            assert Counter(after.split(b"\n")) == Counter(before.split(b"\n"))
        else:
            assert bag(json.loads(own[0].read_text())) == bag(rows)
        scores = [json.loads(line) for line in own[1].read_text().splitlines()]
        assert [(row["pair_id"], row["rank"]) for row in scores] == list(
            zip(table["pair_id"].to_pylist(), range(1, len(rows) + 1), strict=True)
        )
        [out, *_] = export_blend(table, work / "same", form, how)
        text = out.read_text(encoding="utf-8")
        found = json.loads(text) if out.suffix == ".json" else [json.loads(line) for line in text.split("\n")[:-1]]
        assert [row["rank"] for row in found] == list(range(1, len(rows) + 1))
        kept = [{key: value for key, value in row.items() if value is not None or key[0] == "k"} for row in rows]
        assert bag([opened(row, out.parent) for row in found]) == bag([opened(row, folder) for row in kept])
    finally:
        shutil.rmtree(work)
        Path(source.path).unlink()


def rows_in(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Pairs of five modalities, real files, as rows of ours."""
    root = tmp_path_factory.mktemp("demo")
    pool = make_demo_pool(root / "pool", 3)
    table = ranked(PoolSource(path=str(pool)), root / "shards", bad=3)
    return table.append_column("licence", pa.array(["CC0"] * table.num_rows))


def content_of(table: pa.Table, row: int) -> bytes:
    return Path(table["media_root"][row].as_py(), table["data"][row].as_py()).read_bytes()


def test_pairs_become_messages(mixed: pa.Table, tmp_path: Path) -> None:
    [out, _] = export_blend(mixed, tmp_path / "out", "messages")
    for at, row in enumerate(rows_in(out)):
        asked, said = row["messages"]
        assert said == {"role": "assistant", "content": [{"type": "text", "text": mixed["annotation"][at].as_py()}]}
        [part] = asked["content"]
        if mixed["modality"][at].as_py() in ("text", "code"):
            assert part == {"type": "text", "text": mixed["data"][at].as_py()}
        else:
            assert part["type"] == mixed["modality"][at].as_py()
            assert (out.parent / part["path"]).read_bytes() == content_of(mixed, at)


@pytest.mark.parametrize("place", ["copy", "link", "keep"])
def test_where_media_are(mixed: pa.Table, tmp_path: Path, place: str) -> None:
    files = export_blend(mixed, tmp_path / "out", "swift", Settings(place=place))
    assert [path.name for path in files] == ["blend.jsonl", "media"][: 1 if place == "keep" else 2]
    for at, row in enumerate(rows_in(files[0])):
        for kind in ("image", "audio", "video"):
            for name in row.get(f"{kind}s", ()):
                path = Path(name) if place == "keep" else tmp_path / "out" / name
                assert (path.is_absolute(), path.is_symlink()) == (True, place == "link")
                assert path.read_bytes() == content_of(mixed, at)


def test_what_lies_in_a_tar_is_copied(mixed: pa.Table, tmp_path: Path) -> None:
    pictures = mixed.filter(pc.equal(mixed["modality"], "image"))
    [tar] = export_blend(pictures, tmp_path / "tars", "webdataset")
    table = ranked(PoolSource(path=str(tar)), tmp_path / "pool")
    [out, _] = export_blend(table, tmp_path / "out", "llava", Settings(place="keep"))
    found = {(out.parent / row["image"]).read_bytes() for row in json.loads(out.read_text())}
    assert found == {content_of(pictures, at) for at in range(pictures.num_rows)}


def test_the_real_library_reads_a_data_set(mixed: pa.Table, tmp_path: Path) -> None:
    n = mixed.num_rows
    vectors = pa.array(np.arange(4.0 * n).reshape(n, 4).tolist(), VECTOR)
    plane = pa.array(np.arange(2.0 * n).reshape(n, 2).tolist())
    how = Settings(vectors=vectors, plane=plane, card={"objective": "all | of it"})
    export_blend(mixed, tmp_path / "out", "hf", how)
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert {name: type(found.features[name]).__name__ for name in ("image", "audio", "video")} == {
        "image": "Image",
        "audio": "Audio",
        "video": "Video",
    }
    for at, row in enumerate(found.with_format("arrow")[:].to_pylist()):
        kind = mixed["modality"][at].as_py()
        assert [row[name] for name in ("pair_id", "rank", "annotation", "licence")] == [
            mixed[name][at].as_py() for name in ("pair_id", "rank", "annotation", "licence")
        ]
        assert (row["embedding"], row["x"], row["y"]) == ([4 * at + i for i in range(4)], 2 * at, 2 * at + 1)
        assert row["text"] == (mixed["data"][at].as_py() if kind in ("text", "code") else None)
        for name in ("image", "audio", "video"):
            assert (row[name] or {}).get("bytes") == (content_of(mixed, at) if name == kind else None)
    card = (tmp_path / "out/README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert [feature["name"] for feature in head["dataset_info"]["features"]] == found.column_names
    assert f"CC0: {n}" in card
    assert "all \\| of it" in card


def test_columns_that_have_names_of_the_data_set(mixed: pa.Table, tmp_path: Path) -> None:
    """Those of an earlier blend stand beside this one's, whatever they are called."""
    mine = mixed.append_column("original_rank", mixed["rank"]).append_column("text", mixed["licence"])
    mine = mine.append_column("original_text", mixed["pool"]).append_column("x", mixed["score"])
    export_blend(mine, tmp_path / "out", "hf")
    [file] = (tmp_path / "out/data").iterdir()
    found = pq.read_table(file)
    names = {"rank": "rank", "original_rank": "rank", "original_x": "score", "original_text": "pool"}
    for name, source in {**names, "original_original_text": "licence"}.items():
        assert found[name].to_pylist() == mixed[source].to_pylist()


def test_a_data_set_is_cut_into_files(mixed: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_SHARD_BYTES", 20_000)
    monkeypatch.setattr(hub, "_HELD_BYTES", 5_000)
    export_blend(mixed, tmp_path / "out", "hf")
    assert len(list((tmp_path / "out/data").iterdir())) > 3
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["pair_id"] == mixed["pair_id"].to_pylist()


def test_several_pictures_are_a_list(folder: Path, tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "Yes."}
    rows: list[Record] = [
        {"images": ["0.png", "1.png"], "messages": [{"role": "user", "content": "<image>or<image>\n?"}, said]},
        {"images": [], "messages": [{"role": "user", "content": "Hi"}, said]},
    ]
    source = written("swift", rows, folder / "several.json", None)
    table = ranked(source, tmp_path / "pool").sort_by("modality")
    export_blend(table, tmp_path / "hf", "hf")
    found = load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    assert [len(row["images"] or ()) for row in found] == [0, 2]
    assert found[1]["image"].tobytes() == Image.open(folder / "0.png").tobytes()
    [out, media] = export_blend(table, tmp_path / "messages", "messages")
    asked = rows_in(out)[1]["messages"][0]["content"]
    assert [part["type"] for part in asked] == ["image", "text", "image", "text"]
    assert [part.get("text") for part in asked] == [None, "or", None, "?"]
    assert sorted(os.listdir(media)) == ["00000000.png", "00000001.png"]


def test_trimmed_pairs(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    loud = (np.array([0.1, 0.5, 0.9]) * 2**15).astype(np.int16)
    write_wav(tmp_path, np.repeat(loud, 16_000), name="a.wav")
    table = pa.table(
        {
            "pair_id": ["i", "a", "t"],
            "pool": ["p"] * 3,
            "modality": ["image", "audio", "text"],
            "data": ["a.png", "a.wav", "One two."],
            "annotation": ["A picture. Rubbish.", "Loud.", "Three."],
            "media_root": [str(tmp_path)] * 3,
            "sns_data_spans": pa.array([[[0, 0, 4, 2]], [[1, 2]], [[4, 8]]], pa.list_(pa.list_(pa.float64()))),
            "sns_annotation_spans": pa.array([[[0, 10]], None, None], pa.list_(pa.list_(pa.float64()))),
        }
    )
    [out, media] = export_blend(table, tmp_path / "out", "swift", Settings(trimmed=True))
    picture, sound, text = rows_in(out)
    assert [turn["content"] for turn in picture["messages"]] == ["<image>", "A picture."]
    assert Image.open(out.parent / picture["images"][0]).size == (4, 2)
    assert (out.parent / sound["audios"][0]).stat().st_size == 44 + 2 * 16_000
    assert [turn["content"] for turn in text["messages"]] == ["two.", "Three."]
    assert len(os.listdir(media)) == 2
    [whole, _] = export_blend(table, tmp_path / "whole", "swift")
    assert Image.open(whole.parent / rows_in(whole)[0]["images"][0]).size == (8, 8)


def test_manifests_of_nemo(tmp_path: Path) -> None:
    write_wav(tmp_path, np.zeros(48_000, dtype=np.int16), name="a.wav")
    rows = [
        {"audio_filepath": "a.wav", "text": "all of it", "duration": 3.0},
        {"audio_filepath": "a.wav", "text": "a part", "duration": 0.5, "offset": 1.25},
    ]
    source = written("nemo-manifest", rows, tmp_path / "m.json", None)
    table = ranked(source, tmp_path / "pool").sort_by("annotation")
    [out, _] = export_blend(table, tmp_path / "out", "nemo-manifest")
    found = rows_in(out)
    assert [(row["text"], row["duration"], row.get("offset")) for row in found] == [
        ("a part", 0.5, 1.25),
        ("all of it", 3.0, None),
    ]
    assert {(out.parent / row["audio_filepath"]).read_bytes() for row in found} == {(tmp_path / "a.wav").read_bytes()}
    [own, _] = export_blend(table, tmp_path / "own", "own")
    assert Counter(own.read_bytes().split(b"\n")) == Counter(Path(source.path).read_bytes().split(b"\n"))
    plain = pa.table(
        {
            **{"pair_id": ["x"], "pool": ["p"], "modality": ["audio"], "data": ["a.wav"], "annotation": ["y"]},
            "media_root": [str(tmp_path)],
        }
    )
    [out, _] = export_blend(plain, tmp_path / "plain", "nemo-manifest")
    assert rows_in(out)[0]["duration"] == 3.0


def test_ids_and_their_digest(mixed: pa.Table, tmp_path: Path) -> None:
    [ids, digest] = export_blend(mixed, tmp_path / "out", "uids")
    assert ids.read_text().splitlines() == mixed["pair_id"].to_pylist()
    assert digest.read_text() == f"{hashlib.sha256(ids.read_bytes()).hexdigest()}  uids.txt\n"


def test_energon_finds_each_sample_where_the_index_says(mixed: pa.Table, tmp_path: Path) -> None:
    export_blend(mixed, tmp_path / "out", "energon", Settings(max_samples=2))
    for kind in set(mixed["modality"].to_pylist()):
        place, mine = tmp_path / "out" / kind, mixed.filter(pc.equal(mixed["modality"], kind))
        counts = json.loads((place / ".nv-meta/.info.json").read_text())["shard_counts"]
        assert sum(counts.values()) == mine.num_rows
        assert max(counts.values()) == 2
        tars = list(counts)
        extension = {"image": "jpg", "audio": "wav", "video": "mp4"}.get(kind)
        database = sqlite3.connect(place / ".nv-meta/index.sqlite")
        query = (
            "SELECT s.tar_file_id, sample_key, part_name, content_byte_offset, content_byte_size FROM samples s JOIN "
            "sample_parts p ON s.tar_file_id = p.tar_file_id AND s.sample_index = p.sample_index"
        )
        for tar, key, part, offset, size in database.execute(query):
            content = (place / tars[tar]).read_bytes()[offset : offset + size]
            at = int(key) - 1
            if part == "json":
                assert json.loads(content)["pair_id"] == mine["pair_id"][at].as_py()
            else:
                assert (part, content) == (extension, content_of(mine, at))
        database.close()


def test_what_has_no_place_in_a_format(mixed: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--format 'lava': a blend can be exported as webdataset, own, .*did you "
        r"mean",
    ):
        export_blend(mixed, tmp_path / "out", "lava")
    with pytest.raises(UserError, match="--format own: not all pairs of the blend were made of records"):
        export_blend(mixed, tmp_path / "out", "own")
    with pytest.raises(
        UserError,
        match=r"--format nemo-manifest: it holds pairs of audio and text only, .* code, "
        r"image",
    ):
        export_blend(mixed, tmp_path / "out", "nemo-manifest")
    gone = mixed.filter(pc.equal(mixed["modality"], "image")).slice(0, 1)
    gone = gone.set_column(gone.column_names.index("data"), "data", pa.array(["gone.png"]))
    for name in ("llava", "hf", "energon"):
        with pytest.raises(UserError, match=r"pair '.*': 'gone\.png' .*does not exist|No such file"):
            export_blend(gone, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()
    assert usual_export(mixed) == "webdataset"


@pytest.mark.parametrize("name", [name for name in EXPORTS if name not in ("own", "nemo-manifest")])
def test_an_export_is_replaced_whole_and_the_same_again(mixed: pa.Table, tmp_path: Path, name: str) -> None:
    def everything(folder: Path) -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file() and path.parent != tmp_path)
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    export_blend(mixed, tmp_path / "out", name)
    first = everything(tmp_path / "out")
    with pytest.raises(UserError, match="contains an exported blend already"):
        export_blend(mixed, tmp_path / "out", name)
    (tmp_path / "out/mine.txt").write_text("mine")
    replace = Claim("export", again=False, overwrite=True)
    export_blend(mixed.slice(0, 2), tmp_path / "out", name, claim=replace)
    export_blend(mixed, tmp_path / "out", name, claim=replace)
    again = everything(tmp_path / "out")
    assert again.pop("mine.txt") == b"mine"
    assert again == first

"""Data of several parts, embedded: as one by a model that takes it so, otherwise as the mean of its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from nemo_mm_rank import frames
from nemo_mm_rank.config import CLASSICAL_EXPERTS, CLASSICAL_MODELS, ExpertSpec, MediaSettings, ModelSpec, parse
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.media.segment import Image, Item
from nemo_mm_rank.modality import combined
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import taken_together
from nemo_mm_rank.models.expert import item_key
from nemo_mm_rank.schema import DATA_PARTS, DATA_SPANS, ERROR, PARTS, SOURCE_CONTENTS, SOURCE_MEDIA, SPANS
from tests.models import tiny_writers

TEXT = "The sea is blue. Nobody is there."
PARTS_OF = [[("text", TEXT), ("image", "red.png")], [("text", TEXT)], [("image", "red.png")]]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    PILImage.new("RGB", (64, 48), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def frame(media: Path, *rows: list[tuple[str, str]]) -> Any:
    table = {
        "pair_id": [f"p{number}" for number in range(len(rows))],
        "pool": ["test"] * len(rows),
        "modality": [combined(kind for kind, _ in parts) for parts in rows],
        "data": ["\n".join(data for _, data in parts) for parts in rows],
        "annotation": ["a red sea"] * len(rows),
        "media_root": [str(media)] * len(rows),
        DATA_PARTS: pa.array(
            [[{"modality": kind, "data": data} for kind, data in p] if len(p) > 1 else None for p in rows], PARTS
        ),
    }
    return frames.from_table(pa.table(table))


def step(*experts: ExpertSpec, **models: ModelSpec) -> ExpertStep:
    return ExpertStep(experts or CLASSICAL_EXPERTS, {**CLASSICAL_MODELS, **models}, anchor="text")


def column(out: Any, name: str) -> tuple[torch.Tensor, list[bool]]:
    vectors = frames.vectors(out, name)
    return vectors.values, vectors.valid.tolist()


def test_the_vector_of_several_parts_is_the_mean_of_theirs(media: Path) -> None:
    out = step()(frame(media, *PARTS_OF))
    assert frames.strings(out, ERROR) == [None] * 3
    words, there = column(out, "emb_data__words")
    assert there == [True] * 3
    torch.testing.assert_close(words[0], F.normalize(words[1] + words[2], dim=0))
    for name, alone in (("emb_data__features__text", 1), ("emb_data__features__image", 2)):
        vectors, there = column(out, name)
        assert there == [True, alone == 1, alone == 2]
        assert torch.equal(vectors[0], vectors[alone])
    said = frames.strings(out, "description__words")
    assert said[0] == said[2] is not None
    assert said[1] is None


def several(rows: Any, *media: list[tuple[str, str]] | None, contents: Any = None) -> Any:
    """Put all media of rows beside them."""
    listed = [[{"modality": kind, "data": data} for kind, data in own] if own else None for own in media]
    columns = {SOURCE_MEDIA: pa.array(listed, PARTS)}
    return frames.attach(rows, columns if contents is None else {**columns, SOURCE_CONTENTS: pa.array(contents)})


def test_several_pictures_make_one_vector(media: Path) -> None:
    """The mean of what the pair would be with each of them, to the bit the same beside any other pair."""
    for name, colour in (("green", (10, 200, 10)), ("blue", (10, 10, 200))):
        PILImage.new("RGB", (64, 48), colour).save(media / f"{name}.png")
    red, green, blue = ([("text", TEXT), ("image", f"{name}.png")] for name in ("red", "green", "blue"))
    pictures = [("image", "red.png"), ("image", "green.png"), ("image", "blue.png")]
    rows = several(frame(media, red, [pictures[0]], red, green, blue), pictures, pictures[:2], None, None, None)
    out, alone = step()(rows), step()(frame(media, [pictures[0]], [pictures[1]]))
    assert frames.strings(out, ERROR) == [None] * 5
    for name in ("emb_data__words", "emb_data__features__image", "emb_data__features__text"):
        vectors, _ = column(out, name)
        torch.testing.assert_close(vectors[0], F.normalize(vectors[2:5].mean(dim=0), dim=0), atol=1e-6, rtol=0)
        if name != "emb_data__features__text":
            single, _ = column(alone, name)
            torch.testing.assert_close(vectors[1], F.normalize(single.mean(dim=0), dim=0), atol=1e-6, rtol=0)
            assert float(vectors[0] @ vectors[2]) < 0.999
    said = frames.strings(out, "description__words")
    assert said[0] == "\n".join(map(str, said[2:5]))
    lonely = step()(several(frame(media, red), pictures))
    for name in step().provides:
        if name.startswith("emb_"):
            assert torch.equal(column(lonely, name)[0][0], column(out, name)[0][0])


def test_of_many_pictures_some_are_seen(media: Path) -> None:
    """Those in the middle of equal slices, as of a video; one that cannot be decoded fails its pair."""
    many = [("image", "broken.png" if number in (0, 4, 9) else "red.png") for number in range(10)]
    rows = several(frame(media, [("image", "red.png")], [("image", "red.png")]), many, many[:3])
    out = replace(step(), media=MediaSettings(several=2))(rows)
    broken = "experts: MediaError: 'broken.png': is not an image"
    assert frames.strings(out, ERROR)[0] is None  # the third and the eighth
    assert str(frames.strings(out, ERROR)[1]).startswith(broken)
    vectors, there = column(out, "emb_data__features__image")
    assert there == [True, False]
    single = step()(frame(media, [("image", "red.png")]))
    torch.testing.assert_close(vectors[0], column(single, "emb_data__features__image")[0][0], atol=1e-6, rtol=0)


def test_contents_that_rows_carry_are_found_by_name(media: Path) -> None:
    """Pictures and a recording in one row; what it does not carry is a file."""
    PILImage.new("RGB", (64, 48), (10, 10, 200)).save(media / "blue.png")
    content = (media / "red.png").read_bytes()
    carried, file = [("image", "x"), ("image", "blue.png")], [("image", "red.png"), ("image", "blue.png")]
    rows = several(frame(media, carried[:1], file[:1]), carried, file, contents=[[content, None], None])
    vectors, there = column(step()(rows), "emb_data__features__image")
    assert there == [True, True]
    assert torch.equal(vectors[0], vectors[1])
    plain = frames.to_table(rows).to_pandas()  # objects in place of Arrow's lists
    again, there = column(step()(plain), "emb_data__features__image")
    assert there == [True, True]
    assert torch.equal(again, vectors)


def test_spans_of_a_part_are_its_own(media: Path) -> None:
    rows = frame(media, *PARTS_OF[:2])
    spans = pa.array([[[0, 0, 16], [1, 0, 0, 32, 48]], [[0, 16]]], SPANS)
    out = step()(frames.attach(rows, {DATA_SPANS: spans}))
    whole = step()(rows)
    text, _ = column(out, "emb_data__features__text")
    assert torch.equal(text[0], text[1])
    assert not torch.equal(text[0], column(whole, "emb_data__features__text")[0][0])


def test_a_part_that_fails_or_that_nobody_takes_is_named(media: Path) -> None:
    fusion = parse(ExpertSpec, {"name": "features", "kind": "fusion", "encoders": {"text": "text", "image": "image"}})
    rows = frame(
        media,
        [("text", TEXT), ("image", "broken.png")],
        [("text", TEXT), ("audio", "x.wav")],
        PARTS_OF[0],
    )
    errors = frames.strings(step(fusion)(rows), ERROR)
    assert errors[0] is not None
    assert errors[0].startswith("experts: MediaError: image part: 'broken.png': is not an image")
    assert errors[1:] == ["experts: EmbeddingError: audio part: no expert takes audio", None]


def test_an_expert_takes_data_in_all_of_its_parts_or_not_at_all(media: Path) -> None:
    words = parse(ExpertSpec, {"name": "words", "kind": "text-based", "encoder": "text"})
    pictures = parse(ExpertSpec, {"name": "features", "kind": "fusion", "encoders": {"text": "text", "image": "image"}})
    out = step(words, pictures)(frame(media, PARTS_OF[0]))
    assert frames.strings(out, ERROR) == [None]
    assert column(out, "emb_data__words")[1] == [False]
    assert column(out, "emb_data__features__image")[1] == [True]


def test_the_same_in_any_company(media: Path) -> None:
    rows = frame(media, *PARTS_OF, PARTS_OF[0])
    out = step()(rows)
    alone = step()(frame(media, PARTS_OF[0]))
    for name in step().provides:
        if name.startswith("emb_"):
            vectors, _ = column(out, name)
            assert torch.equal(vectors[0], column(alone, name)[0][0])
            assert torch.equal(vectors[3], vectors[0])


def test_text_with_a_picture_is_one_item_for_a_model_that_reads_both(
    media: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    folder = tiny_writers.qwen2_vl(tmp_path_factory.mktemp("unite"))
    spec = parse(ModelSpec, {"class": "unite", "path": str(folder)})
    whole = parse(ExpertSpec, {"name": "whole", "kind": "end-to-end", "encoder": "unite"})
    out = step(whole, unite=spec)(frame(media, *PARTS_OF, PARTS_OF[0]))
    vectors, there = column(out, "emb_data__whole")
    assert there == [True] * 4
    encoder = loader.load("unite", "unite", {"path": str(folder)}, loader.pick_device(None))
    assert taken_together(encoder) == {"text+image", "text+video"}
    picture = Image("red", PILImage.open(media / "red.png").convert("RGB"))
    expected = encoder.encode([(TEXT, picture)]).vectors[0].cpu()
    torch.testing.assert_close(vectors[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(vectors[3], vectors[0])
    mean = F.normalize(vectors[1] + vectors[2], dim=0)
    assert float(vectors[0] @ mean) < 0.999
    loader.release()


def test_what_tells_items_of_several_parts_apart() -> None:
    picture = Image("k", PILImage.new("RGB", (2, 2)))
    items: list[tuple[Item, ...]] = [("a", picture), ("b", picture), ("a", Image("l", picture.pixels)), ("a", "k")]
    assert len({item_key(item, "text+image") for item in items}) == 4
    assert item_key(("a", picture), "text+image") == item_key(("a", Image("k", picture.pixels)), "text+image")


def test_frames_that_went_through_pandas(media: Path) -> None:
    """Objects in place of Arrow's lists, as a user's own pandas code may leave them."""
    rows = frame(media, *PARTS_OF)
    plain = pd.DataFrame({name: rows[name].to_list() for name in rows.columns})
    plain[DATA_PARTS] = pd.Series([value if isinstance(value, list) else None for value in plain[DATA_PARTS]])
    expected, found = step()(rows), step()(plain)
    assert torch.equal(column(found, "emb_data__words")[0], column(expected, "emb_data__words")[0])

"""Real weights, where a checkout has them: what models of known worth make of real speech, photos and texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import real_models, real_pool, weights
from benchmarks.real_weights import READ, described, encoder, error_rate, read_speech, recall, rows, synthetic_speech
from benchmarks.real_weights import questions as paragraphs_found
from nemo_mm_rank import curate
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.media.segment import Image, Item, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded

pytestmark = pytest.mark.slow
no_pool = pytest.mark.skipif(real_pool.missing() is not None, reason=str(real_pool.missing()))
no_speech = pytest.mark.skipif(
    real_models.missing(speech=True) is not None, reason=str(real_models.missing(speech=True))
)
no_static = pytest.mark.skipif(
    real_models.missing(static=True) is not None, reason=str(real_models.missing(static=True))
)


@lru_cache
def photos(n: int) -> list[Item]:
    return [Opener(root=str(real_pool.POOL.parent)).open(row["data"], "image") for row in rows("coco")[:n]]


@no_speech
@pytest.mark.skipif(not READ.is_dir(), reason="Debian's pocketsphinx-testdata, with five read sentences, is not there")
def test_whisper_writes_down_read_speech() -> None:
    spoken = read_speech()
    assert len(spoken) == 5
    assert error_rate(READ, spoken) <= 0.06  # three of seventy words


@no_speech
@pytest.mark.skipif(not real_pool.SPOKEN.exists(), reason="needs the spoken pool of ../shared")
def test_whisper_writes_down_synthetic_speech() -> None:
    spoken = dict([*synthetic_speech().items()][:2])
    assert error_rate(real_pool.DATA, spoken) <= 0.05


@no_static
@no_pool
@pytest.mark.parametrize(
    ("folder", "questions", "least"), [(weights.wordllama, 700, 0.8), (weights.minilm, 30, 0.9)], ids=["static", "mini"]
)
def test_a_question_finds_its_paragraph(folder: Callable[[], str], questions: int, least: float) -> None:
    assert paragraphs_found(encoder(folder()), questions) >= least


@no_static
def test_the_static_encoder_is_the_package_s_own_vectors() -> None:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    root = weights.carried("wordllama")
    table = load_file(root / "weights/l2_supercat_256.safetensors")["embedding.weight"].float()
    ids = Tokenizer.from_file(str(root / "tokenizers/l2_supercat_tokenizer_config.json")).encode(
        "A dog runs on the beach.", add_special_tokens=False
    )
    mean = table[ids.ids].mean(dim=0)
    vector = encoder(weights.wordllama()).encode(["A dog runs on the beach.", "another"], "text").vectors[0]
    torch.testing.assert_close(vector, mean / mean.norm(), rtol=0, atol=1e-6)


def detector(name: str, **arguments: Any) -> Any:
    return loader.load(
        name, f"tests.adapters_objects:{name}", {"folder": str(real_pool.MODELS), "num_threads": 1, **arguments}
    )


@no_pool
def test_things_and_labels_find_the_caption_where_labels_alone_do_not() -> None:
    n = 60
    text = encoder(weights.minilm())
    captions = text.encode([row["annotation"] for row in rows("coco")[:n]], "text").vectors

    def found(name: str) -> float:
        said = described(name, photos(n), "image", folder=str(real_pool.MODELS), top=3)
        return recall(text.encode(said, "text").vectors, captions, torch.arange(n))

    assert found("tests.adapters_objects:ObjectWords") >= found("tests.adapters:MobileNetWords") + 0.1


@no_pool
def test_a_video_has_as_many_things_as_one_of_its_frames() -> None:
    giraffes, room = (one for one in (photos(60)[place] for place in (29, 16)) if isinstance(one, Image))
    assert told_of([giraffes, room], "image")[0].split(", ")[0] == "2 giraffes"
    assert {"chair", "couch"} <= set(told_of([room], "image")[0].split(", "))
    frames = [np.asarray(picture.pixels.resize((400, 300))) for picture in (giraffes, room, giraffes)]
    (both,) = told_of([Video("v", np.stack(frames), np.arange(3.0), 3.0)], "video")
    assert {"2 giraffes", "chair", "couch"} <= set(both.split(", "))


def told_of(items: list[Item], modality: str) -> list[str]:
    return [text or "" for text in detector("ObjectWords").describe(items, modality).texts]


@no_pool
def test_a_grounder_finds_what_a_phrase_speaks_of() -> None:
    grounder = loader.as_grounder("objects", detector("ObjectGrounder", encoder=weights.minilm()))
    items = [photos(60)[place] for place in (29, 16, 29)]
    phrases = [["two giraffes", "poetry"], ["a cat on a chair"], ["poetry"]]
    giraffes, cat, nothing = grounder.ground(items, phrases, "image")
    for one, item, count in ((giraffes, items[0], 2), (cat, items[1], 1), (nothing, items[2], 0)):
        assert isinstance(one, Grounded)
        assert isinstance(item, Image)
        assert one.found
        assert len(one.spans) >= count
        x, y, w, h = one.spans.unbind(dim=1)
        assert bool(((x >= 0) & (y >= 0) & (w > 0) & (h > 0)).all())
        assert bool(((x + w <= item.pixels.width + 1e-6) & (y + h <= item.pixels.height + 1e-6)).all())
        assert one.scores.shape == (len(one.spans), len(phrases[items.index(item)]) if count else 1)
    assert isinstance(giraffes, Grounded)
    assert isinstance(nothing, Grounded)
    assert bool((giraffes.scores[:, 0] >= 0.5).all())
    assert bool((giraffes.scores[:, 1] < 0.5).all())
    assert len(nothing.spans) == 0


@no_pool
def test_trimming_keeps_the_things_that_the_caption_names(tmp_path: Path) -> None:
    chosen = [rows("coco")[place] for place in (16, 29, 46, 56)]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    objects = {
        "class": "tests.adapters_objects:ObjectGrounder",
        "folder": str(real_pool.MODELS),
        "encoder": weights.minilm(),
    }
    models = {
        "minilm": {"class": "sentence-transformers", "path": weights.minilm()},
        "things": {"class": "tests.adapters_objects:ObjectWords", "folder": str(real_pool.MODELS)},
        "objects": objects,
    }
    result = curate(
        config={
            "pools": {"path": str(pool), "root": str(real_pool.POOL.parent)},
            "queries": "animals",
            "budget": "100%",
            "output": str(tmp_path / "run"),
            "models": models,
            "experts": [
                {"name": "words", "kind": "text-based", "encoder": "minilm", "describers": {"image": "things"}}
            ],
            "anchor": "minilm",
            "sns": {"mode": "forward", "grounders": {"image": "objects"}},
        },
        progress=False,
    )
    blend = result.blend.set_index("pair_id")
    assert len(blend) == 4
    cut = {pair: spans for pair, spans in blend["sns_data_spans"].items() if spans is not None and len(spans)}
    assert cut
    for pair, spans in cut.items():
        width, height = photos(60)[[row["pair_id"] for row in rows("coco")].index(str(pair))].pixels.size  # type: ignore[union-attr]
        ((x, y, w, h),) = spans
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
        assert w * h < width * height


def test_a_conversion_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, calls = tmp_path / "model.bin", []
    source.write_bytes(b"one")

    def fails(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("no more")

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights").write_bytes(source.read_bytes())

    with pytest.raises(RuntimeError, match="no more"):
        weights.converted("model", [source], "pytest", fails)
    assert not any((tmp_path / "nemo-mm-rank" / "weights").iterdir())
    first = weights.converted("model", [source], "pytest", make)
    assert weights.converted("model", [source], "pytest", make) == first
    source.write_bytes(b"two")
    second = weights.converted("model", [source], "pytest", make)
    assert second != first
    assert len(calls) == 2
    assert (Path(first) / "weights").read_bytes() == b"one"
    assert (Path(second) / "weights").read_bytes() == b"two"
    assert sorted(path.name for path in Path(first).parent.iterdir()) == sorted((Path(first).name, Path(second).name))

"""A fusion expert as in LanguageBind: one model for images and videos, one for sound, each with a text tower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank import curate, frames
from nemo_mm_rank.config import ExpertSpec, MediaSettings, ModelSpec, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.experts import ExpertStep
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import encode_queries
from nemo_mm_rank.schema import ERROR
from tests.integration.runs import digests
from tests.media_files import write_video, write_wav
from tests.models import tiny_encoders as tiny

pytest.importorskip("transformers", reason="needs the extra 'models'")

ENCODERS = {"text": "clip", "image": "clip", "video": "clip", "audio": "clap"}
BIND = {"name": "bind", "kind": "fusion", "encoders": ENCODERS}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("models")
    yield {
        "clip": {"class": "clip", "path": str(tiny.clip(root / "clip"))},
        "clap": {"class": "clap", "path": str(tiny.clap(root / "clap")), "max_windows": 2},
    }
    loader.release()


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    tiny.image(0).pixels.save(tmp_path / "noise.png")
    PILImage.new("RGB", (900, 3), (200, 10, 10)).save(tmp_path / "thread.png")
    write_video(tmp_path, "clip.mp4", count=20)
    samples = (np.random.default_rng(0).normal(0, 0.2, 40_000).clip(-1, 1) * 32_767).astype(np.int16)
    write_wav(tmp_path, samples, name="noise.wav")
    pairs = [
        ("a", "text", "the sea is blue", "what is blue"),
        ("b", "image", "noise.png", "noise"),
        ("c", "video", "clip.mp4", "a grey square grows bright"),
        ("d", "audio", "noise.wav", "noise once more"),
        ("e", "image", "thread.png", "a thread"),
    ]
    frame = pd.DataFrame(pairs, columns=["pair_id", "modality", "data", "annotation"])
    return frame.assign(pool="p", media_root=str(tmp_path))


def test_each_model_has_a_column_and_each_text_tower_one_for_annotations(
    models: dict[str, Any], rows: pd.DataFrame, tmp_path: Path
) -> None:
    specs = {name: parse(ModelSpec, spec) for name, spec in models.items()}
    step = ExpertStep([parse(ExpertSpec, BIND)], specs, anchor="clip")
    out = step(rows)
    valid = {name: frames.vectors(out, name).valid.tolist() for name in step.provides}
    assert valid == {
        "emb_data__bind__clip": [True, True, True, False, False],
        "emb_data__bind__clap": [False, False, False, True, False],
        "emb_annotation__clip": [True, True, True, True, False],
        "emb_annotation__clap": [True, True, True, True, False],
    }
    assert frames.strings(out, ERROR) == [
        *[None] * 4,
        "experts: EmbeddingError: 900 x 3 pixels: more than 200 times as long as it is wide",
    ]
    encoders = {name: loader.load(name, spec.class_, spec.arguments) for name, spec in specs.items()}
    opener = Opener(MediaSettings())
    for row, (modality, model) in enumerate(list(ENCODERS.items())):
        place = next(index for index in range(4) if rows["modality"][index] == modality)
        item = rows["data"][place]
        if modality != "text":
            item = opener.open(item, modality, None, str(tmp_path))
        alone = encoders[model].encode([item], modality).vectors[0]
        assert torch.equal(frames.vectors(out, f"emb_data__bind__{model}").values[place], alone), row
    for model, encoder in encoders.items():
        words = encode_queries(encoder, list(rows["annotation"][:4])).vectors
        assert torch.equal(frames.vectors(out, f"emb_annotation__{model}").values[:4], words)


def test_a_whole_run_is_the_same_to_the_byte_from_any_shards(models: dict[str, Any], tmp_path: Path) -> None:
    pool = make_demo_pool(tmp_path / "demo", pairs_per_modality=6)
    config: dict[str, Any] = {
        "pools": str(pool),
        "queries": "natural outdoor scenes",
        "budget": "100%",
        "jsonl": True,
        "models": {"text": {"class": "hashed-text", "dim": 64}, **models},
        "experts": [
            {**BIND, "encoders": {**ENCODERS, "text": "text", "code": "text"}},
            {"name": "scenes", "kind": "end-to-end", "encoder": "clip"},
        ],
        "sns": {"mode": "bidirectional", "expert": "scenes"},
        "projection": {"max_epochs": 2, "folds": 2, "threads": 1},
    }
    made = {}
    for shards in (1, 7):
        output = tmp_path / f"run-{shards}"
        result = curate(config={**config, "output": str(output), "shards": shards}, progress=False)
        made[shards] = digests(output, ("blend.jsonl", "quarantine.parquet"))
        assert {"image", "video", "audio"} <= set(result.blend["modality"])
        assert set(result.manifest["models"]) == {"text", "clip", "clap"}
        loader.release()
    assert made[1] == made[7]

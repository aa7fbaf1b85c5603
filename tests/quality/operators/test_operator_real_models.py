"""Operators over tiny models of the real classes: CLIP and CLAP scores are the library's, boxes Grounding DINO's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageOps

from nemo_mm_rank import frames
from nemo_mm_rank.config import MediaSettings, ModelSpec, parse
from nemo_mm_rank.demo import make_demo_pool
from nemo_mm_rank.media.opener import Opener
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Grounded
from nemo_mm_rank.quality.operators import OperatorSettings, column, steps
from nemo_mm_rank.text.phrases import components
from tests.models.tiny_detector import grounding_dino
from tests.models.tiny_encoders import clap, clip

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Four pairs of each modality, and a picture a second time with another caption."""
    folder = tmp_path_factory.mktemp("demo")
    found = pd.read_json(make_demo_pool(folder, pairs_per_modality=4), lines=True)
    found = found[found["fault"].isna() | (found["fault"] == "foreign sentence")]
    again = found[found["modality"] == "image"].iloc[:1].assign(pair_id="again", annotation="a cat and a dog")
    return pd.concat([found, again], ignore_index=True).assign(media_root=str(folder))


def judged(
    pool: pd.DataFrame, settings: dict[str, Any], models: dict[str, dict[str, Any]], media: MediaSettings | None = None
) -> pd.DataFrame:
    plain = {"images": [], "texts": [], "fingerprints": False, **settings}
    specs = {name: parse(ModelSpec, spec) for name, spec in models.items()}
    (step,) = steps(parse(OperatorSettings, plain), specs, media)
    out = step(pool)
    assert out["error"].isna().all()
    return pd.DataFrame({name: frames.array(out, name).to_pandas() for name in step.provides}).assign(
        modality=pool["modality"]
    )


def test_clip_score_and_its_mirrored_kin(pool: pd.DataFrame, tmp_path: Path) -> None:
    folder = clip(tmp_path)
    settings = {"agreement": {"clip": {"model": "clip", "mirrored": True}}}
    found = judged(pool, settings, {"clip": {"class": "clip", "path": str(folder)}})
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    ways: dict[str, Callable[[PILImage.Image], PILImage.Image]] = {
        "clip": PILImage.Image.copy,
        "clip_h": ImageOps.mirror,
        "clip_v": ImageOps.flip,
    }
    for row in np.flatnonzero(pool["modality"] == "image"):
        picture = PILImage.open(Path(pool["media_root"][row]) / pool["data"][row]).convert("RGB")
        for name, turned in ways.items():
            inputs = processor(
                text=[pool["annotation"][row]], images=[turned(picture)], return_tensors="pt", truncation=True
            )
            with torch.inference_mode():
                expected = model(**inputs).logits_per_image / model.logit_scale.exp()
            assert found[column(name)][row] == pytest.approx(float(expected), abs=1e-5)
    seen = found[column("clip")].notna()
    assert set(found["modality"][seen]) == {"image", "video"}
    assert (found[column("clip")] != found[column("clip_h")])[seen].all()


def test_clap_score(pool: pd.DataFrame, tmp_path: Path) -> None:
    folder = clap(tmp_path)
    spec = {"clap": {"class": "clap", "path": str(folder)}}
    settings = {"agreement": {"clap": {"model": "clap", "mirrored": True}}}
    found = judged(pool, settings, spec, MediaSettings(sample_rate=48_000))
    assert set(found["modality"][found[column("clap")].notna()]) == {"audio"}
    assert found[column("clap_h")].isna().all()  # a sound has no mirror image
    encoder = loader.load("clap", "clap", {"path": str(folder)})
    sounds = pool[pool["modality"] == "audio"]
    root = pool["media_root"][0]
    opener = Opener(MediaSettings(sample_rate=48_000), root)
    data = encoder.encode([opener.open(ref, "audio") for ref in sounds["data"]], "audio").vectors
    texts = encoder.encode(list(sounds["annotation"]), "text").vectors
    np.testing.assert_allclose(found[column("clap")][sounds.index], (data * texts).sum(dim=1), atol=1e-6)


def test_boxes_of_grounding_dino(pool: pd.DataFrame, tmp_path: Path) -> None:
    pool = pool.assign(annotation="A cat, a dog and a remote control in a car.")
    arguments = {"path": str(grounding_dino(tmp_path)), "threshold": 0.1}
    settings = {"grounding": {"dino": {"model": "dino", "threshold": 0.5}}}
    found = judged(pool, settings, {"dino": {"class": "grounding-dino", **arguments}})
    grounder = loader.load("dino", "grounding-dino", arguments)
    phrases = components([pool["annotation"][0]], "phrases")
    for row in np.flatnonzero(pool["modality"] == "image"):
        item = Opener(root=pool["media_root"][row]).open(pool["data"][row], "image")
        (boxes,) = grounder.ground([item], phrases, "image")
        assert isinstance(boxes, Grounded)
        best = boxes.scores.nan_to_num(0).amax(dim=1)
        assert len(best) > 0
        expected = [
            float((best >= 0.5).sum()),
            float(best.mean()),
            float(best.max()),
            float((boxes.scores.nan_to_num(0) >= 0.5).any(dim=0).float().mean()),
        ]
        names = [column(f"dino_{score}") for score in ("count", "mean", "best", "coverage")]
        assert [found[name][row] for name in names] == pytest.approx(expected, abs=1e-6)
    assert set(found["modality"][found[column("dino_count")].notna()]) == {"image"}

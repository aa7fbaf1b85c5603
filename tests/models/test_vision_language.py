from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from nemo_mm_rank.config import ModelSpec
from nemo_mm_rank.errors import ConfigError, EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Segment, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Describer, fulfil
from nemo_mm_rank.models.expert import load_describer
from nemo_mm_rank.models.vision_language import VisionLanguageDescriber
from tests.models import tiny_writers
from tests.models.tiny_library import make_processor, version

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

ASKED = "Say it."
RANDOM = np.random.default_rng(0)


def picture(width: int, height: int) -> Image:
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(f"{pixels.sum()}", PILImage.fromarray(pixels))


def film(frames: int) -> Video:
    shown = RANDOM.integers(0, 256, (frames, 60, 84, 3), dtype=np.uint8)
    return Video(f"{shown.sum()}", shown, np.arange(0.5, frames), float(frames))


def sound(samples: int) -> Audio:
    return Audio(str(samples), RANDOM.uniform(-0.5, 0.5, samples).astype(np.float32), 16_000)


ITEMS: dict[str, list[Any]] = {
    "image": [picture(90, 60), picture(60, 90), picture(90, 60), picture(120, 40), picture(90, 60)],
    "video": [film(4), film(2), film(4)],
    "audio": [sound(9_000), sound(16_000), sound(9_000)],
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for build in (tiny_writers.qwen2_vl, tiny_writers.llava, tiny_writers.qwen2_audio):
        folder = made[build.__name__] = build(tmp_path_factory.mktemp(build.__name__))
        settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        settings.update(do_sample=True, temperature=3.0, top_k=20)
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return made


def describer(folder: Path, **changes: Any) -> VisionLanguageDescriber:
    arguments = {"path": str(folder), "prompt": ASKED, "max_new_tokens": 6, **changes}
    loaded: VisionLanguageDescriber = loader.load("captions", "vision-language", arguments)
    return loaded


@pytest.fixture(scope="module")
def described(folders: dict[str, Path]) -> dict[tuple[str, str], list[str | None]]:
    found: dict[tuple[str, str], list[str | None]] = {}
    for family, modality in FAMILIES:
        result = describer(folders[family]).describe(ITEMS[modality], modality)
        assert not result.errors
        found[family, modality] = result.texts
    return found


FAMILIES = [
    ("qwen2_vl", "image"),
    ("qwen2_vl", "video"),
    ("llava", "image"),
    ("llava", "video"),
    ("qwen2_audio", "audio"),
]


def content(item: Segment, family: str) -> list[dict[str, Any]]:
    if isinstance(item, Image):
        return [{"type": "image", "image": item.pixels}]
    if isinstance(item, Audio):
        return [{"type": "audio", "audio": item.samples}]
    assert isinstance(item, Video)
    if family == "qwen2_vl":
        return [{"type": "video", "video": item.frames}]
    return [{"type": "image", "image": PILImage.fromarray(frame)} for frame in item.frames]


@pytest.mark.parametrize(("family", "modality"), FAMILIES)
def test_descriptions_are_those_of_the_library(
    folders: dict[str, Path], described: dict[tuple[str, str], list[str | None]], family: str, modality: str
) -> None:
    audio = "AutoModelForMultimodalLM" if version() >= (5, 0) else "Qwen2AudioForConditionalGeneration"
    kind = getattr(transformers, audio if modality == "audio" else "AutoModelForImageTextToText")
    model = kind.from_pretrained(folders[family])
    processor = make_processor(folders[family])
    texts = []
    for item in ITEMS[modality]:
        asked = [{"role": "user", "content": [*content(item, family), {"type": "text", "text": ASKED}]}]
        inputs = processor.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"do_sample_frames": False} if (family, modality) == ("qwen2_vl", "video") else {},
        )
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert described[family, modality] == [text.strip() for text in texts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("family", "modality"), [FAMILIES[0], FAMILIES[2]])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_description_is_the_same_in_any_company(
    folders: dict[str, Path],
    described: dict[tuple[str, str], list[str | None]],
    family: str,
    modality: str,
    batch_size: int,
) -> None:
    asked, items = describer(folders[family], batch_size=batch_size), ITEMS[modality]
    texts = described[family, modality]
    assert asked.describe(items[::-1], modality).texts == texts[::-1]
    assert asked.describe(items[2:3], modality).texts == texts[2:3]
    assert asked.describe([items[4]] * 4, modality).texts == [texts[4]] * 4


def test_inputs_that_weigh_much_do_not_wait(
    folders: dict[str, Path], described: dict[tuple[str, str], list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_mm_rank.models.batching.HELD_BYTES", 1)
    asked = describer(folders["llava"])
    assert asked.describe(ITEMS["image"], "image").texts == described["llava", "image"]


def test_by_its_short_name_beside_its_errors(
    folders: dict[str, Path], described: dict[tuple[str, str], list[str | None]]
) -> None:
    arguments = {"path": str(folders["llava"]), "prompt": ASKED, "max_new_tokens": 6}
    models = {"captions": ModelSpec.model_validate({"class": "vision-language", **arguments})}
    loaded = load_describer("captions", models)
    fulfil("captions", loaded, Describer)
    thin = Image("thin", PILImage.new("RGB", (900, 2)))
    result = loaded.describe([ITEMS["image"][0], thin, ITEMS["image"][1]], "image")
    assert result.texts == [described["llava", "image"][0], None, described["llava", "image"][1]]
    assert [str(error) for error in result.errors.values()] == [
        "900 x 2 pixels: more than 200 times as long as it is wide"
    ]
    assert loaded.modalities == {"image", "video"}
    assert loaded.revision == loader.identities(models)["captions"]["revision"]
    assert len(loaded.revision) == 40
    deaf = describer(folders["qwen2_audio"])
    assert deaf.modalities == {"audio"}
    assert deaf.describe([sound(0)], "audio").errors.keys() == {0}
    with pytest.raises(ModelError, match="takes audio, not image"):
        deaf.describe([], "image")


def test_silence_is_an_error_not_an_empty_text(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "speechless")
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    end = settings["eos_token_id"]
    settings["suppress_tokens"] = [token for token in range(266) if token != end]
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    result = describer(folder).describe(ITEMS["image"][:1], "image")
    assert result.texts == [None]
    assert isinstance(result.errors[0], EmbeddingError)
    assert str(result.errors[0]) == "captions has no answer for it"


def test_what_is_asked_and_how_large_pictures_are_counts(
    folders: dict[str, Path], described: dict[tuple[str, str], list[str | None]]
) -> None:
    items, before = ITEMS["image"], described["qwen2_vl", "image"]
    for changes in ({"focus": "dogs"}, {"prompt": {"image": "What?"}}, {"max_side": 40}):
        assert describer(folders["qwen2_vl"], **changes).describe(items[:1], "image").texts != before[:1], changes
    assert (
        describer(folders["qwen2_vl"], prompt={"video": "?", "image": ASKED}).describe(items, "image").texts == before
    )


def test_what_cannot_describe_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pickled = shutil.copytree(folders["llava"], tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2)}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled: pytorch_model.bin is a pickle"):
        describer(pickled)

    from safetensors.torch import load_file, save_file

    partial = shutil.copytree(folders["llava"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    gone = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({name: value for name, value in weights.items() if name != gone}, partial / "model.safetensors")
    with pytest.raises(ModelError, match="partial: its files hold no weights for"):
        describer(partial)

    mute = shutil.copytree(folders["llava"], tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="mute: LlavaProcessor has no chat template"):
        describer(mute)
    for changes, reason in (
        ({"batch_size": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"dtype": "float23"}, "did you mean 'float32'"),
    ):
        with pytest.raises(ModelError, match=reason):
            describer(folders["llava"], **changes)
    with pytest.raises(ConfigError, match="did you mean 'max_new_tokens'"):
        describer(folders["llava"], max_tokens=3)

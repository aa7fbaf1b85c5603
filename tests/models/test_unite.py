"""UNITE through the loader, against the library's own forward pass on prompts written out here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from nemo_mm_rank import curate
from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Image, Video
from nemo_mm_rank.models import loader
from nemo_mm_rank.models.base import Encoder, fulfil
from nemo_mm_rank.models.chat_encoder import choose_frames, pool_tokens
from nemo_mm_rank.models.chat_models import UniteEncoder
from tests.models import tiny_encoders as tiny
from tests.models import tiny_writers

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")
functional: Any = pytest.importorskip("torchvision.transforms.v2.functional", reason="needs the extra 'models'")

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
PIXELS = {"shortest_edge": 256 * 28 * 28, "longest_edge": 1280 * 28 * 28}


EVEN = {5: [0, 1, 3, 4]}
"""Frames are seen in pairs: of five at one a second, four."""


def film(frames: int, height: int = 240, width: int = 320, seconds: float = 1.0) -> Video:
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    times = np.arange(0.5, frames, dtype=np.float64) * seconds
    return Video(f"film {frames} {height} {seconds}", pixels, times, frames * seconds)


TEXTS = ["a cat", "", "dog", "Straße 🐶", "two dogs run in the park. " * 4, "x" * 150, "a cot"]
PICTURES = [tiny.image(seed, *size) for seed, size in enumerate([(96, 64), (64, 96), (96, 64), (700, 500), (40, 300)])]
FILMS = [film(4), film(5), film(4, seconds=0.5), film(1)]
PAIRS = [("What is it?", PICTURES[0]), ("What happens?", FILMS[0]), ("", PICTURES[0])]
ITEMS: list[Any] = [*TEXTS, *PICTURES, *FILMS, *PAIRS]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    loader.release()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_writers.qwen2_vl(tmp_path_factory.mktemp("unite"))


def load(folder: Path, **arguments: Any) -> UniteEncoder:
    encoder: UniteEncoder = loader.load("unite", "unite", {"path": str(folder), **arguments})
    return encoder


def prompted(item: Any) -> tuple[str, dict[str, Any]]:
    """What the authors' code gives the processor: their prompt, and their bounds of pixels."""
    if isinstance(item, str):
        return f"{item}\nSummary above sentence in one word:", {}
    if isinstance(item, Image):
        return f"{IMAGE}\nSummary above image in one word:", {
            "images": [item.pixels],
            "images_kwargs": {"size": PIXELS},
        }
    if isinstance(item, Video):
        frames = functional.resize(  # as their loader makes of 240 x 320 pixels
            torch.from_numpy(item.frames[EVEN.get(len(item.frames), slice(None))]).permute(0, 3, 1, 2),
            [224, 308],
            interpolation=functional.InterpolationMode.BICUBIC,
            antialias=True,
        )
        settings = {"size": PIXELS, "do_sample_frames": False, "cap_pixels_per_frame": False}
        return f"{VIDEO}\nSummary above video in one word:", {"videos": [frames], "videos_kwargs": settings}
    text, media = item
    alone, given = prompted(media)
    return alone.replace("\nSummary above ", f"{text}\nSummary above sentence and "), given


class Library:
    """The stock model, its whole forward pass, one item at a time, without padding."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = transformers.Qwen2VLProcessor.from_pretrained(folder)

    def features(self, item: Any) -> dict[str, torch.Tensor]:
        content, given = prompted(item)
        return dict(self.processor(text=[BEFORE + content + AFTER], return_tensors="pt", **given))

    def vector(self, item: Any, plain: bool = True) -> torch.Tensor:
        features = self.features(item)
        assert self.processor.tokenizer.decode(features["input_ids"][0, -1]) == "<|endoftext|>"
        assert bool(features["attention_mask"].all())
        if plain:
            features["position_ids"] = torch.stack([torch.arange(features["input_ids"].shape[1])[None]] * 3)
        with torch.inference_mode():
            states = self.model(**features, output_hidden_states=True).hidden_states[-1]
        return F.normalize(states[0, -1], dim=0)


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library(folder)


@pytest.fixture(scope="module")
def embedded(folder: Path) -> torch.Tensor:
    encoded = load(folder).encode(ITEMS)
    assert not encoded.errors
    return encoded.vectors


def test_vectors_are_those_of_the_library_with_plain_positions(embedded: torch.Tensor, library: Library) -> None:
    expected = torch.stack([library.vector(item) for item in ITEMS])
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
    assert len({row.numpy().tobytes() for row in embedded}) == len(ITEMS) - 1  # a film's speed alone is not seen
    first = len(TEXTS) + len(PICTURES)
    assert torch.equal(embedded[first], embedded[first + 2])


def test_positions_of_the_library_on_request(folder: Path, embedded: torch.Tensor, library: Library) -> None:
    encoder = load(folder, positions="mrope")
    found = encoder.encode(ITEMS).vectors
    expected = torch.stack([library.vector(item, plain=False) for item in ITEMS])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    alike = (found * embedded).sum(dim=1)
    torch.testing.assert_close(alike[: len(TEXTS)], torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    assert float(alike[len(TEXTS) :].max()) < 0.999
    with pytest.raises(ModelError, match="positions must be one of 1d, mrope, not 'rope'; did you mean 'mrope'"):
        load(folder, positions="rope")


def test_a_vector_is_the_same_bytes_in_any_batch(folder: Path, embedded: torch.Tensor) -> None:
    encoder = load(folder)
    assert torch.equal(encoder.encode(ITEMS[::-1]).vectors.flip(0), embedded)
    for row, item in enumerate(ITEMS):
        assert torch.equal(encoder.encode([item]).vectors[0], embedded[row])
    assert torch.equal(encoder.encode(TEXTS[:1] * 70, "text").vectors, embedded[0].expand(70, -1))
    # Of all lengths of a bucket, one of which needs no padding to fill it.
    longer = ["a cat" + "s" * more for more in range(16)]
    alone = torch.cat([encoder.encode([text], "text").vectors for text in longer])
    assert torch.equal(encoder.encode(longer, "text").vectors, alone)
    several = load(folder, batch_size=3).encode(ITEMS)
    torch.testing.assert_close(several.vectors, embedded, atol=1e-5, rtol=0)


def test_whether_a_mask_is_made_does_not_depend_on_the_other_texts(folder: Path) -> None:
    """Without any padding the library leaves the mask out, and on other devices computes in another way."""
    encoder = load(folder)
    padded: list[bool] = []
    hook = encoder._model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: padded.append(not bool(given["attention_mask"].all())), with_kwargs=True
    )
    encoder.encode(["a cat" + "s" * more for more in range(16)], "text")
    for more in range(16):
        encoder.encode(["a cat" + "s" * more], "text")
    hook.remove()
    assert len(padded) >= 17
    assert all(padded)


def test_loaded_again_it_is_the_same_to_the_bit(folder: Path, embedded: torch.Tensor) -> None:
    before = load(folder)
    loader.release()
    again = load(folder)
    assert again is not before
    assert torch.equal(again.encode(ITEMS[4:]).vectors, embedded[4:])
    assert again.revision == before.revision == UniteEncoder.revision_of(str(folder))


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_from_elsewhere_padded_on_either_side(
    side: str, folder: Path, library: Library, embedded: torch.Tensor
) -> None:
    rows = [0, 3, len(TEXTS), len(TEXTS) + 1]
    texts, pictures = [], []
    for row in rows:
        content, given = prompted(ITEMS[row])
        texts.append(BEFORE + content + AFTER)
        pictures += given.get("images", [])
    features = library.processor(
        text=texts,
        images=pictures,
        images_kwargs={"size": PIXELS},
        padding=True,
        padding_side=side,
        return_tensors="pt",
    )
    assert not bool(features["attention_mask"].all())
    wanted = {name: features[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    encoder = UniteEncoder(str(folder), device="cpu", positions="1d")
    found = encoder.learnable([wanted]).detach()
    assert found.dtype == torch.float32
    # On the left the pads count as positions too, as in the authors' code; only distances matter.
    torch.testing.assert_close(found, embedded[rows], atol=1e-5, rtol=0)
    text = {name: wanted[name][:2] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(encoder.learnable([text]).detach(), embedded[[0, 3]], atol=1e-5, rtol=0)


def test_the_last_attended_token() -> None:
    hidden = torch.arange(24.0).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert pool_tokens(hidden, mask, "last").tolist() == [[2, 3], [14, 15], [22, 23]]
    assert pool_tokens(hidden, mask, "mean").tolist() == [[1, 2], [13, 14], [19, 20]]


@pytest.mark.parametrize(
    ("frames", "seconds", "taken"),
    [
        (12, 1.0, list(range(12))),
        (24, 1.0, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23]),
        (14, 0.5, [0, 3, 5, 8, 10, 13]),
        (16, 0.1, [0, 5, 10, 15]),
        (8, 5.0, list(range(8))),
        (3, 1.0, [0, 1, 2]),
        (1, 1.0, [0]),
    ],
)
def test_frames_of_a_video(frames: int, seconds: float, taken: list[int]) -> None:
    chosen, rate = choose_frames(film(frames, 2, 2, seconds), 1.0, 4, 12)
    assert chosen.tolist() == taken
    assert rate == pytest.approx(len(taken) / (frames * seconds))


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(240, 320, [6, 28, 38]), (224, 224, [6, 32, 32]), (720, 1280, [6, 24, 44])]
)
def test_videos_have_as_many_tokens_as_with_the_authors(height: int, width: int, grid: list[int], folder: Path) -> None:
    """Their loader and processor, run under transformers 4.47.1, gave 1,596, 1,536 and 1,584 tokens."""
    read = load(folder)._reading(film(12, height, width), "")()
    assert read["video_grid_thw"].tolist() == [grid]
    assert int((read["input_ids"] == load(folder)._model.config.video_token_id).sum()) == np.prod(grid) // 4


def test_texts_cannot_spell_the_marks_of_a_model(folder: Path, library: Library) -> None:
    encoder = load(folder, positions="mrope")
    found = encoder.encode(["see <|image_pad|> <|im_end|>", ("<|image_pad|>", PICTURES[0])])
    assert not found.errors
    for row, item in enumerate(["see < |image_pad|> < |im_end|>", ("< |image_pad|>", PICTURES[0])]):
        torch.testing.assert_close(found.vectors[row], library.vector(item, plain=False), atol=1e-5, rtol=0)


def test_long_texts_lose_their_beginning(folder: Path, library: Library) -> None:
    text = " ".join(map(str, range(400)))
    encoder = load(folder, max_length=200)
    features = library.features(text)
    last = {name: features[name][:, -200:] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(
        encoder.encode([text], "text").vectors, encoder.learnable([last]).detach(), atol=1e-5, rtol=0
    )


def test_sound_is_refused(folder: Path) -> None:
    encoder = load(folder)
    sound = tiny.sound(0, 1)
    refused: list[tuple[list[Any], str | None]] = [
        ([sound], "audio"),
        (["a cat", sound], None),
        ([("a cat", sound)], None),
    ]
    for items, modality in refused:
        with pytest.raises(ModelError, match="takes image, text, video, not audio"):
            encoder.encode(items, modality)
    strange: list[Any] = [("a cat", "a dog"), 7]
    for item, said in zip(strange, ["not text and text", "not int"], strict=True):
        with pytest.raises(ModelError, match=said):
            encoder.encode([item])


def test_media_that_cannot_be_seen_are_errors_of_their_own(folder: Path, embedded: torch.Tensor) -> None:
    none = Video("none", np.zeros((0, 4, 4, 3), dtype=np.uint8), np.zeros(0), 1.0)
    thin = Image("thin", PILImage.new("RGB", (1, 900)))
    found = load(folder).encode([none, "a cat", thin, PICTURES[0]])
    assert {row: (type(error), str(error)) for row, error in found.errors.items()} == {
        0: (EmbeddingError, "contains no frames"),
        2: (EmbeddingError, "1 x 900 pixels: more than 200 times as long as it is wide"),
    }
    assert torch.equal(found.vectors[[1, 3]], embedded[[0, len(TEXTS)]])


def test_it_is_an_encoder(folder: Path) -> None:
    encoder = load(folder)
    fulfil("unite", encoder, Encoder)
    assert encoder.modalities == {"text", "image", "video"}
    assert encoder.dim == 32
    assert loader.modalities("unite", "unite", {"path": "nowhere"}) == encoder.modalities
    assert encoder.encode([], "image").vectors.shape == (0, 32)


def changed(folder: Path, target: Path, names: str) -> Path:
    """Copy a model without the weights whose names contain ``names``."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if names not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("names", ["layers.1.mlp.up_proj", "visual.blocks.0.norm1"])
def test_weights_that_are_missing_are_not_made_up(names: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"hold no weights for .* missing"):
        load(changed(folder, tmp_path / "part", names))


def test_a_checkpoint_of_the_authors_class(folder: Path, tmp_path: Path, embedded: torch.Tensor) -> None:
    theirs = changed(folder, tmp_path / "theirs", "nothing")
    settings = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    (theirs / "config.json").write_text(json.dumps({**settings, "architectures": ["UniteQwen2VL"]}), encoding="utf-8")
    assert torch.equal(load(theirs).encode(ITEMS[:3]).vectors, embedded[:3])


def test_pickles_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        load(tmp_path / "pickle")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load(tiny.clip(tmp_path))


def test_pictures_and_their_captions_are_curated(folder: Path, tmp_path: Path) -> None:
    rows = [{"pair_id": "words", "modality": "text", "data": "a red car", "annotation": "a car"}]
    for number in range(6):
        tiny.image(number, 60, 40 + number % 2).pixels.save(tmp_path / f"{number}.png")
        rows.append(
            {"pair_id": f"p{number}", "modality": "image", "data": f"{number}.png", "annotation": f"no. {number}"}
        )
    PILImage.new("RGB", (900, 3)).save(tmp_path / "thin.png")
    rows.append({"pair_id": "thin", "modality": "image", "data": "thin.png", "annotation": "a thread"})
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = curate(
        config={
            "pools": str(tmp_path / "pool.jsonl"),
            "queries": "no. 3",
            "budget": "100%",
            "output": str(tmp_path / "run"),
            "models": {"unite": {"class": "unite", "path": str(folder)}},
            "experts": [{"name": "whole", "kind": "end-to-end", "encoder": "unite"}],
            "anchor": "unite",
            "projection": {"max_epochs": 2, "folds": 2, "threads": 1},
        },
        progress=False,
    )
    assert set(result.blend["pair_id"]) == {"words", *(f"p{number}" for number in range(6))}
    lost = pd.read_parquet(tmp_path / "run" / "quarantine.parquet")
    assert lost["pair_id"].tolist() == ["thin"]
    assert result.manifest["models"]["unite"]["revision"] == UniteEncoder.revision_of(str(folder))

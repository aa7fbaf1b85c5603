"""Qwen2.5-Omni's thinker and Omni-Embed through the loader, against the library's own forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from nemo_mm_rank.errors import EmbeddingError, ModelError
from nemo_mm_rank.media.segment import Audio, Image, Video
from nemo_mm_rank.models import chat_models, loader
from nemo_mm_rank.models.base import Encoder, QueryEncoder, encode_queries, fulfil
from tests.models import tiny_encoders as tiny
from tests.models import tiny_omni
from tests.models.tiny_library import version

transformers: Any = pytest.importorskip("transformers", reason="needs the extra 'models'")

TEXTS = ["a cat", "", "Straße 🐶", "two dogs run in the park. " * 4, "a cot"]
PICTURES = [tiny.image(seed, *size) for seed, size in enumerate([(96, 64), (64, 96), (96, 64)])]
FILMS = [tiny.video(seed, frames) for seed, frames in enumerate([4, 5, 1])]
SOUNDS = [tiny.sound(seed, seconds) for seed, seconds in enumerate([0.5, 0.31, 1.0, 0.5])]
PAIRS = [("What is it?", PICTURES[0]), ("What happens?", FILMS[0]), ("Who speaks?", SOUNDS[0])]
ITEMS: list[Any] = [*TEXTS, *PICTURES, *FILMS, *SOUNDS, *PAIRS]

MARKS = {
    Image: "<|vision_bos|><|IMAGE|><|vision_eos|>",
    Video: "<|vision_bos|><|VIDEO|><|vision_eos|>",
    Audio: "<|audio_bos|><|AUDIO|><|audio_eos|>",
}
NAMES = {str: "sentence", Image: "image", Video: "video", Audio: "audio"}
FRAME = {"shortest_edge": 32 * 14 * 14, "longest_edge": 64 * 28 * 28}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    loader.release()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_omni.thinker(tmp_path_factory.mktemp("thinker"))


def load(folder: Path, short: str = "qwen-omni", **arguments: Any) -> Any:
    if short == "omni-embed" and version() < chat_models.ATTENDS_BOTH_WAYS < (99, 0):
        pytest.skip("Omni-Embed needs transformers 5.23, which lets it attend both ways")
    return loader.load("omni", short, {"path": str(folder), **arguments})


class Library:
    """The stock model, its whole forward pass, one item at a time, without padding."""

    def __init__(self, folder: Path, attention: str = "sdpa") -> None:
        self.model = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder, attn_implementation=attention
        ).eval()
        self.processor = transformers.Qwen2_5OmniProcessor.from_pretrained(folder)

    def features(self, item: Any, asks: bool, before: str = "", **film: Any) -> dict[str, Any]:
        text, media = item if isinstance(item, tuple) else (None, item)
        given: dict[str, Any] = {}
        if isinstance(media, Image):
            given = {"images": [media.pixels]}
        elif isinstance(media, Video):
            frames = torch.from_numpy(media.frames).permute(0, 3, 1, 2)
            settings = {"do_sample_frames": False, "cap_pixels_per_frame": False, "fps": 1.0, **film}
            given = {"videos": [frames], "videos_kwargs": settings}
        elif isinstance(media, Audio):
            given = {"audio": [media.samples]}
        content = MARKS.get(type(media), "") + ("" if text is None else before + text)
        if isinstance(media, str):
            content = before + media
        if asks:
            named = ("sentence and " if text is not None else "") + NAMES[type(media)]
            content += f"\nSummary above {named} in one word:"
        chat = f"<|im_start|>user\n{content}<|im_end|>\n" + ("<|im_start|>assistant\n" if asks else "")
        return dict(self.processor(text=[chat], return_tensors="pt", **given))

    def states(self, features: dict[str, Any]) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = self.model(**features, output_hidden_states=True).hidden_states[-1][0]
        return states


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return Library(folder)


def expected(library: Library, pooling: str, plain: bool = False) -> torch.Tensor:
    # Frames are seen in pairs: of five at one a second, four.
    five = FILMS[1]
    four = Video("four", five.frames[[0, 1, 3, 4]], five.times[[0, 1, 3, 4]], five.duration)
    found = []
    for given in ITEMS:
        item = four if given is five else given
        rate: dict[str, Any] = {"fps": 0.8} if given is five else {}
        features = library.features(item, asks=pooling == "last", **rate)
        if plain:
            features["position_ids"] = torch.stack([torch.arange(features["input_ids"].shape[1])[None]] * 3)
        states = library.states(features)
        found.append(F.normalize(states[-1] if pooling == "last" else states.mean(dim=0), dim=0))
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_the_library(pooling: str, folder: Path, library: Library) -> None:
    encoded = load(folder, pooling=pooling).encode(ITEMS)
    assert not encoded.errors
    assert encoded.vectors.dtype == torch.float32
    wanted = expected(library, pooling)
    torch.testing.assert_close(encoded.vectors, wanted, atol=1e-5, rtol=0)
    plain = load(folder, pooling=pooling, positions="1d").encode(ITEMS).vectors
    torch.testing.assert_close(plain, expected(library, pooling, plain=True), atol=1e-5, rtol=0)
    # A picture's tokens have places of their own; a text has the same either way.
    torch.testing.assert_close(plain[: len(TEXTS)], wanted[: len(TEXTS)], atol=1e-5, rtol=0)
    seen = slice(len(TEXTS), len(TEXTS) + len(PICTURES))
    assert float((plain[seen] - wanted[seen]).abs().amax(dim=1).min()) > 1e-4


def test_omni_embed_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.release()
    monkeypatch.setattr(chat_models, "ATTENDS_BOTH_WAYS", (99, 1))
    with pytest.raises(ModelError, match=r"needs transformers 99\.1 or later, .*, not [45]\.[0-9.]+: pip install"):
        load(folder, "omni-embed")


def test_omni_embed_attends_in_both_directions(folder: Path) -> None:
    """Against the eager attention of the library, with a mask of zeros: as the authors' class makes it."""
    encoder = load(folder, "omni-embed")
    eager = Library(folder, "eager")
    eager.model.model.language_model.config._attn_implementation = "eager"
    found = []
    for item in ITEMS:
        features = eager.features(item, asks=False, before="passage: ", size=FRAME)
        length = features["input_ids"].shape[1]
        positions = eager.model.model.compute_3d_position_ids(
            features["input_ids"],
            features.get("image_grid_thw"),
            features.get("video_grid_thw"),
            None,
            features["attention_mask"],
            None,
            None,
            features["feature_attention_mask"].sum(dim=1) if "feature_attention_mask" in features else None,
            features.get("video_second_per_grid"),
        )
        everything = {"full_attention": torch.zeros(1, 1, length, length)}
        states = eager.states({**features, "attention_mask": everything, "position_ids": positions})
        found.append(F.normalize(states.mean(dim=0), dim=0))
    vectors = encoder.encode(ITEMS).vectors
    torch.testing.assert_close(vectors, torch.stack(found), atol=1e-5, rtol=0)
    assert float((vectors - load(folder).encode(ITEMS).vectors).abs().amax(dim=1).min()) > 1e-4
    # Queries are read with a prompt of their own.
    fulfil("omni", encoder, QueryEncoder)
    queries = encode_queries(encoder, ["a cat"]).vectors
    assert torch.equal(queries, encoder._encode(["a cat"], "query: ").vectors)
    assert not torch.allclose(queries, vectors[:1], atol=1e-4)


@pytest.mark.parametrize("short", ["qwen-omni", "omni-embed"])
def test_a_vector_is_the_same_bytes_in_any_batch(short: str, folder: Path) -> None:
    encoder = load(folder, short)
    together = encoder.encode(ITEMS).vectors
    assert torch.equal(encoder.encode(ITEMS[::-1]).vectors.flip(0), together)
    for row, item in enumerate(ITEMS):
        assert torch.equal(encoder.encode([item]).vectors[0], together[row])
    # Of all lengths of a bucket, one of which needs no padding to fill it.
    longer = ["a cat" + "s" * more for more in range(16)]
    alone = torch.cat([encoder.encode([text], "text").vectors for text in longer])
    assert torch.equal(encoder.encode(longer, "text").vectors, alone)
    loader.release()
    assert torch.equal(load(folder, short).encode(ITEMS).vectors, together)
    torch.testing.assert_close(load(folder, short, batch_size=2).encode(ITEMS).vectors, together, atol=1e-5, rtol=0)


def test_sounds_that_are_short_long_or_none(folder: Path) -> None:
    encoder = load(folder)
    click, long, none = tiny.sound(0, 0.001), tiny.sound(1, 2.5), Audio("none", np.zeros(0, dtype=np.float32), 16_000)
    slow = tiny.sound(2, 1.0, rate=8_000)
    found = encoder.encode([click, none, long, slow], "audio")
    assert {row: (type(error), str(error)) for row, error in found.errors.items()} == {
        1: (EmbeddingError, "contains no samples")
    }
    padded = Audio("padded", np.pad(click.samples, (0, 1_600 - len(click.samples))), 16_000)
    heard = Audio("heard", long.samples[:16_000], 16_000)
    same = encoder.encode([padded, heard], "audio").vectors
    assert torch.equal(found.vectors[[0, 2]], same)


def test_it_is_an_encoder_of_all_modalities(folder: Path) -> None:
    for short in ("qwen-omni", "omni-embed"):
        encoder = load(folder, short)
        fulfil(short, encoder, Encoder)
        assert encoder.modalities == {"text", "image", "video", "audio"}
        assert encoder.dim == 32
    with pytest.raises(ModelError, match="takes audio, image, text, video, not code"):
        encoder.encode(["x = 1"], "code")
    with pytest.raises(ModelError, match="pooling must be one of last, mean, not 'men'; did you mean 'mean'"):
        load(folder, pooling="men")


def test_half_the_bits_come_close(folder: Path) -> None:
    for short in ("qwen-omni", "omni-embed"):
        exact, half = (load(folder, short, dtype=dtype).encode(ITEMS).vectors for dtype in (None, "bfloat16"))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, exact, atol=5e-2, rtol=0)


def changed(folder: Path, target: Path, settings: dict[str, Any], rename: str, without: str = " ") -> Path:
    shutil.copytree(folder, target)
    (target / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    file = target / "model.safetensors"
    kept = {f"{rename}{name}": value for name, value in load_file(file).items() if without not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return target


def test_all_of_qwen_omni_and_the_names_that_omni_embed_has(folder: Path, tmp_path: Path) -> None:
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": own}
    items = [TEXTS[0], PICTURES[0], SOUNDS[0]]
    wanted = load(folder).encode(items).vectors
    assert torch.equal(load(changed(folder, tmp_path / "whole", whole, "thinker.")).encode(items).vectors, wanted)
    nvidia = {**own, "model_type": "nvomniembed", "architectures": ["NVOmniEmbedModel"]}
    nvidia["auto_map"] = {"AutoModel": "modeling_nv_omni_embed.NVOmniEmbedModel"}
    theirs = changed(folder, tmp_path / "nvidia", nvidia, "")
    (theirs / "modeling_nv_omni_embed.py").write_text("raise SystemExit('run')", encoding="utf-8")
    expected = load(folder, "omni-embed").encode(items).vectors
    assert torch.equal(load(theirs, "omni-embed").encode(items).vectors, expected)


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    part = changed(folder, tmp_path / "part", own, "", without="audio_tower.layers.0")
    with pytest.raises(ModelError, match=r"hold no weights for .* missing"):
        load(part)
    for file in part.glob("*.safetensors"):
        file.rename(part / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        load(part)

"""Contrastive models of the real classes, tiny and with random weights, saved as their authors publish them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

from nemo_mm_rank.media.segment import Audio, Image, Video
from tests.models.tiny_library import make_tokenizer

WORDS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

TEXTS = ["a cat", "", "dog", "two dogs run in the park and a cat looks on", "x " * 80, "Straße 🐶"]


def byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip(folder: Path) -> Path:
    transformers: Any = import_module("transformers")
    tokenizer, text = _clip_text(transformers)
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    return _saved(folder, transformers.CLIPModel(config), processor)


def x_clip(folder: Path) -> Path:
    """A video model of four frames."""
    transformers: Any = import_module("transformers")
    tokenizer, text = _clip_text(transformers)
    torch.manual_seed(0)
    between = {"mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_hidden_layers": 1}
    config = transformers.XCLIPConfig(
        text_config=text,
        vision_config={
            **TOWER,
            **between,
            "mit_num_attention_heads": 1,
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
        },
        projection_dim=16,
    )
    frames = transformers.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.XCLIPProcessor(image_processor=frames, tokenizer=tokenizer)
    return _saved(folder, transformers.XCLIPModel(config), processor)


def _clip_text(transformers: Any) -> tuple[Any, dict[str, int]]:
    letters = byte_alphabet()
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = make_tokenizer("CLIPTokenizer", {name: row for row, name in enumerate(names)})
    tokenizer.model_max_length = 32
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return tokenizer, {
        **TOWER,
        **special,
        "vocab_size": len(names),
        "max_position_embeddings": 32,
        "projection_dim": 16,
    }


def siglip(folder: Path) -> Path:
    transformers: Any = import_module("transformers")

    tokenizer = _letters(limit=16)
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config={
                **TOWER,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 16,
                "projection_size": 32,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 1,
            },
            vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        )
    )
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    return _saved(folder, model, transformers.SiglipProcessor(image_processor=images, tokenizer=tokenizer))


def siglip2(folder: Path) -> Path:
    """The kind that keeps a picture's proportions: its patches come as a list with a mask."""
    transformers: Any = import_module("transformers")

    tokenizer = _letters(limit=64)
    torch.manual_seed(0)
    model = transformers.Siglip2Model(
        transformers.Siglip2Config(
            text_config={
                **TOWER,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 64,
                "projection_size": 32,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 1,
            },
            vision_config={**TOWER, "num_patches": 16, "patch_size": 16},
        )
    )
    return _saved(
        folder,
        model,
        transformers.Siglip2Processor(image_processor=transformers.Siglip2ImageProcessor(), tokenizer=tokenizer),
    )


def clap(folder: Path, fusion: bool = False) -> Path:
    transformers: Any = import_module("transformers")

    names = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), "<mask>"]
    tokenizer = make_tokenizer("RobertaTokenizer", {name: row for row, name in enumerate(names)})
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    model = transformers.ClapModel(
        transformers.ClapConfig(
            text_config={
                **TOWER,
                "vocab_size": len(names),
                "max_position_embeddings": 70,
                "projection_dim": 16,
                "pad_token_id": 1,
                "bos_token_id": 0,
                "eos_token_id": 2,
            },
            audio_config={
                "window_size": 4,
                "num_mel_bins": 32,
                "spec_size": 64,
                "hidden_size": 32,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "patch_embeds_hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "projection_dim": 16,
                "enable_fusion": fusion,
                "num_classes": 8,
            },
            projection_dim=16,
        )
    )
    extractor = transformers.ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=16_000,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        frequency_min=50,
        frequency_max=7000,
        truncation="fusion" if fusion else "rand_trunc",
        padding="repeatpad",
    )
    return _saved(folder, model, transformers.ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer))


def open_clip(folder: Path) -> Path:
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = import_module("open_clip.model").CLIP(settings["embed_dim"], settings["vision_cfg"], settings["text_cfg"])
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    written = json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(written, encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    return folder


WEIGHTS = "open_clip_model.safetensors"


def decoder(folder: Path) -> Path:
    """A causal language model with no sentence-transformers files, padded on the left."""
    transformers: Any = import_module("transformers")

    tokenizer = _letters(limit=40)
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    shape = {**TOWER, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, pad_token_id=0, eos_token_id=1)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def broken(folder: Path, tensor: str, row: int) -> Path:
    """Make one row of a saved weight NaN."""
    from safetensors.torch import load_file

    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    weights[tensor][row] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def _letters(limit: int) -> Any:
    """Return a tokenizer of single letters that ends every text with one token and pads with another."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    transformers: Any = import_module("transformers")

    names = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: row + 3 for row, letter in enumerate(WORDS)}}
    inner = Tokenizer(WordLevel(names, unk_token="<unk>"))
    inner.pre_tokenizer = Split("", "isolated")
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=limit,
        model_input_names=["input_ids"] if limit in (16, 64) else ["input_ids", "attention_mask"],
    )


def _saved(folder: Path, model: Any, processor: Any) -> Path:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image(seed: int, width: int = 96, height: int = 64) -> Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(f"picture {seed} {width}x{height}", PILImage.fromarray(values))


def images() -> list[Image]:
    sizes = [(96, 64), (32, 32), (40, 120), (33, 31), (7, 5), (200, 64), (96, 64), (64, 64), (50, 60), (96, 65), (1, 1)]
    return [image(seed, *size) for seed, size in enumerate(sizes)]


def video(seed: int, frames: int) -> Video:
    values = np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)
    return Video(f"video {seed}", values, np.arange(frames, dtype=np.float64), float(frames))


def sound(seed: int, seconds: float, rate: int = 16_000) -> Audio:
    samples = np.random.default_rng(seed).normal(0, 0.2, int(seconds * rate)).astype(np.float32)
    return Audio(f"sound {seed}", samples.clip(-1, 1), rate)


def frames_of(video: Video) -> list[Image]:
    return [Image(f"{video.key} {row}", PILImage.fromarray(frame)) for row, frame in enumerate(video.frames)]

"""Tiny models that write, of the real classes, with random weights, processors and tokenizers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.models.tiny_library import library, make_tokenizer, rope

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>"]

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO{% elif c['type'] == 'audio' %}AUDIO"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(**marks: str) -> str:
    template = CHAT
    for name, mark in marks.items():
        template = template.replace(name.upper(), mark)
    return template


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are bytes, and the marks of a chat."""
    from tokenizers import pre_tokenizers

    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = make_tokenizer("Qwen2Tokenizer", vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = "<|im_end|>", "<|endoftext|>", "left"
    return tokenizer


def decided(model: Any, seed: int = 0, std: float = 0.5) -> Any:
    """Give a model weights so large that its words depend on what it sees."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def qwen2_vl(folder: Path) -> Path:
    """Sees pictures of any shape, and videos."""
    transformers = library()

    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            **rope([1, 1, 2]),
            "bos_token_id": number("<|endoftext|>"),
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    decided(transformers.Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    pixels = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16 * 28 * 28}
    template = chat(
        image="<|vision_start|><|image_pad|><|vision_end|>", video="<|vision_start|><|video_pad|><|vision_end|>"
    )
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(size=pixels),
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """Sees pictures, scaled to one size; no videos."""
    transformers = library()

    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    text = transformers.LlamaConfig(
        **TEXT,
        vocab_size=len(tokenizer),
        eos_token_id=number("<|im_end|>"),
        bos_token_id=number("<|endoftext|>"),
        pad_token_id=number("<|endoftext|>"),
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=number("<|image_pad|>"))
    decided(transformers.LlavaForConditionalGeneration(config), seed=2).save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
        chat_template=chat(image="<|image_pad|>"),
    ).save_pretrained(folder)
    return folder


def qwen2_audio(folder: Path) -> Path:
    """Hears a second of sound."""
    transformers = library()

    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 50,
        },
        text_config={
            **TEXT,
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
        },
        audio_token_index=number("<|AUDIO|>"),
    )
    decided(transformers.Qwen2AudioForConditionalGeneration(config)).save_pretrained(folder)
    transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=16, sampling_rate=16_000, hop_length=160, chunk_length=1
        ),
        tokenizer=tokenizer,
        chat_template=chat(audio="<|audio_bos|><|AUDIO|><|audio_eos|>"),
    ).save_pretrained(folder)
    return folder


LANGUAGES = ["<|en|>", "<|de|>"]
TASKS = ["<|transcribe|>", "<|translate|>", "<|startoftranscript|>", "<|notimestamps|>"]


def whisper(folder: Path, multilingual: bool = True, seconds: int = 1) -> Path:
    """Hears a second at a time."""
    transformers = library()

    letters = [token for token in byte_tokenizer().get_vocab() if token not in SPECIAL]
    names = [*sorted(letters), "<|endoftext|>", *LANGUAGES, *TASKS]
    tokenizer = make_tokenizer("WhisperTokenizer", {token: number for number, token in enumerate(names)})
    tokenizer.add_special_tokens({"additional_special_tokens": LANGUAGES + TASKS})
    number = tokenizer.convert_tokens_to_ids
    end = number("<|endoftext|>")
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_source_positions=50 * seconds,
        max_target_positions=32,
        decoder_start_token_id=number("<|startoftranscript|>"),
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        begin_suppress_tokens=None,
    )
    model = decided(transformers.WhisperForConditionalGeneration(config))
    settings: dict[str, Any] = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": end,
        "pad_token_id": end,
        "no_timestamps_token_id": number("<|notimestamps|>"),
        "max_length": 32,
        "is_multilingual": multilingual,
        "temperature": 0.7,
        "do_sample": True,
    }
    if multilingual:
        settings["lang_to_id"] = {language: number(language) for language in LANGUAGES}
        settings["task_to_id"] = {"transcribe": number("<|transcribe|>"), "translate": number("<|translate|>")}
    model.generation_config = transformers.GenerationConfig(**settings)
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=16, sampling_rate=16_000, hop_length=160, chunk_length=seconds
    )
    transformers.WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """Reads and writes text alone, with rotary positions."""
    transformers = library()

    tokenizer = byte_tokenizer()
    config = transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer), tie_word_embeddings=True)
    decided(transformers.LlamaForCausalLM(config), std=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """Reads and writes text alone, with learnt positions, and layers that are no `torch.nn.Linear`."""
    transformers = library()

    tokenizer = byte_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0
    )
    decided(transformers.GPT2LMHeadModel(config), std=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
